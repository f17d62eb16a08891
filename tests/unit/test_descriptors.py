"""Credentials that come to a worker by a descriptor beside the question, and in no file."""

from __future__ import annotations

import array
import json
import os
import socket
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from blobfuse_dysk.device.kernel import memfd
from blobfuse_dysk.device.worker.controlserver import ControlServer
from blobfuse_dysk.device.worker.operations import Asked, Questions
from tests.unit.test_refusals import FakeWorker


def reload_with(line: bytes, *contents: bytes | int) -> tuple[list[str], dict[str, Any]]:
    """What a worker takes from a question with these beside it, memfds of bytes or descriptors, and what it answers."""
    taken: list[str] = []

    async def take(text: str) -> None:
        taken.append(text)

    async def asked() -> dict[str, Any]:
        worker = FakeWorker()
        worker.credential.take = take
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("")
        listener.listen()
        fds = [os.dup(each) if isinstance(each, int) else memfd.sealed("text", each) for each in contents]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ControlServer(listener, Questions(cast(Asked, worker)).answers).run)
            client = trio.socket.socket(socket.AF_UNIX)
            await client.connect(listener.getsockname())
            async with trio.SocketStream(client) as stream:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                await client.sendmsg([line[:7]], [rights] if fds else [])
                await stream.send_all(line[7:] + b"\n")
                answer: dict[str, Any] = json.loads(await stream.receive_some(1 << 20))
            nursery.cancel_scope.cancel()
        for fd in fds:
            os.close(fd)
        return answer

    before = len([*Path("/proc/self/fd").iterdir()])
    answer = trio.run(asked)
    assert len([*Path("/proc/self/fd").iterdir()]) == before, "a descriptor that came stays open"
    return taken, answer


RELOAD = b'{"op": "reload", "file": null, "descriptor": true}'


def test_a_credential_comes_in_a_descriptor_beside_its_question() -> None:
    taken, answer = reload_with(RELOAD, b"account_key = c2VjcmV0\n")
    assert (taken, answer["ok"]) == (["account_key = c2VjcmV0\n"], True)


def test_a_descriptor_that_holds_no_credentials_text_is_refused_and_what_it_holds_is_told_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as odd:
        for contents, says in (
            ((), "0 descriptors came with it"),
            ((b"secret", b"secret"), "2 descriptors came with it"),
            ((odd.fileno(),), "is not of a memfd"),
            ((b"secret" * 20_000,), "is not of a memfd of 64 KiB at most"),
            ((b"secret\xff",), "is not text"),
        ):
            taken, answer = reload_with(RELOAD, *contents)
            assert taken == [] and says in answer["error"]["message"]
    assert "secret" not in caplog.text


def test_descriptors_beside_other_questions_are_closed() -> None:
    _, answer = reload_with(b'{"op": "status"}', b"text")
    assert answer["ok"]
