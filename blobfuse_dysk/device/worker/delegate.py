"""Asks the monitor (device/monitor/monitor.py) for what takes root. It is started here, and ends with this process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import trio

from blobfuse_dysk import environment
from blobfuse_dysk.azure.credential import access
from blobfuse_dysk.device.ipc import message
from blobfuse_dysk.device.kernel import programs
from blobfuse_dysk.errors import CredentialError

__all__ = ["Monitor", "spawn", "start"]

_MONITOR = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "monitor", "monitor.py")
_ANSWER_S = 30.0  # a file of a file system that is far away may be slow
_GONE = CredentialError(
    "the process that reads credentials is gone", remedy="dyskctl upgrade NAME starts another worker with another one"
)


class Monitor:
    """The worker's side, as access.Delegate has it. seen: signatures that this process took itself, by path."""

    def __init__(self, channel: socket.socket, seen: dict[str, access.Signature | None]) -> None:
        self._channel = channel
        self._seen = seen

    def credential_text(self, path: Path) -> str:
        """The text of a credential file that is in order. Raises CredentialError."""
        answer = self._ask(op="credential", path=str(path))
        if "error" in answer:
            raise message.message_to_error(answer["error"])
        return str(answer["text"])

    def authorities(self, path: str) -> str:
        """The certificates in a PEM file. Raises OSError, and ssl.SSLError if there are none."""
        answer = self._ask(op="authorities", path=path)
        _raise_errno(answer)
        if not answer["text"]:
            raise ssl.SSLError("no certificate")
        return str(answer["text"])

    def signature(self, path: str) -> access.Signature | None:
        """Of a file; None if there is none, or nobody who could look.

        The first time it is as it was before the monitor had started: a file that was replaced since is to be noticed.
        """
        if path in self._seen:
            return self._seen.pop(path)
        with contextlib.suppress(CredentialError):
            found = self._ask(op="signature", path=path)["signature"]
            return None if found is None else (found[0], found[1], found[2], found[3])
        return None

    async def run(self, command: tuple[str, ...]) -> access.Output:
        """Run a program. Raises OSError or CredentialError. On cancellation the program is ended."""
        with trio.socket.from_stdlib_socket(self._question(op="run", command=command)) as answers:
            data = b""
            while piece := await answers.recv(1 << 16):
                data += piece
        answer = _read(data)
        _raise_errno(answer)
        if "error" in answer:
            raise message.message_to_error(answer["error"])
        return access.Output(answer["status"], answer["stdout"].encode("latin-1"), answer["stderr"].encode("latin-1"))

    def _ask(self, **question: object) -> dict[str, Any]:
        with self._question(**question) as answers:
            answers.settimeout(_ANSWER_S)
            data = b""
            try:
                while piece := answers.recv(1 << 16):
                    data += piece
            except TimeoutError:
                raise CredentialError(
                    f"{question['path']} cannot be read within {_ANSWER_S:g} s", remedy="see whether you can read it"
                ) from None
        return _read(data)

    def _question(self, **question: object) -> socket.socket:
        """Ask; the answer comes out of the result."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            if not message.send(self._channel, question, [theirs.fileno()], wait=False):
                ours.close()
                raise _GONE
        return ours


def _read(data: bytes) -> dict[str, Any]:
    if not data:
        raise _GONE
    answer: dict[str, Any] = json.loads(data)
    return answer


def _raise_errno(answer: dict[str, Any]) -> None:
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))


def spawn(name: str) -> socket.socket:
    """Have the monitor of the attachment `name` start, with this process's rights of now. Raises OSError.

    Nothing of the attachment is known to it yet, so that comes first of all: it starts while others are at work, and
    what it shares with this process is what this one has not written to yet. It ends with the channel's other end.
    """
    ours, theirs = message.channel()
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    argv = [sys.executable, "-S", "-P", "-s", _MONITOR, "--name", name]
    try:
        programs.start(argv, environment.started_with(), (theirs.fileno(), null, null))
    finally:
        theirs.close()
        os.close(null)
    return ours


def start(channel: socket.socket, config_fd: int) -> Monitor:
    """Give the monitor behind this channel, as of `spawn`, its configuration: a memfd, which stays the caller's.

    That this process does not wait for the monitor, only for its first answer, saves an attach most of its start.
    """
    message.send(channel, {}, [config_fd])
    file = json.loads(os.pread(config_fd, os.fstat(config_fd).st_size, 0))["credential"]["proof"]["file"]
    return Monitor(channel, {file: access.signature_of(file)})
