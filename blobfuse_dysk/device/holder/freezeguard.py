"""The guard of a freeze: thaws what whoever froze it did not, because it died or is stopped. Standard library only.

Who else is there, and why this is enough: ipc/freezerecord.py.
"""

from __future__ import annotations

import contextlib
import signal
import time

from blobfuse_dysk.device.holder.workers import run_apart
from blobfuse_dysk.device.ipc.freezerecord import FreezeRecord
from blobfuse_dysk.device.kernel import freeze

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from types import FrameType

__all__ = ["guard", "start"]

_SOONEST_S = 0.001  # 0 would be no alarm at all
_MOST_LINES = 200  # of a record: no freeze has as many
_LONGEST_S = 3600.0  # whatever a record says


class _OverdueError(Exception):
    """The bound is over."""


def start(run: str, name: str, device: str | None) -> None:
    """Have the freeze guarded that there is a record of, by a process of its own."""
    record = FreezeRecord.open(run, name)
    if record is None:
        return
    record.close()
    if device:
        run_apart(lambda: guard(run, name, device))


def guard(run: str, name: str, device: str) -> None:
    """Wait for the end of the freeze, and see to it. Returns when nothing is frozen any more."""
    record = FreezeRecord.open(run, name)
    if record is None:
        return
    try:
        request, until, lines = record.read()
    except ValueError:
        return
    if len(lines) > _MOST_LINES:
        return  # somebody asks for guards again and again; there are some
    held = {}
    for each in freeze.file_systems(device):
        with contextlib.suppress(OSError):
            held[each.device] = freeze.open_root(each)
    record.append(" ".join(["guarded", *held]))
    if _overdue(record, until):
        _thaw(record, request, held)  # by somebody who does not come to it; when he does, there is nothing to do
        record.lock()
    if _thaw(record, request, held) and record.is_in_place():
        record.append("done")
        record.remove()


def _overdue(record: FreezeRecord, until: float) -> bool:
    """Wait for the lock, but not longer than until; whether it took longer."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise _OverdueError

    signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, min(max(_SOONEST_S, until - time.monotonic()), _LONGEST_S))
        record.lock()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except _OverdueError:
        return True
    return False


def _thaw(record: FreezeRecord, request: str, held: dict[str, int]) -> bool:
    """Thaw what the freezer may have frozen. True if the record is still that of this freeze."""
    may_be = record.to_thaw(request)
    if may_be is None:
        return False
    for device, fd in held.items():
        if device in may_be:
            with contextlib.suppress(OSError):  # gone with its device
                freeze.thaw(fd)
    return True
