"""The end of an attachment, from outside: who is in the way, waiting for it, clearing a dead one.

A file system that was frozen (fsfreeze -f) stays in the kernel when it is unmounted, until somebody thaws it; then the
device is in use, but nobody can be named who uses it. That is told at once: it would not end by itself.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from typing import TypedDict

from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.control import Control
from blobfuse_dysk.device.ipc.statefile import Process, StateFile
from blobfuse_dysk.device.kernel import devlink, fuse, loop
from blobfuse_dysk.device.kernel.usage import Use, claimed, users
from blobfuse_dysk.disk import format_size
from blobfuse_dysk.errors import BusyError, DeviceError, DyskError, LossError

__all__ = [
    "Unreadable",
    "await_end",
    "clear_dead",
    "device_of",
    "how_to_end",
    "kill",
    "progress",
    "refuse_busy",
    "time_for",
    "unreadable",
    "wait_end",
    "watch",
]

_SPARE_S = 60.0  # beyond io-timeout, for the last flush and the end of both processes
_BUSY_S = 1.0  # for programs that look at every new device (udev) to be done with it
_ORPHAN_S = 10.0  # for a worker without a holder, which gives itself 8 s
_LOOK_S = 0.1  # between looks for a new holder
_KILLED_S = 5.0  # for a killed process to be gone
_SLICE_S = 1.0  # between looks at what is waited for
_FROZEN_LOOKS = 3  # in a row, until a claim of the kernel's counts as one that stays
_STATUS_S = 2.0  # for the worker to say what is left to write


class Unreadable(TypedDict):
    """What is known of an attachment whose state cannot be read, in the form of a state: its name."""

    name: str
    device: None
    holder: None
    worker: None
    connection: None
    disk: None
    endpoint: None


def unreadable(name: str) -> Unreadable:
    """All that is known of it."""
    return {
        "name": name,
        "device": None,
        "holder": None,
        "worker": None,
        "connection": None,
        "disk": None,
        "endpoint": None,
    }


def wait_end(process: Process | None, timeout_s: float | None) -> bool:
    """Wait until a process that need not be a child has ended; False if it has not within `timeout_s`."""
    pidfd = state.open_process(process)
    if pidfd is None:
        return True
    try:
        return state.has_ended(pidfd, timeout_s)
    finally:
        os.close(pidfd)


def refuse_busy(name: str, device: str) -> None:
    """Raise BusyError if somebody uses the device, and not just for a moment."""
    deadline = time.monotonic() + _BUSY_S
    pause_s = 0.01
    while found := users(device):
        if time.monotonic() > deadline or any(use.kind == "mount" for use in found):
            uses = "; ".join(map(str, found))
            if _is_frozen(found):
                raise _frozen(name, device)
            raise BusyError(f"{device} ({name}) is in use: {uses}", remedy=how_to_end(name, found))
        time.sleep(pause_s)
        pause_s *= 2


def how_to_end(name: str, uses: list[Use]) -> str:
    """What to type so that nobody uses the device any more, and nothing of it is lost."""
    wheres = {use.kind: shlex.quote(use.where) for use in reversed(uses) if use.where}
    again = f"then: dyskctl detach {name}"
    if "mount" in wheres:
        return f"umount {wheres['mount']}; if it is attached still, {again}"
    if "swap" in wheres:
        return f"swapoff {wheres['swap']}, {again}"
    if "device" in wheres:
        return f"take {wheres['device']} down (vgchange -an, cryptsetup close, mdadm --stop), {again}"
    return f"end that first, {again}"


def watch(run: str, name: str) -> Control | None:
    """Ask the worker to say how the end was; None if there is no worker to ask."""
    with contextlib.ExitStack() as stack:
        try:
            control = stack.enter_context(Control(state.control_path(run, name), name, timeout_s=None))
            control.send("watch")
        except DeviceError:
            return None
        stack.pop_all()
        return control


def await_end(found: StateFile, watching: Control | None, timeout_s: float | None) -> None:
    """Wait for the holder's end, and raise what went wrong on the way; BusyError when it takes too long.

    timeout_s: None for io-timeout and a minute.
    """
    name, limit_s = found["name"], time_for(found, timeout_s)
    deadline = None if limit_s is None else time.monotonic() + limit_s
    with watching or contextlib.nullcontext():
        frozen = 0
        while not wait_end(found["holder"], _slice_s(deadline)):
            if deadline is not None and time.monotonic() >= deadline:
                raise BusyError(
                    f"{name} is not detached after {limit_s:.0f} s: {_reason(found)}",
                    remedy=f"it goes on by itself; dyskctl detach {name} --force loses what the service does not take",
                )
            device = _bound(found)
            frozen = frozen + 1 if device and _is_frozen(users(device)) else 0
            if device and frozen == _FROZEN_LOOKS:
                raise _frozen(name, device)
        if watching:
            try:
                watching.answer()
            except DeviceError:  # it had nothing more to say
                pass
            else:
                return
        if found["state"] == "failed" and not found["read_only"]:
            raise LossError(
                f"{name} is detached; it had failed, and no worker was left to say what is missing: {found['detail']}",
                remedy="attach it again and check its file system (fsck) before it is used",
            )


def time_for(found: StateFile, timeout_s: float | None) -> float | None:
    """Seconds that the end of an attachment is waited for; None for as long as it takes."""
    io_timeout_s = found["io_timeout_s"]
    return io_timeout_s + _SPARE_S if timeout_s is None and io_timeout_s is not None else timeout_s


def progress(run: str, found: StateFile, gives_up_at: float | None) -> str:
    """One line: what the end of an attachment waits for, how much is left, and when it is waited for no longer.

    gives_up_at: by time.monotonic(); None for never.
    """
    name, left, reason = found["name"], "", _reason(found)
    try:
        with Control(state.control_path(run, name), name, timeout_s=_STATUS_S) as control:
            status = control.ask("status")["status"]
    except DyskError:
        status = {}
    cache, waiting = status.get("cache"), status.get("waiting")
    if isinstance(cache, dict) and isinstance(dirty := cache.get("dirty_bytes"), int) and dirty:
        left = f", {format_size(dirty)} left to write"
    if isinstance(waiting, dict) and waiting.get("reason"):
        reason = str(waiting["reason"])
    limit = "as long as it takes"
    if gives_up_at is not None:
        limit = f"for {max(0.0, gives_up_at - time.monotonic()):.0f} s more at most"
    return f"waiting until {name} is detached{left}, {limit}: {reason}"


def _slice_s(deadline: float | None) -> float:
    return _SLICE_S if deadline is None else max(0.0, min(_SLICE_S, deadline - time.monotonic()))


def _bound(found: StateFile) -> str | None:
    """The device, while it has the disk. Once it let go it may have any other file, and what uses that is not ours."""
    device = found["device"]
    return device if device and loop.has_behind(device, found["connection"]) else None


def _reason(found: StateFile) -> str:
    """What a detach that takes long is waiting for."""
    if device := _bound(found):
        return "; ".join(map(str, users(device))) or f"{device} is still being written to"
    return "the service has not taken the last writes yet"


def _is_frozen(found: list[Use]) -> bool:
    """Whether a file system is mounted nowhere, and there nevertheless."""
    return bool(found) and all(use.kind == "claim" for use in found)


def _frozen(name: str, device: str) -> BusyError:
    node = claimed(device)
    return BusyError(
        f"{name} stays attached as {device}: the kernel has it in use, though it is mounted nowhere that can be seen; "
        "its file system was frozen (fsfreeze -f), or a program has a file of it open since umount -l",
        remedy=f"thaw it: mount -o helper=dysk {node} /mnt && fsfreeze -u /mnt && umount /mnt; or end that program",
    )


def device_of(run: str, found: StateFile | Unreadable) -> str | None:
    """The loop device that has an attachment's disk behind it now, by the kernel's own list; None if none has.

    A device with a file of the same path may be another container's, so one that the state does not name must have
    this attachment's own mount behind it.
    """
    connection = found["connection"] or fuse.connection(state.mount_path(run, found["name"]))
    if connection is None and found["device"] is None:
        return None
    return loop.bound_to(state.disk_path(run, found["name"]), found["device"], connection)


def clear_dead(run: str, dev: str, found: StateFile | Unreadable, *, patience_s: float = _ORPHAN_S) -> None:
    """Take away what a dead holder left: loop device, mount, directory, links.

    patience_s: for its worker to write what it has, and to release the lease.

    The loop device lets go when its last user does, should there be one. Raises BusyError if systemd has started
    another holder meanwhile (device/holder/systemd.py), so that nothing is dead any more, DeviceError or OSError.
    """
    name = found["name"]
    if not _wait_orphan(run, found, patience_s):
        kill(found["worker"])
    with state.lock(run):
        holder = _holder(run, name)
        if holder != found["holder"] and state.alive(holder):
            return  # somebody else cleared it, and the name is in use again: device and mount are another's
        device = device_of(run, found)
        links = devlink.Links(dev, name, found["disk"])
        if device:
            if found["disk"] is None:
                links.take_away(device)  # nobody knows which they are; before it is another disk's
            loop.clear(device)
        fuse.unmount(state.mount_path(run, name))
        if state.alive(holder):
            return  # it could not be killed
        disk, endpoint = found["disk"], found["endpoint"]
        heir = state.device_of_disk(run, disk, endpoint, but=name) if disk and endpoint else None
        links.remove(found["device"], heir)
        state.remove(run, name)


def _holder(run: str, name: str) -> Process | None:
    try:
        found = state.read(run, name)
    except DeviceError:
        return None
    return found["holder"] if found else None


def _wait_orphan(run: str, found: StateFile | Unreadable, patience_s: float) -> bool:
    """Wait for the end of a worker whose holder is dead; False if it does not come."""
    deadline = time.monotonic() + patience_s
    while True:
        holder = _holder(run, found["name"])
        if holder != found["holder"] and state.alive(holder):
            raise BusyError(f"{found['name']} has a new holder", remedy="try again")
        left_s = deadline - time.monotonic()
        if wait_end(found["worker"], max(0.0, min(left_s, _LOOK_S))):
            return True
        if left_s <= 0:
            return False


def kill(process: Process | None, *signals: int, wait_s: float = _KILLED_S) -> None:
    """Send the signals, SIGKILL by default, and wait for the end."""
    pidfd = state.open_process(process)
    if pidfd is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            for number in signals or (signal.SIGKILL,):
                signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)
    wait_end(process, wait_s)
