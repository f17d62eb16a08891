"""Having what is mounted on a device frozen for a moment, in the process that wants that.

    with frozen(run, name, device, bound_s, tell_holder) as freezing:      # raises NotFrozenError, which says why not
        ...
        freezing.check()                                        # raises NotFrozenError if that was not for all the time

Whatever becomes of this process, nothing stays frozen: ipc/freezerecord.py has the theory. Nothing here waits for
longer than twice the bound and some seconds: a freezer that is stuck in the kernel is left to itself, and thaws when it
comes out.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from blobfuse_dysk.device.ipc.freezerecord import FreezeRecord
from blobfuse_dysk.device.kernel import freeze, usage
from blobfuse_dysk.device.kernel.freeze import FileSystem

__all__ = ["Freezing", "NotFrozenError", "frozen"]

_FREEZER = Path(__file__).with_name("freezer.py")
_GUARD_S = 5.0  # for the holder to start the guard
_LOOK_S = 0.01
_START_S = 10.0  # of a program, on a machine that is busy
_GRACE_S = 2.0


class NotFrozenError(Exception):
    """Nothing is frozen (any more). Its text says why, for people."""


class Freezing:
    """A freeze, as long as it lasts. file_systems: what is frozen."""

    def __init__(self, process: _Process, file_systems: list[FileSystem], deadline: float) -> None:
        """deadline: by the monotonic clock, when it ends by itself."""
        self._process = process
        self.file_systems = file_systems
        self.deadline = deadline

    def check(self) -> None:
        """Raise NotFrozenError unless all has been frozen from the beginning up to now."""
        self._process.order("check")
        if self._process.answer(self.deadline + _GRACE_S) != ["frozen"]:
            raise NotFrozenError("somebody thawed it meanwhile")


@contextlib.contextmanager
def frozen(
    run: str,
    name: str,
    device: str,
    bound_s: float,
    tell_holder: Callable[[], None],
    protected: dict[str, str],
) -> Iterator[Freezing]:
    """Freeze all file systems on the device for the time of the block, but not for longer than bound_s.

    tell_holder: have the holder of the attachment look for the record. protected: path -> what it is for, of places
    whose file systems are never frozen. Raises NotFrozenError, OSError.
    """
    found = freezable(device, protected)
    request = str(uuid.uuid4())
    record = _make_record(run, name, request, bound_s)
    try:
        tell_holder()
        _await_guard(record, {each.device for each in found})
        process = _Process(record, device, found, bound_s)
    finally:
        record.close()  # the lock is the freezer's alone now
    try:
        process.expect("synced", time.monotonic() + bound_s, "what was written to it is not at the service", found)
        process.order("freeze")
        deadline = time.monotonic() + bound_s
        process.expect("frozen", deadline, f"it was not frozen within {bound_s:g} s", found)
        yield Freezing(process, found, deadline)
    finally:
        process.end(bound_s)
        if _is_left(run, name, request):
            tell_holder()  # once more, as the guard may have died with the freezer


def _is_left(run: str, name: str, request: str) -> bool:
    """Whether the freezer ended and thawed nothing."""
    record = FreezeRecord.open(run, name)
    if record is None:
        return False
    try:
        return record.try_lock() and bool(record.to_thaw(request))
    finally:
        record.close()


def freezable(device: str, protected: dict[str, str]) -> list[FileSystem]:
    """What is to be frozen. Raises NotFrozenError if there is nothing, or something that must not be."""
    found = freeze.file_systems(device)
    if not found:
        elsewhere = usage.mounted_elsewhere(device)
        raise NotFrozenError(str(elsewhere[0]) if elsewhere else "no file system on it is mounted")
    if other := freeze.spans(device):
        raise NotFrozenError(other)
    for path, what in protected.items():
        at = freeze.device_at(path)
        if at is None or any(each.device == at for each in found):
            raise NotFrozenError(f"{path} is on it, {what}")
    return found


def _make_record(run: str, name: str, request: str, bound_s: float) -> FreezeRecord:
    """When another freeze of it, if there is one, is over."""
    gives_up_at = time.monotonic() + _START_S + 2 * bound_s
    while time.monotonic() < gives_up_at:
        until = time.monotonic() + _START_S + 2 * bound_s + _GRACE_S
        if record := FreezeRecord.make(run, name, request, until):
            return record
        time.sleep(_LOOK_S)
    raise NotFrozenError("another snapshot of it is being made all the time")


def _await_guard(record: FreezeRecord, wanted: set[str]) -> None:
    deadline = time.monotonic() + _GUARD_S
    while time.monotonic() < deadline:
        for line in record.read()[2]:
            if line[0] == "guarded":
                if wanted <= set(line[1:]):
                    return
                raise NotFrozenError("it is mounted where the attachment's holder does not see it")
        time.sleep(_LOOK_S)
    raise NotFrozenError("the attachment's holder does not answer")


class _Process:
    """The freezer."""

    def __init__(self, record: FreezeRecord, device: str, found: list[FileSystem], bound_s: float) -> None:
        command = [sys.executable, "-I", "-S", "-B", str(_FREEZER), f"{bound_s}", f"{record.fd}", device]
        process = subprocess.Popen(
            [*command, *(each.device for each in found)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[record.fd],
            start_new_session=True,
            bufsize=0,
        )
        assert process.stdin and process.stdout
        self._orders, self._answers = process.stdin, process.stdout
        self._pending = b""
        process.wait()  # it has a child, and ends at once

    def order(self, word: str) -> None:
        """Tell it. One that is gone has nothing to do."""
        with contextlib.suppress(OSError):
            self._orders.write(word.encode() + b"\n")

    def answer(self, deadline: float) -> list[str] | None:
        """Its next answer, in words; empty if it is gone, None if there is none in time."""
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            data = os.read(self._answers.fileno(), 4096)
            if not data:
                return []
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace").split()

    def expect(self, word: str, deadline: float, late: str, found: list[FileSystem]) -> None:
        """Wait for this answer. Raises NotFrozenError for another, or none. late: why there is none in time."""
        answer = self.answer(deadline)
        if answer is None:
            raise NotFrozenError(late)
        if not answer:
            raise NotFrozenError("the process that froze it ended")
        if answer[0] == "failed":
            where = next((each for each in found if each.device == answer[-1]), None)
            what = f"{where.directory} ({where.fstype})" if where else "it"
            raise NotFrozenError(f"{what} cannot be frozen: {os.strerror(int(answer[1]))}")
        if answer[0] != word:
            raise NotFrozenError(f"the process that froze it said {answer[0]}")

    def end(self, bound_s: float) -> None:
        """Have it thaw, and wait for that, but not for one that is stuck in the kernel."""
        self._orders.close()
        deadline = time.monotonic() + _GRACE_S + bound_s
        while self.answer(deadline):
            pass
        self._answers.close()
