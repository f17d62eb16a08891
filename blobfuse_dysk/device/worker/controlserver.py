"""The worker's side of control.sock; the questions and answers are described in control.py."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from blobfuse_dysk.device.ipc.message import error_to_message
from blobfuse_dysk.errors import DyskError, UsageError

__all__ = ["Answer", "ControlServer"]

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
_MOST_LINE = 64 << 10  # bytes
_GOODBYE_S = 0.5  # for watchers to take the last answer


class ControlServer:
    """Answers each line with what `answers[op]` returns, or with the DyskError it raises.

    `watch` is special: it is answered by `say_goodbye`, at the end.
    """

    def __init__(self, listener: socket.socket, answers: dict[str, Answer]) -> None:
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        self._answers = answers
        self._watchers: list[trio.SocketStream] = []

    async def run(self) -> None:
        """Serve until cancelled. A connection that breaks harms nobody else."""
        await trio.serve_listeners(self._talk, [self._listener])

    async def say_goodbye(self, error: DyskError | None) -> None:
        """Answer the watchers: the disk's end was clean, or this went wrong."""
        with trio.move_on_after(_GOODBYE_S):
            for watcher in self._watchers:
                await self._send(watcher, _failure(error) if error else {"ok": True})

    async def _talk(self, stream: trio.SocketStream) -> None:
        pending = b""
        async with stream:
            while True:
                try:
                    data = await stream.receive_some(_MOST_LINE)
                except trio.BrokenResourceError:
                    return
                *lines, pending = (pending + data).split(b"\n")
                if not data or len(pending) > _MOST_LINE:
                    return
                for line in lines:
                    await self._answer(stream, line)

    async def _answer(self, stream: trio.SocketStream, line: bytes) -> None:
        try:
            question = json.loads(line)
            op = question["op"]
            if op == "watch":
                self._watchers.append(stream)
                return
            if op not in self._answers:
                raise UsageError(f"the worker does not know {op!r}", remedy=f"it knows {', '.join(self._answers)}")
            answer = {"ok": True, **await self._answers[op](question)}
        except DyskError as error:
            answer = _failure(error)
        except (ValueError, KeyError, TypeError) as error:
            answer = _failure(UsageError(f"the question cannot be read: {error!r}"))
        await self._send(stream, answer)

    async def _send(self, stream: trio.SocketStream, answer: dict[str, Any]) -> None:
        try:
            await stream.send_all(json.dumps(answer).encode() + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # nobody waits for it any more


def _failure(error: DyskError) -> dict[str, Any]:
    return {"ok": False, "error": error_to_message(error)}
