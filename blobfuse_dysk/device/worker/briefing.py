"""What a holder hands to a worker at its start: checked, and waited for by a worker that is to stand by.

A holder may be of another version than its worker. PROTOCOLS are the numbers (message.PROTOCOL) of the holders that
this worker can serve. One that is not among them is told so, and this worker ends without touching anything.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

from blobfuse_dysk import __version__
from blobfuse_dysk.device.ipc import message
from blobfuse_dysk.errors import DeviceError

__all__ = ["PROTOCOLS", "Briefing", "await_go", "take_briefing"]

PROTOCOLS = (2,)


@dataclass(frozen=True, slots=True)
class Briefing:
    """What a worker knows when it begins to serve.

    init: the kernel's FUSE_INIT, base64. resume: state.json's fields, for a worker after the first. resend: requests
    died with the worker before. standby: begin when `await_go` says so. The descriptors belong to the worker.
    """

    name: str
    log: str
    init: str
    resume: dict[str, Any] | None
    resend: bool
    standby: bool
    config_fd: int
    fuse_fd: int
    control_fd: int
    ring_fd: int


def take_briefing(channel: socket.socket) -> Briefing | None:
    """Wait for the holder's briefing. None: the holder is gone, or is one that this version cannot serve."""
    fields, fds = message.receive(channel)
    if fields is None:
        return None
    protocol = fields.get("protocol")
    if protocol not in PROTOCOLS:
        error = DeviceError(
            f"version {__version__} cannot take over from a holder that speaks protocol {protocol}, "
            f"it knows {', '.join(map(str, PROTOCOLS))}",
            remedy="detach the disk and attach it again to have the new version",
        )
        message.send(channel, {"event": "error", "error": message.error_to_message(error)})
        return None
    return Briefing(
        fields["name"],
        fields["log"],
        fields["init"],
        fields["resume"],
        fields["resend"],
        fields["op"] == "standby",
        *fds,
    )


def await_go(channel: socket.socket) -> tuple[dict[str, Any], bool] | None:
    """Tell the holder that this worker stands by; return (resume, resend) when it is its turn, None if never."""
    message.send(channel, {"event": "standing-by"})
    order, fds = message.receive(channel)  # "go"; or "start", of a holder that does not know what the last one said
    for fd in fds:
        os.close(fd)
    return (order["resume"], order["resend"]) if order else None
