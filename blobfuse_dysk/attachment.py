"""Attach, detach, list: the one way in for every front end. Synchronous; it prints nothing and never runs trio.

    attachment = attach("mystore/disks/data", AttachOptions(name="db"))
    detach(attachment.name)

An attachment is two processes (device/holder/holder.py), a directory under /run/dysk (device/ipc/state.py) and a loop
device; none of them needs this process any more once `attach` returns. Until then the death of this process takes
everything back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blobfuse_dysk import environment
from blobfuse_dysk.attached import Attachment, describe
from blobfuse_dysk.device.attacher import naming
from blobfuse_dysk.device.attacher.launch import Launch
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.statefile import StateFile
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import AttachedError, BusyError, DeviceError, DyskError, LossError, NotFoundError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.patience import telling

if TYPE_CHECKING:  # and in the functions that need them: an attach starts the holder first, then loads the rest
    from blobfuse_dysk.device.attacher import teardown
    from blobfuse_dysk.device.ipc.control import Control
    from blobfuse_dysk.device.ipc.log import Log

__all__ = [
    "Attachment",
    "attach",
    "attachments",
    "detach",
    "end_of",
    "find_state",
    "get",
    "is_blank",
    "let_go",
    "progress",
    "status",
    "writer_of",
]

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())  # a library does not print
_held: dict[str, int] = {}  # name -> descriptor that keeps an autoclear device; see AttachOptions.autoclear


def attach(disk: DiskAddress | str, options: AttachOptions = AttachOptions()) -> Attachment:  # noqa: B008 -- frozen
    """Attach a disk and return when its device can be used. A failure leaves nothing behind.

    With options.autoclear the device is kept open by this process until `let_go`, or its end: then it is detached, if
    nobody else has it open. Raises a DyskError.
    """
    if os.geteuid() != 0:
        raise DeviceError("attaching a disk needs root", remedy="run it with sudo")
    address = DiskAddress.parse(disk) if isinstance(disk, str) else disk
    run, dev = _run_dir(), _dev_dir()
    names = list(naming.candidates(address, options.name, any_name=options.any_name))
    dead = _clear_dead_ones(run, dev, address, names[0])
    for name in names:
        if options.any_name and name in state.names(run):
            continue
        launch = Launch(name, _directories())
        try:
            from blobfuse_dysk.device.attacher.configuration import configure, first_state

            config = configure(address, options, dead)
            launch.begin(first_state(config), config.encode())
            return _finish(launch, name, run, dev, config.options)
        except AttachedError:
            launch.take_back()
            if not options.any_name or name not in state.names(run):
                raise
        except BaseException:
            launch.take_back()
            raise
    raise AttachedError(f"no name is free for {address}", remedy="give one with --name (-o name=)")


def let_go(name: str) -> None:
    """Stop keeping an autoclear device open in this process; nothing if it does not."""
    fd = _held.pop(name, None)
    if fd is not None:
        os.close(fd)


def detach(target: str, *, force: bool = False, lose_data: bool = False, timeout_s: float | None = None) -> None:
    """Detach a disk, named by attachment, device or disk, and return when everything is durable and gone.

    Raises BusyError if somebody uses the device, or if it takes longer than timeout_s (default: io-timeout and a
    minute; it then goes on without us).

    force: end it also if the service does not answer, or programs have it open, which get I/O errors. What can be
    written still is; LossError says how much could not be. lose_data: that loss is agreed to, so it is a warning only,
    and a device that is mounted is cut off, too.
    """
    from blobfuse_dysk.device.attacher import teardown
    from blobfuse_dysk.device.kernel import loop

    run, dev = _run_dir(), _dev_dir()
    if force:
        _detach_by_force(target, run, dev, lose_data=lose_data)
        return
    found = find_state(target)
    name = found["name"]
    device = teardown.device_of(run, found)
    if device:
        teardown.refuse_busy(name, device)
    let_go(name)
    if not state.alive(found["holder"]):
        with _explained(name):
            teardown.clear_dead(run, dev, found)
        return
    if found["device"] is None:
        raise BusyError(f"{name} is being attached right now", remedy="wait, or end that command")
    watching = teardown.watch(run, name)
    if device:
        loop.clear(device)
    _await_end(run, found, watching, timeout_s)


def _detach_by_force(target: str, run: str, dev: str, *, lose_data: bool) -> None:
    from blobfuse_dysk.device.attacher import teardown
    from blobfuse_dysk.device.attacher.force import by_force, refuse_used

    found: StateFile | teardown.Unreadable
    try:
        found = find_state(target)
    except (DeviceError, NotFoundError):
        if target not in state.names(run):
            raise
        found = teardown.unreadable(target)
    name = found["name"]
    device = teardown.device_of(run, found)
    if device and not lose_data:
        refuse_used(name, device)
    let_go(name)
    with _explained(name):
        loss = by_force(run, dev, found)
    if loss and lose_data:
        _log.warning("%s is detached; lost: %s", name, loss)
    elif loss:
        raise LossError(
            f"{name} is detached, but data was lost: {loss}", remedy="attach it and check its file system (fsck)"
        )


def attachments() -> list[Attachment]:
    """All of this node, by name, dead ones included."""
    run = _run_dir()
    return [describe(fields) for fields in _present(run)]


def get(target: str) -> Attachment:
    """One attachment by name, device, /dev/dysk/NAME or disk. Raises NotFoundError."""
    return describe(find_state(target))


def status(target: str) -> dict[str, Any]:
    """What the worker counts: see Stack.status. Raises NotFoundError, or DeviceError if it does not answer.

    Of a disk that failed, and has no worker any more, there is the state, since when it is in it, and why.
    """
    from blobfuse_dysk.device.ipc.control import Control

    found = find_state(target)
    described, answer = describe(found), dict[str, Any]()
    try:
        with Control(state.control_path(_run_dir(), found["name"]), found["name"]) as control:
            answer = control.ask("status")["status"]
    except DeviceError:
        if described.state not in ("fenced", "failed"):
            raise
    told = {"state": described.state, "state_since": described.state_since, "detail": described.detail}
    return {**told, **answer, "worker_restarts": found["restarts"]}


def writer_of(target: str) -> str | None:
    """Who writes to a disk that is only read here: `leased by node X since T`, as the service said when it was opened.

    None if nobody does, as far as is known. Raises NotFoundError.
    """
    with contextlib.suppress(DeviceError):
        return status(target).get("writer")
    return None


def is_blank(target: str) -> bool:
    """Whether the disk is blank (VHD footer aside): by the service's own page map, and where it was read past that.

    Raises StoreError if the two disagree.
    """
    from blobfuse_dysk.device.ipc.control import Control

    found = find_state(target)
    path = state.control_path(_run_dir(), found["name"])
    with Control(path, found["name"], timeout_s=found["io_timeout_s"]) as control:
        return bool(control.ask("blank")["blank"])


@contextlib.contextmanager
def end_of(name: str, timeout_s: float | None = None) -> Iterator[Callable[[], None]]:
    """Watch an attachment from before it is let go (by umount, losetup -d...): gives a function that waits for its end.

    That returns when all is durable and all gone, at once if there is none; it raises BusyError after timeout_s, and
    what went wrong on the way.
    """
    from blobfuse_dysk.device.attacher import teardown

    run = _run_dir()
    found = state.read(run, name)
    watch = teardown.watch(run, name) if found and state.alive(found["holder"]) else None

    def wait() -> None:
        if found:
            _await_end(run, found, watch, timeout_s)

    with watch or contextlib.nullcontext():
        yield wait


def progress(target: str) -> str:
    """One line for people: what of an attachment that is being let go is not written yet, and what it waits for."""
    from blobfuse_dysk.device.attacher import teardown

    return teardown.progress(_run_dir(), find_state(target), None)


def _await_end(run: str, found: StateFile, watching: Control | None, timeout_s: float | None) -> None:
    """Wait, and tell for what: whoever sits at the terminal, and the attachment's log."""
    from blobfuse_dysk.device.attacher import teardown

    limit_s = teardown.time_for(found, timeout_s)
    gives_up_at = None if limit_s is None else time.monotonic() + limit_s
    with telling(lambda: teardown.progress(run, found, gives_up_at), log=_log_of(found["name"])):
        teardown.await_end(found, watching, timeout_s)


def _log_of(name: str) -> Log:
    """The attachment's log, for this process."""
    from blobfuse_dysk.device.ipc.log import Log

    return Log(Path(sys.argv[0]).name or "python", name, str(environment.log_dir()))


def _clear_dead_ones(run: str, dev: str, address: DiskAddress, name: str) -> list[StateFile]:
    """Clear away dead attachments that are in the way; return the states of those that had this disk."""
    dead: list[StateFile] = []
    for found in _present(run):
        other = found["name"]
        if state.alive(found["holder"]) or (found["disk"] != address.key and other != name):
            continue
        from blobfuse_dysk.device.attacher import teardown
        from blobfuse_dysk.device.kernel.usage import users

        device = teardown.device_of(run, found)
        if device and (uses := users(device)):
            raise AttachedError(
                f"{other} is dead, but its device {device} is still used", remedy=teardown.how_to_end(other, uses)
            )
        with _explained(other):
            teardown.clear_dead(run, dev, found)
        if found["disk"] == address.key:
            dead.append(found)
    return dead


def _finish(launch: Launch, name: str, run: str, dev: str, options: AttachOptions) -> Attachment:
    """From the worker's readiness to the device. What goes wrong here is taken back by the caller."""
    from blobfuse_dysk.device.attacher.setup import set_up

    what = f"waiting for the service to let {name} be attached; that is given up a minute after it began"
    with telling(lambda: what, log=_log_of(name)):
        fields = launch.wait_ready()
    device, loop_fd = set_up(run, dev, fields, options)
    try:
        launch.commit(device)
    except BaseException:
        os.close(loop_fd)  # the holder has the device let go
        raise
    if options.autoclear:
        _held[name] = loop_fd
    else:
        os.close(loop_fd)
    fields["device"], fields["state"] = device, "attached"
    fields = state.read(run, name) or fields  # which says since when
    if options.read_only and (writer := writer_of(name)):
        what = "which writes to it: what is read may not fit together; what a snapshot has does"
        _log.warning("%s is %s, %s", fields["disk"], writer, what)
    return describe(fields)


def _present(run: str) -> list[StateFile]:
    """The states of all attachments that can be read, by name."""
    found = []
    for name in state.names(run):
        try:
            fields = state.read(run, name)
        except DeviceError as error:
            _log.warning("%s", error.line())
            continue
        if fields:
            found.append(fields)
    return found


def find_state(target: str) -> StateFile:
    """What state.json says of the attachment meant by name, device, second name of the device, or disk.

    Raises NotFoundError; AttachedError if several are meant.
    """
    run = _run_dir()
    if target in state.names(run) and (named := state.read(run, target)):
        return named
    present = _present(run)
    matches: list[StateFile] = []
    if target.startswith("/"):
        device = os.path.realpath(target)
        matches = [fields for fields in present if fields["device"] and device == fields["device"]]
    elif "/" in target:
        with contextlib.suppress(DyskError):
            key = DiskAddress.parse(target).key
            matches = [fields for fields in present if fields["disk"] == key]
    if len(matches) > 1:
        names = ", ".join(fields["name"] for fields in matches)
        raise AttachedError(f"{target} is attached more than once: {names}", remedy="use one of these names")
    if not matches:
        raise NotFoundError(f"{target} is not attached here", remedy="dyskctl list shows what is")
    return matches[0]


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Refused system calls while clearing up, for people."""
    try:
        yield
    except OSError as error:
        raise DeviceError(f"cannot clear {name} away: {error.strerror}", remedy="see /proc/mounts") from None


def _run_dir() -> str:
    """As the kernel shows it, for the comparison with backing files and mount points."""
    return str(environment.run_dir().resolve())


def _dev_dir() -> str:
    return str(environment.dev_dir().resolve())


def _directories() -> dict[str, str]:
    return {
        "DYSK_RUN_DIR": _run_dir(),
        "DYSK_CONFIG_DIR": str(environment.config_dir()),
        "DYSK_LOG_DIR": str(environment.log_dir()),
        "DYSK_DEV_DIR": _dev_dir(),
        "DYSK_NODE": environment.node_name(),
        **({} if environment.uses_native() else {"DYSK_NATIVE": "no"}),
        **({} if environment.uses_resend() else {"DYSK_RESEND": "no"}),
    }
