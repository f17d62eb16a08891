"""Who thaws a file system, whoever dies: the record of a freeze, /run/dysk/NAME/freeze, and the theory of it.

A snapshot freezes what is mounted on its disk, for a bounded time. Nobody may be left with a frozen file system: every
program that writes to it hangs, umount as well, and only root can see why. Four processes see to that:

    command   asks for the snapshot (dyskctl, the CSI driver). It never freezes anything itself.
    freezer   its child, in a session of its own (attacher/freezer.py). It freezes, and it thaws: when it is told to,
              when the command's end of their pipe closes, however that came to be, when the bound is over, and at once
              if the freezing took so long that one of these is the case already.
    guard     a child of the holder (holder/freezeguard.py), so in another control group than command and freezer, and
              with the holder's protection from the OOM killer. It thaws if the freezer is gone and did not, or if that
              is stopped beyond the bound.
    holder    starts the guard when it is told of a record; and when it is a new one, after a holder that died, if there
              is a record.

The record is a file of lines. The first is JSON: {id, until}, until by CLOCK_MONOTONIC, when at the latest all is to be
thawed. Each line after it was appended in one write:

    guarded DEVICE...    the guard: it has these file systems (`major:minor`) open and waits
    freezing DEVICE      the freezer: from now on this one may be frozen by it
    spare DEVICE         the freezer: it is not, but was frozen by somebody else, whose it stays
    done                 all is thawed

and whoever freezes has it locked (flock), the freezer alone in the end, so the kernel tells of its end, also of that of
one that is killed in FIFREEZE, which ends only after that has frozen the file system:

1. command: makes the record, locks it, writes the first line, has the worker tell the holder.
2. guard: opens what it can see, writes `guarded`, waits for the lock.
3. command: freezes nothing that is not in that line. It starts the freezer, which inherits the lock, and closes its
   own copy of it.
4. freezer: freezes, waits, thaws, writes `done`, exits.
5. guard: gets the lock; without `done` it thaws what it has open and the freezer may have frozen. Then it removes the
   record.
6. command: if the record is there still, without `done`, has the holder start another guard.

If no file system is frozen by us before 3, then: from 3 on, as long as one may be, the freezer or the guard is alive,
or both were killed at once and the holder's next one finds the record; the bound holds in each case but for the time
that FIFREEZE itself takes. Where there is no next holder (no systemd) a holder's death is the end of the disk as well.
Between the lines `freezing` and `spare` the freezer's death has somebody else's freeze thawed, as nothing can tell the
two apart then.

Standard library only, as the holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os

from blobfuse_dysk.device.ipc import state

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from typing import Any

__all__ = ["FreezeRecord"]

_MOST = 64 << 10  # bytes


class FreezeRecord:
    """An open record. fd: its descriptor, whose lock all copies of it share."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self.fd = fd

    @classmethod
    def make(cls, run: str, name: str, request: str, until: float) -> FreezeRecord | None:
        """Make it and lock it; None if somebody else has it locked. Raises OSError."""
        path = state.freeze_path(run, name)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            record = cls(path, fd)
            if not record.try_lock():
                record.close()
                return None
            if record.is_in_place():
                break
            record.close()  # its guard has just removed it
        os.ftruncate(fd, 0)
        record.append(json.dumps({"id": request, "until": until}))
        return record

    @classmethod
    def open(cls, run: str, name: str) -> FreezeRecord | None:
        """The one that is there."""
        path = state.freeze_path(run, name)
        with contextlib.suppress(OSError):
            return cls(path, os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC))
        return None

    def is_in_place(self) -> bool:
        """Whether it is still the one at its path."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self.fd))
        except FileNotFoundError:
            return False

    def append(self, line: str) -> None:
        """Add a line, in one write. Raises OSError."""
        os.write(self.fd, line.encode() + b"\n")

    def read(self) -> tuple[str, float, list[list[str]]]:
        """The id, until when, and the lines after that, in words. Raises ValueError if it is not a whole one (yet)."""
        first, *lines = os.pread(self.fd, _MOST, 0).decode(errors="replace").split("\n")
        told: Any = json.loads(first)
        try:
            return str(told["id"]), float(told["until"]), [line.split() for line in lines[:-1] if line.strip()]
        except (KeyError, TypeError):
            raise ValueError("it is no record of a freeze") from None

    def to_thaw(self, request: str) -> set[str] | None:
        """Which file systems may be frozen by the freezer; None if the record is another's by now, or none."""
        try:
            found, _, lines = self.read()
        except ValueError:
            return None
        if found != request:
            return None
        may_be = set[str]()
        for word, *devices in lines:
            if word == "freezing":
                may_be.update(devices)
            elif word == "spare":
                may_be.difference_update(devices)
            elif word == "done":
                may_be.clear()
        return may_be

    def lock(self) -> None:
        """Wait for the end of whoever has it locked."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def try_lock(self) -> bool:
        """Lock it, if nobody else has."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def remove(self) -> None:
        """Take it away, if it is still in place. Only with the lock."""
        if self.is_in_place():
            os.unlink(self._path)

    def close(self) -> None:
        """Close this copy."""
        os.close(self.fd)
