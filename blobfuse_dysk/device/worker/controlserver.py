"""The worker's side of control.sock; the questions and answers are described in control.py."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from blobfuse_dysk.device.ipc import shapes
from blobfuse_dysk.device.ipc.control import QUESTIONS
from blobfuse_dysk.device.ipc.message import error_to_message
from blobfuse_dysk.errors import DyskError, UsageError

__all__ = ["Answer", "ControlServer", "admit"]

Answer = Callable[[Any], Awaitable[dict[str, Any]]]  # of a question that fits the table
_MOST_LINE = 64 << 10  # bytes
_GOODBYE_S = 0.5  # for watchers to take the last answer
_MOST_LOGGED = 300  # characters
_log = logging.getLogger(__name__)


class ControlServer:
    """Answers each line with what `answers[op]` returns, or with the DyskError it raises.

    What does not fit the table (control.py) is refused before that, with a line in the log. `watch` is special: it is
    answered by `answer_watchers`, at the end.
    """

    def __init__(self, listener: socket.socket, answers: dict[str, Answer]) -> None:
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        self._answers = answers
        self._watchers: list[trio.SocketStream] = []

    async def run(self) -> None:
        """Serve until cancelled. A connection that breaks harms nobody else."""
        await trio.serve_listeners(self._serve, [self._listener])

    async def answer_watchers(self, error: DyskError | None) -> None:
        """Answer the watchers: the disk's end was clean, or this went wrong."""
        with trio.move_on_after(_GOODBYE_S):
            for watcher in self._watchers:
                await self._send(watcher, _failure(error) if error else {"ok": True})

    async def _serve(self, stream: trio.SocketStream) -> None:
        pending = b""
        async with stream:
            while True:
                try:
                    data = await stream.receive_some(_MOST_LINE)
                except trio.BrokenResourceError:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    await self._answer(stream, line)
                if len(pending) > _MOST_LINE:
                    _log.warning("a question is refused: it is too long")
                    return
                if not data:
                    return

    async def _answer(self, stream: trio.SocketStream, line: bytes) -> None:
        try:
            question = admit(line)
            if question["op"] == "watch":
                self._watchers.append(stream)
                return
            answer = {"ok": True, **await self._answers[question["op"]](question)}
        except DyskError as error:
            answer = _failure(error)
        except Exception as error:  # what serves the disk does not end for a question
            _log.exception("a question could not be answered")
            answer = _failure(DyskError(f"the worker could not answer: {error!r}", remedy="report this as a bug"))
        await self._send(stream, answer)

    async def _send(self, stream: trio.SocketStream, answer: dict[str, Any]) -> None:
        try:
            await stream.send_all(json.dumps(answer).encode() + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # nobody waits for it any more


def admit(line: bytes) -> dict[str, Any]:
    """A question that fits the table. Raises UsageError, and writes a line to the log."""
    try:
        question = shapes.parse(line)
        op = question.get("op") if isinstance(question, dict) else None
        if not isinstance(op, str):
            raise ValueError("it has no op")
        if op not in QUESTIONS:
            error = UsageError(f"the worker does not know {op[:60]!r}", remedy=f"it knows {', '.join(QUESTIONS)}")
            _log.warning("a question is refused: %s", error)
            raise error
        if problem := shapes.problem(question, QUESTIONS[op].record):
            raise ValueError(f"{op}: {problem}")
    except ValueError as error:
        _log.warning("a question is refused: %s", str(error)[:_MOST_LOGGED])
        raise UsageError(f"the question cannot be read: {error}") from None
    return dict(question)


def _failure(error: DyskError) -> dict[str, Any]:
    return {"ok": False, "error": error_to_message(error)}
