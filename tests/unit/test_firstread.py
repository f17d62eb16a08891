"""A task's buffer is written to, as a whole, before the first request comes into it."""

from __future__ import annotations

import os
import socket

import pytest
import trio
import trio.testing

from blobfuse_dysk.device.worker import fusetasks
from blobfuse_dysk.device.worker.firstread import NOTHING, FirstRead
from tests.unit.fusesession import TASKS, Session, kernel

__all__ = ["kernel"]


def test_the_file_fills_a_buffer_of_any_size_and_the_device_comes_after_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        first = FirstRead(theirs.fileno())
        for size in (1 << 20, (1 << 20) + 4096, 9 << 20):
            first.begin()
            ours.send(b"request")
            assert os.read(theirs.fileno(), size) == NOTHING.ljust(size, b"\0")
            first.end()
            assert os.read(theirs.fileno(), size) == b"request"
        assert not os.get_inheritable(theirs.fileno())


@pytest.mark.parametrize("burst", [1, TASKS])
async def test_each_task_but_the_first_reads_a_whole_buffer_before_its_first_request(
    kernel: tuple[socket.socket, Session], burst: int
) -> None:
    """Once each, whether it comes to a request that is there, is woken for one, or has watched for it."""
    ours, session = kernel
    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(session.task)
        await trio.testing.wait_all_tasks_blocked()
        session.answer = trio.sleep_forever
        for count in range(burst, TASKS + 1, burst):
            for _ in range(burst):
                ours.send(b"x")
            await session.until(count)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(set(session.takers)) == TASKS
    assert len(session.fillers) == TASKS - 1
    assert set(session.fillers) < set(session.takers)


async def test_so_does_a_task_that_begins_while_a_request_is_there(kernel: tuple[socket.socket, Session]) -> None:
    ours, session = kernel
    session.answer = trio.sleep_forever
    for _ in range(TASKS):
        ours.send(b"x")
    async with trio.open_nursery() as nursery:
        for count in range(1, TASKS + 1):
            nursery.start_soon(session.task)
            await session.until(count)
        nursery.cancel_scope.cancel()
    assert session.fillers == session.takers[1:]


async def test_the_device_is_back_before_anything_else_runs(
    kernel: tuple[socket.socket, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusetasks, "MOST_IN_A_ROW", 1)
    ours, session = kernel
    device = os.fstat(session.device.fileno()).st_ino
    seen: set[int] = set()

    async def look() -> None:
        while True:
            seen.add(os.fstat(session.device.fileno()).st_ino)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        for _ in range(TASKS):
            nursery.start_soon(session.task)
        session.answer = trio.sleep_forever
        for count in range(1, TASKS + 1):
            ours.send(b"x")
            await session.until(count)
        nursery.cancel_scope.cancel()
    assert session.fillers
    assert seen == {device}
