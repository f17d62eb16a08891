"""Messages between the processes of one attachment: one JSON object a packet, with file descriptors beside it.

The attaching process and the holder, and the holder and its worker, each share a Unix socket of type SOCK_SEQPACKET: it
keeps the borders of messages, carries descriptors, and reads as ended when the other side is gone, however it went.

A holder stays in memory while the package is upgraded, so its next worker may be of another version. PROTOCOL is the
number of what one hands to the other: messages (messages.py), the fields of state.json, the configuration, the dirty
ring, the memory of taken requests. Each side refuses what is not in its table, so a message or a field more is a new
number, as is any other change that an old holder could not live with; and a worker knows the numbers before it,
PROTOCOLS, for as long as that can be.
One that does not know its holder's number says so and serves nothing (device/worker/startup.py).
"""

from __future__ import annotations

import json
import socket
import struct

from blobfuse_dysk import errors
from blobfuse_dysk.device.ipc import shapes
from blobfuse_dysk.device.ipc.statefile import Failure

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

__all__ = [
    "ANCILLARY_BYTES",
    "MOST_BYTES",
    "PROTOCOL",
    "PROTOCOLS",
    "channel",
    "clip",
    "error_to_message",
    "message_to_error",
    "receive_packet",
    "send",
    "unpack",
]

PROTOCOL = 3  # that this version's holder speaks
PROTOCOLS = (2, 3)  # that this version's worker knows
MOST_BYTES = 128 << 10  # of one message; the system's default send buffer holds 208 KiB
_MOST_FDS = 8
ANCILLARY_BYTES = socket.CMSG_SPACE(_MOST_FDS * struct.calcsize("i"))  # for the descriptors of one message
_MOST_TEXT = 2000  # characters of a text for people; a state.json with all that it may have then fits a message


def channel() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: Mapping[str, object], fds: Sequence[int] = (), *, wait: bool = True) -> bool:
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


def receive_packet(channel: socket.socket) -> tuple[bytes, list[int], bool]:
    """Wait for one message as it comes, with its descriptors, close-on-exec; empty when the other side is gone.

    Whoever has use for what it says lets it in at a door (door.py). The last is as `unpack` has it.
    """
    try:
        data, ancillary, flags, _ = channel.recvmsg(MOST_BYTES, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return b"", [], True
    return data, *unpack(ancillary, flags)


def unpack(ancillary: list[tuple[int, int, bytes]], flags: int) -> tuple[list[int], bool]:
    """The descriptors that recvmsg(2) received, and whether neither they nor the message were cut off."""
    fds: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            count = len(data) // struct.calcsize("i")
            fds += struct.unpack_from(f"{count}i", data)
    return fds, not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)


def clip(text: str) -> str:
    """A text for people, such as may be in a message: not too long, and without bytes of paths that are no text."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 3]}..."


def error_to_message(error: errors.DyskError) -> Failure:
    """An error for a message: its class, its text, what to do, and under `data` the other fields of its class."""
    kind = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in errors.__all__)
    fields = error.fields()
    remedy = fields.pop("remedy")
    failure: Failure = {"type": kind, "message": clip(str(error)), "remedy": remedy and clip(remedy), "data": fields}
    if shapes.problem(failure, Failure):  # a number that JSON does not have, such as a Retry-After beyond all bounds
        failure["data"] = {}
    return failure


def message_to_error(message: Failure) -> errors.DyskError:
    """The error that `error_to_message` described, also one of another version: with the fields that are known here.

    A class that is not known, or that cannot be made without what is missing, becomes a DyskError.
    """
    text, remedy = message["message"], message["remedy"]
    cls = getattr(errors, message["type"], None)
    if isinstance(cls, type) and issubclass(cls, errors.DyskError):
        data: dict[str, Any] = {name: each for name, each in message.get("data", {}).items() if name in cls.FIELDS}
        try:
            return cls(text, **{**data, "remedy": remedy})
        except (TypeError, ValueError):
            pass
    return errors.DyskError(text, remedy=remedy)
