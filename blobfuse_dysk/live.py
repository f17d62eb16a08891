"""What can be changed of an attachment while it is in use. Synchronous; it prints nothing and never runs trio."""

from __future__ import annotations

import contextlib
import math
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from blobfuse_dysk import environment
from blobfuse_dysk.attachment import find_state
from blobfuse_dysk.device.attacher.launch import worker_command, worker_path
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.control import Control, CredentialSeen
from blobfuse_dysk.device.ipc.message import PROTOCOLS, message_to_error
from blobfuse_dysk.device.ipc.statefile import StateFile
from blobfuse_dysk.device.kernel import fuse, loop, memfd
from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.patience import telling

__all__ = ["Upgrade", "change", "grow", "reload_credential", "upgrade"]

_RELOAD_S = 100.0  # a program that fetches a token gets 60, and its trial two requests of 12 at most
_GROW_S = 60.0  # the worker gives it 30, and there may be one before
_LOOK_S = 0.02  # between looks at state.json


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A worker was replaced. before, after: versions; None is one that has not served yet."""

    name: str
    before: str | None
    after: str | None


def upgrade(target: str, *, timeout_s: float = 180.0) -> Upgrade:
    """Replace the worker of an attachment by this version's, while the device is in use; I/O pauses for a moment.

    Returns when the new worker serves. Raises NotFoundError, or a DyskError that says why the old worker goes on.
    """
    found = find_state(target)
    name, run = found["name"], _run_dir()
    if not state.alive(found["holder"]):
        raise DeviceError(f"{name} is dead, so there is nothing to upgrade", remedy=f"dyskctl detach {name}")
    if found["protocol"] not in PROTOCOLS:
        raise DeviceError(
            f"{name} is held by a version that speaks protocol {found.get('protocol')}, "
            f"this one knows {', '.join(map(str, PROTOCOLS))}",
            remedy="its worker goes on; detach the disk and attach it again to have the new version",
        )
    before = found["worker_version"]
    request_id = str(uuid.uuid4())
    with Control(state.control_path(run, name), name) as control:
        control.ask("upgrade", id=request_id, worker=worker_command(name), path=worker_path())
    what = f"waiting for the new worker of {name}; the old one goes on if there is none within {timeout_s:g} s"
    with telling(lambda: what):
        after = _await_upgrade(run, name, request_id, timeout_s)["worker_version"]
    return Upgrade(name, before, after)


def change(target: str, **settings: float | None) -> list[str]:
    """Change io_timeout_s, iops, mbps or trace_s (see options.py; None: no limit) of an attachment while it is in use.

    I/O that waits already is measured by the new io_timeout_s. Returns warnings. Raises NotFoundError or DyskError.
    """
    found = find_state(target)
    warnings = []
    limit_s = fuse.request_timeout_s()
    if limit_s and "io_timeout_s" in settings and (settings["io_timeout_s"] or math.inf) > limit_s:
        settings["io_timeout_s"] = limit_s
        warnings.append(f"io-timeout is lowered to {limit_s:g} s: the kernel aborts FUSE requests soon after (fs.fuse)")
    with Control(state.control_path(_run_dir(), found["name"]), found["name"]) as control:
        control.ask("set", **settings)
    return warnings


def grow(target: str, size: int) -> None:
    """Make an attached disk, its blob and its device `size` bytes large, while it is in use. It never becomes smaller.

    What is on the device (partitions, a file system) stays as large as it is. Safe to repeat when it failed or was
    interrupted. Raises NotFoundError or DyskError.
    """
    found, run = find_state(target), _run_dir()
    name = found["name"]
    what = f"waiting for the service to make {name} larger; given up after {_GROW_S:g} s"
    with Control(state.control_path(run, name), name, timeout_s=_GROW_S) as control, telling(lambda: what):
        control.ask("grow", size=size)
    if found["device"] is None:
        raise DeviceError(f"{name} is being attached still", remedy="try again in a moment")
    loop.follow_size(found["device"], state.disk_path(run, name), size)


def reload_credential(target: str, credentials: str | None = None, *, text: str | None = None) -> CredentialSeen:
    """Read an attachment's credential file again, or from now on `credentials`, while it is in use.

    text: what would stand in such a file, for a credential that no file is to have; then none is read again.

    The old credential stays in use if that fails, and if the service refuses the new one or cannot be asked. Returns
    {what, expires, expires_in_s}, without the secret. Raises NotFoundError, CredentialError or DyskError.
    """
    found = find_state(target)
    # Absolute, but with its links, which may be what a rotation changes.
    path = None if credentials is None else str(Path(credentials).absolute())
    name = found["name"]
    what = f"waiting for the credential of {name}; given up after {_RELOAD_S:g} s"
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(Control(state.control_path(_run_dir(), name), name, timeout_s=_RELOAD_S))
        stack.enter_context(telling(lambda: what))
        if text is None:
            answer = control.ask("reload", file=path)
        else:
            fd = memfd.sealed("dysk-credential", text.encode())
            stack.callback(os.close, fd)
            answer = control.ask("reload", [fd], file=None, descriptor=True)
    seen: CredentialSeen = answer["credential"]
    return seen


def _await_upgrade(run: str, name: str, request_id: str, timeout_s: float) -> StateFile:
    """Wait for what the holder writes about it; see device/holder/handover.py."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = state.read(run, name)
        if found is None or not state.alive(found["holder"]):
            raise DeviceError(f"{name} was detached meanwhile")
        told = found["upgrades"].get(request_id)
        if told and told["done"]:
            if told["error"]:
                raise message_to_error(told["error"])
            return found
        time.sleep(_LOOK_S)
    raise DeviceError(f"the worker of {name} is not replaced after {timeout_s:g} s", remedy=f"see the log of {name}")


def _run_dir() -> str:
    return os.path.realpath(environment.run_dir())
