"""Making file systems on a node: at most two at a time, and once more where the driver was killed in the middle.

mkfs may outlive the driver, or die with it. What it leaves half-made is neither blank nor a file system, so it would
never be formatted again. So before mkfs begins, a note says of which attachment the disk was found blank:

    /run/dysk/.NAME.mkfs    {"disk", "endpoint", "since", "lease", "fstype", "options"}

mkfs keeps the note locked (flock) for as long as it runs. The note goes when mkfs is done, before anything is mounted.
Whoever finds one that nobody has locked, of this very attachment (same lease, same beginning), knows that all that is
on the disk is of that mkfs: nobody else could write it, as the lease was held all the time, and nobody here, as it was
never mounted. Then, and only then, mkfs is done once more. A note of another attachment says nothing and is removed.

Two locked files in /run/dysk are the places of the two that may run, in all processes of the node together.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from blobfuse_dysk.attachment import Attachment, is_blank
from blobfuse_dysk.device.kernel.usage import users
from blobfuse_dysk.errors import LaterError
from blobfuse_dysk.kubernetes.own import run_dir
from blobfuse_dysk.mount.filesystem import make_file_system

__all__ = ["AT_ONCE", "Making", "finish"]

AT_ONCE = 2  # mkfs writes as fast as it can, and on a node that just came up every disk is new
_WAIT_S = 60.0  # for a place; less than the two minutes that the kubelet gives a call
_LOOK_S = 0.05
_MOST_NOTE = 64 << 10  # bytes
_OVER = {"xfs": "-f", "btrfs": "-f", "f2fs": "-f"}  # for those that refuse where a beginning of theirs is


class Making:
    """Hears that a file system is made (filesystem.Told), and has it made within the rules above. A context manager.

    note: the locked note of a mkfs that was cut off, which this one is instead of.
    """

    def __init__(self, attached: Attachment, options: Sequence[str], note: int | None = None) -> None:
        self._attached = attached
        self._options = list(options)
        self._again = note is not None
        self._fds: list[int] = [] if note is None else [note]

    def __enter__(self) -> Making:
        return self

    def __exit__(self, *error: object) -> None:
        """The note stays if mkfs did not end well."""
        while self._fds:
            os.close(self._fds.pop())

    @property
    def held(self) -> Sequence[int]:
        """The locked files, for mkfs to keep them locked."""
        return tuple(self._fds)

    def before_mkfs(self, fstype: str) -> None:
        """Take a place, and write the note. Raises LaterError if there is no place, or another process was faster."""
        if not self._again:
            self._fds.append(_locked(self._attached, create=True))
            if not is_blank(self._attached.name):  # looked at once more, since only now nobody else makes one
                raise LaterError(f"{self._attached.disk} is not blank any more", remedy="it is tried again")
        self._fds.append(_place())
        note = {**_identity(self._attached), "fstype": fstype, "options": self._options}
        os.ftruncate(self._fds[0], 0)
        os.pwrite(self._fds[0], json.dumps(note).encode(), 0)

    def after_mkfs(self, text: str) -> None:
        """It is done; take the note away."""
        _path(self._attached.name).unlink()


def finish(attached: Attachment) -> bool:
    """Do a mkfs of this attachment once more that was cut off; whether there was one.

    Raises LaterError while it is still at work, DeviceError if mkfs fails.
    """
    try:
        fd = _locked(attached, create=False)
    except FileNotFoundError:
        return False
    note: dict[str, object] = {}
    with contextlib.suppress(ValueError):  # of a driver that was killed while it wrote, so no mkfs had begun
        note = json.loads(os.pread(fd, _MOST_NOTE, 0))
    valid = bool(note) and {key: note.get(key) for key in ("disk", "endpoint", "since", "lease")} == _identity(attached)
    if valid and not users(attached.device):
        words, fstype = note["options"], str(note["fstype"])
        options = [str(word) for word in words] if isinstance(words, list) else []
        over = [_OVER[fstype]] if fstype in _OVER else []
        with Making(attached, options, fd) as making:
            making.before_mkfs(fstype)
            make_file_system(fstype, attached.device, [*over, *options], making.held)
            making.after_mkfs("")
        return True
    with contextlib.suppress(FileNotFoundError):
        _path(attached.name).unlink()
    os.close(fd)
    return False


def _identity(attached: Attachment) -> dict[str, object]:
    """What no other attachment has: the lease was taken by this one, and never let go while it lasts."""
    lease = attached.lease["id"] if attached.lease else None
    return {"disk": attached.disk, "endpoint": attached.endpoint, "since": attached.since, "lease": lease}


def _path(name: str) -> Path:
    return Path(run_dir(), f".{name}.mkfs")


def _locked(attached: Attachment, *, create: bool) -> int:
    """The note's file, locked. Raises LaterError if somebody has it, FileNotFoundError if there is none."""
    path = _path(attached.name)
    fd = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0) | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == path.stat().st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    raise LaterError(f"a file system is being made on {attached.disk} by an earlier call", remedy="it is tried again")


def _place() -> int:
    """Wait for one of the places; the descriptor keeps it."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        for number in range(AT_ONCE):
            path = Path(run_dir(), f".mkfs-{number}")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
            else:
                return fd
        if time.monotonic() >= deadline:
            raise LaterError(f"{AT_ONCE} file systems are being made on this node", remedy="it is tried again")
        time.sleep(_LOOK_S)
