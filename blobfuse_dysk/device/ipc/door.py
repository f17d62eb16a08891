"""Where a process takes in what another says: a message that does not fit the table (messages.py) gets no further.

It is refused with one line in the log of the receiver, who goes on as if it had not come; descriptors that came with it
are closed. Whatever gets through is of the type that mypy has for it, so nobody behind the door looks again.
"""

from __future__ import annotations

import os
import socket

from blobfuse_dysk.device.ipc import messages, shapes
from blobfuse_dysk.device.ipc.message import ANCILLARY_BYTES, MOST_BYTES, receive_packet, unpack

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Generic, TypeVar

    import trio

    from blobfuse_dysk.device.ipc.messages import AttacherOrder, Fork, Forked, HolderEvent, HolderOrder, WorkerEvent

    M = TypeVar("M")
else:

    class Generic:  # in the place of typing's while the program runs
        def __class_getitem__(cls, item):
            return cls

    M = None

__all__ = [
    "ATTACHER_TO_HOLDER",
    "ATTACHER_TO_TEMPLATE",
    "HOLDER_TO_ATTACHER",
    "HOLDER_TO_WORKER",
    "TEMPLATE_TO_ATTACHER",
    "WORKER_TO_HOLDER",
    "Door",
    "Received",
    "receive",
    "receive_async",
]

_MOST_LINE = 300  # characters of what is logged


class Received(Generic[M]):
    """What came out of a channel. message: None if it was refused, or gone. gone: the other side is.

    fds: as many as the table says, close-on-exec, the receiver's from now on.
    """

    def __init__(self, message: M | None, fds: list[int], *, gone: bool = False) -> None:
        self.message = message
        self.fds = fds
        self.gone = gone


class Door(Generic[M]):
    """What one process takes of another."""

    def __init__(self, sender: str, receiver: str) -> None:
        self._sender = sender
        self._rows: dict[tuple[str, str], messages.Message] = {
            (key, name): row
            for row in messages.TABLE
            if (row.sender, row.receiver) == (sender, receiver)
            for key in ("op", "event")
            if key in shapes.fields_of(row.record)
            for name in shapes.values_of(shapes.fields_of(row.record)[key])
        }

    def admit(self, data: bytes, fds: list[int], refuse: Callable[[str], None], *, whole: bool = True) -> Received[M]:
        """Judge one packet. whole: neither its text nor its descriptors were cut off. refuse: logs a line."""
        if not data:
            _close(fds)
            return Received(None, [], gone=True)
        message, problem = self._judge(data, len(fds), whole)
        if problem is None:
            return Received(message, fds)
        _close(fds)
        refuse(f"a message of {self._sender} is refused: {problem}"[:_MOST_LINE])
        return Received(None, [])

    def _judge(self, data: bytes, fds: int, whole: bool) -> tuple[Any, str | None]:
        if not whole:
            return None, "it is too long, or too many descriptors come with it"
        try:
            message = shapes.parse(data)
        except ValueError as error:
            return None, str(error)
        if not isinstance(message, dict):
            return None, "it is no object"
        named = [(key, name) for key in ("op", "event") if isinstance(name := message.get(key), str)]
        if len(named) != 1:
            return None, "it has no name" if not named else "it has two names"
        row = self._rows.get(named[0])
        if row is None:
            key, name = named[0]
            return None, f"there is no such {'order' if key == 'op' else 'event'} as {name[:60]!a}"
        problem = shapes.problem(message, row.record)
        if problem is None and not row.fds <= fds <= row.fds + row.more:
            problem = f"{fds} descriptors come with it, not {row.fds}"
        return message, problem and f"{named[0][1]}: {problem}"


def receive(channel: socket.socket, door: Door[M], refuse: Callable[[str], None]) -> Received[M]:
    """Wait for one message, and let it in or not. Raises TimeoutError where the channel has a time limit."""
    data, fds, whole = receive_packet(channel)
    return door.admit(data, fds, refuse, whole=whole)


async def receive_async(channel: trio.socket.SocketType, door: Door[M], refuse: Callable[[str], None]) -> Received[M]:
    """As `receive`, in a process that runs trio."""
    try:
        data, ancillary, flags, _ = await channel.recvmsg(MOST_BYTES, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return Received(None, [], gone=True)
    fds, whole = unpack(ancillary, flags)
    return door.admit(data, fds, refuse, whole=whole)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


ATTACHER_TO_TEMPLATE: Door[Fork] = Door(messages.ATTACHER, messages.TEMPLATE)
TEMPLATE_TO_ATTACHER: Door[Forked] = Door(messages.TEMPLATE, messages.ATTACHER)
ATTACHER_TO_HOLDER: Door[AttacherOrder] = Door(messages.ATTACHER, messages.HOLDER)
HOLDER_TO_ATTACHER: Door[HolderEvent] = Door(messages.HOLDER, messages.ATTACHER)
HOLDER_TO_WORKER: Door[HolderOrder] = Door(messages.HOLDER, messages.WORKER)
WORKER_TO_HOLDER: Door[WorkerEvent] = Door(messages.WORKER, messages.HOLDER)
