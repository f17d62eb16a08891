"""The worker's side of control.sock; the questions and answers are described in control.py."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from blobfuse_dysk.device.ipc import shapes
from blobfuse_dysk.device.ipc.control import QUESTIONS
from blobfuse_dysk.device.ipc.message import ANCILLARY_BYTES, error_to_message, unpack
from blobfuse_dysk.errors import DyskError, UsageError

__all__ = ["Answer", "ControlServer", "admit"]

Answer = Callable[[Any], Awaitable[dict[str, Any]]]
"""Of a question that fits the table. If it says `descriptor`, the text that came so is its `text`."""
_MOST_LINE = 64 << 10  # bytes
_MOST_TEXT = 64 << 10  # bytes, of a descriptor
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
        fds: list[int] = []  # that came with the first bytes of a line that is not whole yet
        try:
            async with stream:
                await self._serve_lines(stream, fds)
        finally:
            _close(fds)

    async def _serve_lines(self, stream: trio.SocketStream, fds: list[int]) -> None:
        pending = b""
        while True:
            try:
                data, ancillary, flags, _ = await stream.socket.recvmsg(
                    _MOST_LINE, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except OSError:
                return
            fds += unpack(ancillary, flags)[0]
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                await self._answer(stream, line, fds)
                _close(fds)
            if len(pending) > _MOST_LINE:
                _log.warning("a question is refused: it is too long")
                return
            if not data:
                return

    async def _answer(self, stream: trio.SocketStream, line: bytes, fds: list[int]) -> None:
        try:
            question = admit(line, fds)
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


def admit(line: bytes, fds: Sequence[int] = ()) -> dict[str, Any]:
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
        if question.get("descriptor"):
            return {**question, "text": _text(fds)}
    except ValueError as error:
        _log.warning("a question is refused: %s", str(error)[:_MOST_LOGGED])
        raise UsageError(f"the question cannot be read: {error}") from None
    return dict(question)


def _text(fds: Sequence[int]) -> str:
    """What the one descriptor that came has. Raises ValueError, in whose words there is nothing of it."""
    if len(fds) != 1:
        raise ValueError(f"{len(fds)} descriptors came with it, not one")
    status = os.fstat(fds[0])
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_TEXT:
        raise ValueError(f"its descriptor is not of a memfd of {_MOST_TEXT >> 10} KiB at most")
    try:
        return os.pread(fds[0], _MOST_TEXT, 0).decode()
    except (OSError, UnicodeDecodeError):
        raise ValueError("what its descriptor has is not text") from None


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _failure(error: DyskError) -> dict[str, Any]:
    return {"ok": False, "error": error_to_message(error)}
