"""Freezes what is mounted on a device, and thaws it; a program of its own, started by freezing.py.

    python -I -S -B freezer.py BOUND_S RECORD_FD DEVICE FILE-SYSTEM...       with a pipe as standard input

FILE-SYSTEM is its `major:minor`. Answers are lines on standard output, after each of which it may be told to go on:

    synced                  all is written out, so that freezing takes a moment only; now `freeze`
    frozen SPARE...         all are frozen, these by somebody else before; then `check`, any number of times
    frozen                  to `check`: they still are
    thawed                  to `check`: one is not any more, though not by us
    failed ERRNO WHERE      one cannot be frozen, so none is; the end

The end of standard input, whoever caused it, means: thaw and exit. So does the end of BOUND_S seconds, which are
counted from `freeze` on (and before it once more, for `synced`). Who else sees to it that nothing stays frozen, and
what is in the record: ipc/freezerecord.py.

It does not write to any file but the record, and starts nothing, once it has begun to freeze: the file system might be
the one that is frozen. Signals that ask for its end are ignored, since that comes by itself. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

if __name__ == "__main__":
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "..")))

from blobfuse_dysk.device.ipc.freezerecord import FreezeRecord
from blobfuse_dysk.device.kernel import freeze

__all__ = ["Freezer", "main"]


class Freezer:
    """One freeze: of file systems whose descriptors are `held`, by their `major:minor`."""

    def __init__(self, record: FreezeRecord, held: dict[str, int], bound_s: float, orders: int, answers: int) -> None:
        """orders, answers: descriptors."""
        self._record = record
        self._held = held
        self._bound_s = bound_s
        self._orders = orders
        self._answers = answers
        self._mine: list[str] = []  # frozen by us
        self._deadline = time.monotonic() + bound_s

    def run(self) -> None:
        """From here to the end. Nothing is frozen by us when it returns."""
        try:
            self._say(self._live())
        finally:
            self._thaw()
            self._record.append("done")

    def _live(self) -> str:
        """Until it is to end; the last answer, if there is one."""
        for device, fd in self._held.items():
            if problem := _sync(fd):
                return f"failed {problem} {device}"
        self._say("synced")
        if self._order() != "freeze":
            return ""
        self._deadline = time.monotonic() + self._bound_s
        spare = []
        for device in self._held:
            try:
                if not self._freeze(device):
                    spare.append(device)
            except OSError as error:
                return f"failed {error.errno} {device}"
            if not self._may_go_on():
                return ""
        self._say(" ".join(["frozen", *spare]))
        while self._order() == "check":
            # What is not frozen any more is frozen then. That comes too late, and is ours to thaw.
            self._say("thawed" if any(self._freeze(device) for device in self._held) else "frozen")
        return ""

    def _freeze(self, device: str) -> bool:
        """Whether it was not frozen."""
        if device not in self._mine:
            self._record.append(f"freezing {device}")
        done = freeze.freeze(self._held[device])
        if done and device not in self._mine:
            self._mine.append(device)
        elif device not in self._mine:
            self._record.append(f"spare {device}")
        return done

    def _order(self) -> str:
        """The next order; empty for the end, whatever that is for."""
        left_s = self._deadline - time.monotonic()
        ready, _, _ = select.select([self._orders], [], [], max(0.0, left_s))
        return os.read(self._orders, 64).decode(errors="replace").strip() if ready else ""

    def _may_go_on(self) -> bool:
        """Whether the command is there and the bound is not over: freezing may have taken long."""
        ready, _, _ = select.select([self._orders], [], [], 0)
        return not ready and time.monotonic() < self._deadline

    def _thaw(self) -> None:
        while self._mine:
            with contextlib.suppress(OSError):  # gone with its device
                freeze.thaw(self._held[self._mine[-1]])
            self._mine.pop()

    def _say(self, line: str) -> None:
        """Nobody may be there to hear it."""
        if line:
            with contextlib.suppress(OSError):
                os.write(self._answers, line.encode() + b"\n")


def _sync(fd: int) -> int:
    """syncfs(2): 0, or its errno."""
    library = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if library.syncfs(fd) else 0


def main() -> int:
    """Become nobody's child, so that nobody has to wait for us, and freeze."""
    bound_s, record_fd, device, *wanted = sys.argv[1:]
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    record = FreezeRecord("", int(record_fd))
    held = {}
    for each in freeze.file_systems(device):
        if each.device in wanted:
            try:
                held[each.device] = freeze.open_root(each)
            except OSError as error:
                os.write(1, f"failed {error.errno} {each.device}\n".encode())
                return 0
    if len(held) < len(wanted):
        os.write(1, b"failed 116 -\n")  # ESTALE: it was unmounted meanwhile
        return 0
    Freezer(record, held, float(bound_s), 0, 1).run()
    return 0


if __name__ == "__main__":
    os._exit(main())
