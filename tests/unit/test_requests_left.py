"""Requests in memory that outlives the worker: what one left is served first, and nothing is taken without a slot."""

from __future__ import annotations

import errno
import os

import pyfuse3
import pytest
import trio

from blobfuse_dysk.device.kernel import fuse
from blobfuse_dysk.device.worker import taken as taken_module
from blobfuse_dysk.device.worker.taken import Taken
from blobfuse_dysk.store.passage import UNDER_WAY, Lane, Passage
from tests.unit.fusefile import pattern
from tests.unit.fusekernel import (
    IN,
    LARGE,
    MOST,
    Device,
    Drain,
    fsync_request,
    out,
    read_request,
    request,
    settle,
    write_request,
)
from tests.unit.test_requests import Make, make

__all__ = ["make"]


class Left:
    """Memory in which requests are kept, of a worker that died, and that the kernel waits for."""

    def __init__(self, patch: pytest.MonkeyPatch, *messages: bytes) -> None:
        self.fd = os.memfd_create("taken")
        self.waits = {IN.unpack_from(message)[2] for message in messages}
        patch.setattr(fuse, "waits_for", lambda fd, unique: unique in self.waits)
        with Device(memory=self.fd) as device:
            for message in messages:
                assert device.take(message) is not None

    def there(self) -> set[int]:
        """The numbers of those that are kept now."""
        taken = Taken(self.fd, MOST)
        slots = [at for slab in taken.slabs for at in range(slab.start, slab.end, slab.size)]
        headers = [IN.unpack(os.pread(self.fd, IN.size, at)) for at in slots]
        return {unique for length, _, unique, *_ in headers if length}


async def test_what_a_predecessor_left_is_served_before_anything_is_read(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task that has answered would take the next, and there is one."""
    writes = [write_request(unique, unique * LARGE, pattern(LARGE, unique)) for unique in range(2, 12, 2)]
    other = request(3, 20, bytes(16))
    left = Left(monkeypatch, read_request(12, 0, 512), *reversed(writes), other, fsync_request(14))
    left.waits.discard(6)  # it was answered
    rig = make(taken_fd=left.fd, resend=True)
    rig.file.answer = rig.service.answer
    await rig.start()
    assert await rig.ask(fsync_request(16)) == []
    assert sorted(rig.file.asked) == sorted(
        [("read", 2, 0, 512), ("fsync", 2, False)]
        + [("write", 2, unique * LARGE, pattern(LARGE, unique)) for unique in (2, 4, 8, 10)]
    )
    assert rig.others.sent == [other]
    assert left.there() == {2, 4, 8, 10, 12, 14, 20}
    heard: list[bytes] = []
    for done in range(1, 7):
        rig.service.go(1)
        with trio.fail_after(10):
            while len(heard) < done:
                await trio.sleep(0.001)
                heard += rig.heard()
        assert len(rig.file.asked) == 6
    assert len(heard) == 6
    assert left.there() == {20}
    rig.others.ready = [out(20)]
    rig.others.something.set()
    with trio.fail_after(10):
        while len(rig.file.asked) < 7:  # noqa: ASYNC110
            await trio.sleep(0.001)
    assert rig.file.asked[6] == ("fsync", 2, False)
    assert left.there() == {16}
    rig.service.go()
    await settle()
    assert rig.heard() == [out(16), out(20)]
    assert left.there() == set()
    assert await rig.ask(fsync_request(18)) == []
    rig.service.go()


async def test_who_takes_over_can_be_drained_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Left(monkeypatch, fsync_request(2))
    rig = make(taken_fd=left.fd)
    rig.file.answer = rig.service.answer
    await rig.start()
    drain = Drain(rig)
    assert await rig.ask(fsync_request(4)) == []
    assert drain.told == []
    rig.service.go()
    assert await drain.until_told()
    await settle()
    assert (rig.heard(), len(rig.file.asked)) == ([out(2)], 1)


async def test_the_end_comes_while_it_takes_over(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Left(monkeypatch, fsync_request(2), fsync_request(4))
    rig = make(taken_fd=left.fd)
    rig.file.answer = rig.service.answer
    await rig.start()
    rig.requests.close()
    assert await rig.ask(fsync_request(6)) == []
    rig.service.go()
    with trio.fail_after(10):
        await rig.ended.wait()
    assert (rig.heard(), len(rig.file.asked)) == (sorted([out(2), out(4)]), 2)


async def test_what_is_cancelled_is_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Left(monkeypatch)
    rig = make(taken_fd=left.fd)
    rig.file.answer = rig.service.answer
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.requests.run)
            await settle()
            await rig.ask(fsync_request(2), write_request(4, 0, pattern(LARGE)))
            scope.cancel()
    assert rig.heard() == []
    assert left.there() == {2, 4}


async def test_without_a_slot_nothing_is_taken(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not taken stays with the kernel; as soon as there is one, it goes on."""
    monkeypatch.setattr(taken_module, "_LANDINGS", 2)
    left = Left(monkeypatch)
    rig = make(taken_fd=left.fd)
    await rig.start()
    rig.file.answer = rig.service.answer
    kernel_sends = [write_request(unique, 0, pattern(LARGE)) for unique in (2, 4, 6, 8)]
    for message in kernel_sends:
        rig.kernel.send(message)
    heard: list[bytes] = []
    for done in range(1, 5):
        with trio.fail_after(10):
            while len(rig.service.waiting) < min(2, 5 - done):  # noqa: ASYNC110
                await trio.sleep(0.001)
        assert len(rig.file.asked) == min(4, done + 1), "there are two slots"
        rig.service.go(1)
        with trio.fail_after(10):
            while len(heard) < done:
                await trio.sleep(0.001)
                heard += rig.heard()
        assert len(heard) == done
    assert left.there() == set()


@pytest.mark.parametrize("in_lane", [False, True])
@pytest.mark.parametrize("kept", [False, True])
async def test_a_write_that_fails_leaves_its_slot(
    kept: bool, in_lane: bool, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kept: its data is, as by an error's traceback."""
    monkeypatch.setattr(taken_module, "_LANDINGS", 2)
    left = Left(monkeypatch)
    rig = make(taken_fd=left.fd)
    await rig.start()

    async def fails() -> None:
        raise pyfuse3.FUSEError(errno.ENOSPC)

    def begin(passage: Passage) -> int:
        assert passage.data is not None
        rig.file.data.append(passage.data)
        passage.rest = fails()
        return UNDER_WAY

    rig.file.answer = fails
    rig.file.lane = Lane(begin) if in_lane else None
    for unique in range(2, 20, 2):
        if not kept:
            rig.file.data.clear()
        rig.kernel.send(write_request(unique, 0, pattern(LARGE)))
        with trio.fail_after(10):
            while not (heard := rig.heard()):  # noqa: ASYNC110
                await trio.sleep(0.001)
        assert heard == [out(unique, error=errno.ENOSPC)]
    assert left.there() == set()
