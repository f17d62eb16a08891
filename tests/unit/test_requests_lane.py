"""Requests in the plain lane: each is begun, answered and forgotten once, whatever becomes of it."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio

from blobfuse_dysk.device.worker.requests import MOST_IN_A_ROW
from blobfuse_dysk.store.passage import DONE, NO, UNDER_WAY, Lane, Passage, Rest
from tests.unit.fusefile import pattern
from tests.unit.fusekernel import LARGE, Drain, Rig, fsync_request, out, read_request, settle, write_request
from tests.unit.test_requests import Make, make

__all__ = ["make"]


class Road:
    """A lane of which the test says how calls begin, and where they end."""

    def __init__(self) -> None:
        self.begins = UNDER_WAY
        self.under_way: list[Passage] = []
        self.begun = 0
        self.ended: list[Passage] = []
        self.lane = Lane(self._begin, (self.ended.append,))
        self.rest: Callable[[], Rest] | None = None

    def _begin(self, passage: Passage) -> int:
        self.begun += 1
        if self.begins == UNDER_WAY:
            if self.rest is not None:
                passage.rest = self.rest()
            else:
                self.under_way.append(passage)
        return self.begins

    def succeed(self, count: int = 1000) -> None:
        for _ in range(min(count, len(self.under_way))):
            passage = self.under_way.pop(0)
            passage.succeed(pattern(passage.length, passage.offset % 100) if passage.data is None else b"", 1.0)


async def gives(result: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return result


async def raises(error: Exception) -> Any:
    await trio.lowlevel.checkpoint()
    raise error


@pytest.fixture
def road() -> Road:
    return Road()


@pytest.fixture
async def rig(make: Make, road: Road) -> Rig:
    rig = make()
    rig.file.lane = road.lane
    await rig.start()
    return rig


ACKNOWLEDGED = struct.pack("<II", 512, 0)


async def test_reads_and_writes_take_it_and_all_else_does_not(rig: Rig, road: Road) -> None:
    for size in (512, LARGE):
        assert await rig.ask(read_request(1, 1024, size), write_request(2, 512, pattern(size)), fsync_request(3)) == [
            out(3)
        ]
        kinds = [(p.offset, p.length, None if p.data is None else bytes(p.data)) for p in road.under_way]
        assert kinds == [(1024, size, None), (512, size, pattern(size))]
        assert rig.requests._pending == 2
        road.succeed()
        assert rig.heard() == sorted([out(1, pattern(size, 24)), out(2, struct.pack("<II", size, 0))])
        assert (rig.file.after[-1:], rig.requests._pending) == ([(512, size)], 0)
    assert [asked[0] for asked in rig.file.asked] == ["fsync", "fsync"]


async def test_the_buffer_of_a_large_write_is_given_back(rig: Rig, road: Road) -> None:
    await rig.ask(write_request(1, 0, pattern(LARGE)))
    data = road.under_way[0].data
    assert data is not None
    road.succeed()
    with pytest.raises(ValueError, match="released"):
        len(data)


async def test_what_the_lane_does_not_take_is_served_by_a_task(rig: Rig, road: Road) -> None:
    road.begins = NO
    assert await rig.ask(read_request(1, 0, 512), write_request(2, 512, pattern(512))) == sorted(
        [out(1, pattern(512, 0)), out(2, ACKNOWLEDGED)]
    )
    assert sorted(str(asked[0]) for asked in rig.file.asked) == ["read", "write"]
    assert road.begun == 2


async def test_what_is_done_at_once_is_answered_at_once(rig: Rig, road: Road) -> None:
    road.begins = DONE
    burst = 3 * MOST_IN_A_ROW
    heard = await rig.ask(*[write_request(unique, 512, pattern(512)) for unique in range(burst)])
    assert heard == sorted(out(unique, ACKNOWLEDGED) for unique in range(burst))
    assert (rig.requests._pending, road.begun, rig.file.asked) == (0, burst, [])


async def test_who_has_answered_takes_the_next_in_the_same_step(rig: Rig, road: Road) -> None:
    await rig.ask(read_request(1, 0, 8))
    rig.kernel.send(read_request(2, 0, 8))
    rig.kernel.send(read_request(3, 0, 8))
    road.succeed(1)
    assert [passage.tag for passage in road.under_way] == [2]
    await settle()
    assert [passage.tag for passage in road.under_way] == [2, 3]
    rig.kernel.send(fsync_request(4))
    road.succeed()
    await settle()
    assert rig.heard() == sorted([*(out(unique, pattern(8, 0)) for unique in (1, 2, 3)), out(4)])


@pytest.mark.parametrize("within", [False, True])
async def test_what_is_left_of_a_call_is_run_by_a_task(rig: Rig, road: Road, within: bool) -> None:
    """within: it was known as the call began."""
    for unique, request, result, answer in (
        (1, read_request(1, 0, 8), b"12345678", b"12345678"),
        (2, write_request(2, 512, pattern(LARGE)), None, struct.pack("<II", LARGE, 0)),
    ):
        road.rest = (lambda found=result: gives(found)) if within else None
        heard = await rig.ask(request)
        if not within:
            assert heard == []
            road.under_way.pop().hand_over(gives(result))
            assert rig.heard() == []
            await settle()
            heard = rig.heard()
        assert heard == [out(unique, answer)]
        assert (rig.requests._pending, road.ended) == (0, [])


async def test_what_is_left_may_fail(rig: Rig, road: Road, caplog: pytest.LogCaptureFixture) -> None:
    for error, code in ((pyfuse3.FUSEError(errno.EROFS), errno.EROFS), (ValueError("unexpected"), errno.EIO)):
        await rig.ask(read_request(1, 0, 8), write_request(2, 0, pattern(512)))
        for passage in road.under_way:
            passage.hand_over(raises(error))
        road.under_way.clear()
        await settle()
        assert rig.heard() == [out(1, error=code), out(2, error=code)]
        assert (rig.requests._pending, rig.file.after) == (0, [])


async def test_a_hold_waits_for_what_is_under_way(rig: Rig, road: Road) -> None:
    await rig.ask(read_request(1, 0, 8), read_request(2, 0, 8))
    drain = Drain(rig)
    assert await rig.ask(read_request(3, 0, 8)) == []
    road.succeed(1)
    await trio.sleep(0.02)
    assert (drain.told, len(road.under_way)) == ([], 1)
    road.under_way.pop().hand_over(gives(b"12345678"))
    assert await drain.until_told()
    assert (rig.heard(), road.under_way) == ([out(1, pattern(8, 0)), out(2, b"12345678")], [])
    rig.requests.resume()
    await settle()
    assert [passage.tag for passage in road.under_way] == [3]


@pytest.mark.parametrize("ends", ["succeeds", "hands over", "fails"])
async def test_what_ends_when_the_device_is_no_longer_ours_is_not_answered(make: Make, road: Road, ends: str) -> None:
    """The descriptor may be another one's by then."""
    rig = make()
    rig.file.lane = road.lane
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.requests.run)
        await settle()
        await rig.ask(read_request(1, 0, 8), write_request(2, 0, pattern(512)))
        nursery.cancel_scope.cancel()
    rig.kernel.send(fsync_request(3))
    if ends == "succeeds":
        road.succeed()
    for passage in road.under_way:
        passage.hand_over(gives(b"12345678") if ends == "hands over" else raises(ValueError()))
    await settle()
    assert (rig.heard(), rig.file.asked) == ([], [])
    assert rig.requests._pending == 2


async def test_a_device_that_cannot_be_read_ends_the_run_and_nothing_else(make: Make, road: Road) -> None:
    """Whoever has brought an answer goes on with the others."""
    rig = make()
    rig.file.lane = road.lane
    ended: list[BaseException] = []

    async def run() -> None:
        try:
            await rig.requests.run()
        except BaseExceptionGroup as group:
            ended.extend(group.exceptions)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await settle()
        await rig.ask(read_request(1, 0, 8), read_request(2, 0, 8))
        channel = rig.requests._channel

        def take() -> None:
            raise OSError(errno.EIO, "a test")

        rig.requests._channel = SimpleNamespace(  # type: ignore[assignment]
            take=take, answer=channel.answer, gone=False, full=False
        )
        road.succeed()
        await settle()
    assert {type(error) for error in ended} == {OSError}
    assert rig.heard() == [out(1, pattern(8, 0)), out(2, pattern(8, 0))]
