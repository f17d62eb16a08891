"""Messages between the processes of one attachment: one JSON object a packet, with file descriptors beside it.

The attaching process and the holder, and the holder and its worker, each share a Unix socket of type SOCK_SEQPACKET: it
keeps the borders of messages, carries descriptors, and reads as ended when the other side is gone, however it went.

A holder stays in memory while the package is upgraded, so its next worker may be of another version. PROTOCOL is the
number of what one hands to the other: these messages, the fields of state.json, the configuration, the dirty ring. A
change that an old holder could not live with gets a new number, and a worker that knows both for as long as that can
be; a worker that does not know its holder's number says so and serves nothing (device/worker/briefing.py).
"""

from __future__ import annotations

import json
import os
import socket
import struct

from blobfuse_dysk import errors

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["MOST_BYTES", "PROTOCOL", "channel", "error_to_message", "message_to_error", "receive", "send"]

PROTOCOL = 2
MOST_BYTES = 128 << 10  # of one message; the system's default send buffer holds 208 KiB
_MOST_FDS = 8


def channel() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: dict[str, Any], fds: Sequence[int] = (), *, wait: bool = True) -> bool:
    """Send one message; False when the other side is gone, or (without wait) does not take it now."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MOST_BYTES:
        raise ValueError(f"a message of {len(data)} bytes")
    flags = socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT)
    try:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        channel.sendmsg([data], rights, flags)  # socket.send_fds drops the flags before Python 3.13
    except OSError:
        return False
    return True


def receive(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Wait for one message; (None, []) when the other side is gone. The descriptors are close-on-exec."""
    try:
        data, fds, _, _ = socket.recv_fds(channel, MOST_BYTES, _MOST_FDS)
    except ConnectionError:
        return None, []
    for fd in fds:
        os.set_inheritable(fd, False)
    if not data:
        for fd in fds:
            os.close(fd)
        return None, []
    message: dict[str, Any] = json.loads(data)
    return message, fds


def error_to_message(error: errors.DyskError) -> dict[str, Any]:
    """An error as JSON: its class, its message, its fields."""
    kind = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in errors.__all__)
    return {"type": kind, "message": str(error), **error.fields()}


def message_to_error(message: dict[str, Any]) -> errors.DyskError:
    """The error that `error_to_message` described, also one of another version: with the fields that are known here.

    A class that is not known, or that cannot be made without what is missing, becomes a DyskError.
    """
    cls = getattr(errors, str(message.get("type")), None)
    text = str(message.get("message"))
    if isinstance(cls, type) and issubclass(cls, errors.DyskError):
        try:
            return cls(text, **{name: message[name] for name in cls.FIELDS if name in message})
        except (TypeError, ValueError):
            pass
    return errors.DyskError(text, remedy=message.get("remedy"))
