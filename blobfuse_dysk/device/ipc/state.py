"""The state of this node's attachments under /run/dysk, and who of their processes is alive.

/run/dysk/NAME/ (0700) belongs to the attachment NAME: state.json (0600; see statefile.py), control.sock (its
worker answers there), fs/ (the FUSE mount with the one file `disk`), freeze (while its file systems are frozen, see
freezerecord.py). The holder makes it, is the only one to write state.json, and takes it away as its last act. A
directory whose holder is gone is *dead*: whoever attaches or detaches next clears it away. Making and clearing happen
under a lock: flock of /run/dysk/.lock, a file of root's (0600), since who can open what is locked can hold everybody
up.

A process is named by its id and its start time, since ids are used again. Source: proc_pid_stat(5), field 22.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import time

from blobfuse_dysk.device.ipc import shapes
from blobfuse_dysk.device.ipc.statefile import StateFile
from blobfuse_dysk.errors import DeviceError

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobfuse_dysk.device.ipc.statefile import Process

__all__ = [
    "VERSION",
    "alive",
    "commands_path",
    "control_path",
    "device_of_disk",
    "directory",
    "disk_path",
    "exists",
    "freeze_path",
    "has_ended",
    "identity",
    "launch_path",
    "lock",
    "make_run",
    "mount_path",
    "names",
    "open_process",
    "read",
    "remove",
    "template_path",
    "write",
]

VERSION = 1  # of state.json; a program refuses what a later version wrote
_STATE = "state.json"
_FREEZE = "freeze"
_LOCK = ".lock"
LOCK_S = 30.0  # to wait for it; it is held for as long as a mount or a loop device takes to be let go
_LOCK_LOOK_S = 0.01
_LONGEST_MS = (1 << 31) - 1  # that poll(2) takes; 24 days


def directory(run: str, name: str) -> str:
    """/run/dysk/NAME"""
    return os.path.join(run, name)


def mount_path(run: str, name: str) -> str:
    """Where the attachment's FUSE file system is mounted."""
    return os.path.join(run, name, "fs")


def disk_path(run: str, name: str) -> str:
    """The file behind the loop device."""
    return os.path.join(run, name, "fs", "disk")


def control_path(run: str, name: str) -> str:
    """The worker's control socket."""
    return os.path.join(run, name, "control.sock")


def freeze_path(run: str, name: str) -> str:
    """The record of a freeze of what is mounted on it; see ipc/freezerecord.py."""
    return os.path.join(run, name, _FREEZE)


def launch_path(run: str, name: str) -> str:
    """Where a holder that systemd starts finds the process that attaches."""
    return os.path.join(run, f".{name}.launch")


def template_path(run: str, key: str) -> str:
    """Where a template is asked for holders; see device/template."""
    return os.path.join(run, f".template-{key}")


def commands_path(run: str, key: str) -> str:
    """Where a template is asked to run a command."""
    return os.path.join(run, f".dyskctl-{key}")


def make_run(run: str) -> None:
    """Make /run/dysk if it is not there, for all to look at, whatever our umask is."""
    try:
        os.makedirs(run)
    except FileExistsError:
        return
    os.chmod(run, 0o755)


@contextlib.contextmanager
def lock(run: str) -> Iterator[None]:
    """Exclude every other process that makes or clears directories under `run`. At the latest it ends with us.

    Raises DeviceError if another has it for LOCK_S, OSError if there is no such directory or it is not ours.
    """
    path = os.path.join(run, _LOCK)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_S
        while not _locked(fd):
            if time.monotonic() >= deadline:
                raise DeviceError(
                    f"another process has had {path} locked for {LOCK_S:g} s", remedy=f"fuser -v {path} shows which"
                )
            time.sleep(_LOCK_LOOK_S)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def names(run: str) -> list[str]:
    """The names that are taken, dead ones included, sorted."""
    try:
        with os.scandir(run) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def exists(run: str, name: str) -> bool:
    """Whether there is a state, readable or not."""
    return os.path.exists(os.path.join(directory(run, name), _STATE))


def read(run: str, name: str) -> StateFile | None:
    """Read an attachment's state; None if there is none. Fields that this version does not know are left out.

    Raises DeviceError for a file that is damaged or was written by a later version of this program.
    """
    path = os.path.join(directory(run, name), _STATE)
    try:
        with open(path, "rb") as file:
            fields = shapes.parse(file.read())
        if not isinstance(fields, dict):
            raise ValueError("it is no object")
        if fields.get("version") != VERSION:
            raise DeviceError(
                f"{path} has version {fields.get('version')}, this program knows version {VERSION}",
                remedy="use the blobfuse-dysk that attached the disk",
            )
        if problem := shapes.problem(fields, StateFile, surplus=True):
            raise ValueError(problem)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise DeviceError(f"{path} is damaged ({error})", remedy=f"dyskctl detach {name} --force") from None
    state: StateFile = {key: fields[key] for key in shapes.fields_of(StateFile) if key in fields}  # type: ignore[assignment]
    return state


def device_of_disk(run: str, disk: str, endpoint: str, *, but: str) -> str | None:
    """The device of an attachment of this disk under another name than `but`; None if there is none."""
    for name in names(run):
        if name != but:
            with contextlib.suppress(DeviceError):
                other = read(run, name)
                if other and (other["disk"], other["endpoint"]) == (disk, endpoint) and alive(other["holder"]):
                    return other["device"]
    return None


def write(run: str, name: str, state: StateFile) -> None:
    """Replace an attachment's state in one step; raises OSError (ENOSPC when /run is full)."""
    path = os.path.join(directory(run, name), _STATE)
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(json.dumps(state).encode())
        os.rename(f"{path}.new", path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(f"{path}.new")
        raise


def remove(run: str, name: str) -> None:
    """Take an attachment's directory away; what is not there is fine. The mount must be gone. Needs no space."""
    # state.json last: while it is there the name says whose.
    for path in (f"{_STATE}.new", "control.sock", _FREEZE, _STATE):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory(run, name), path))
    for path in (mount_path(run, name), directory(run, name)):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(path)


def identity(pid: int) -> Process:
    """What names a process for ever: {pid, start}; start (clock ticks since boot) is 0 if there is no such process."""
    return {"pid": pid, "start": _start(pid)}


def alive(process: Process | None) -> bool:
    """Whether the process that `identity` named still runs. A zombie does not."""
    return process is not None and process["start"] != 0 and _start(process["pid"]) == process["start"]


def open_process(process: Process | None) -> int | None:
    """A pidfd of the process that `identity` named, which reads as ready once all its threads are gone.

    None if there is no such process any more. There is one until it is reaped: the first thread of one that is being
    killed may be a zombie while others are still at work.
    """
    if process is None or process["start"] == 0:
        return None
    try:
        pidfd = os.pidfd_open(process["pid"])
    except ProcessLookupError:
        return None
    if _stat(process["pid"])[1] == process["start"]:  # the pidfd is of this one, since the id was not free in between
        return pidfd
    os.close(pidfd)
    return None


def has_ended(pidfd: int, timeout_s: float | None = None) -> bool:
    """Wait for the end of a process, which need not be a child; False if it has not ended within `timeout_s`."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else min(max(0.0, timeout_s) * 1000, _LONGEST_MS)))


def _start(pid: int) -> int:
    letter, start = _stat(pid)
    return 0 if letter in (b"Z", b"X") else start


def _stat(pid: int) -> tuple[bytes, int]:
    """The letter of a process's state, and when it started; 0 if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return b"X", 0
    return fields[0], int(fields[19])
