"""The kernel's requests: each is taken, served and answered once, whoever waits for what; holding and the end."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from blobfuse_dysk.device.worker import requests as requests_module
from blobfuse_dysk.device.worker.requests import MOST_IN_A_ROW
from tests.unit.fusefile import at_once, pattern
from tests.unit.fusekernel import (
    LARGE,
    Drain,
    Rig,
    StandIn,
    fsync_request,
    out,
    read_request,
    request,
    settle,
    write_request,
)

GETATTR = request(3, 4, bytes(16))


Make = Callable[..., Rig]


@pytest.fixture
async def make(way: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    rigs: list[Rig] = []
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (kernel, device):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    kernel.setblocking(False)
    monkeypatch.setattr(requests_module, "Others", StandIn)
    monkeypatch.setattr(pyfuse3, "main", trio.sleep_forever)
    monkeypatch.setattr(pyfuse3, "terminate", lambda: rigs[0].terminated.append(True))
    async with trio.open_nursery() as nursery:

        def make(**how: Any) -> Rig:
            rigs.append(Rig(nursery, kernel, device, **how))
            return rigs[-1]

        with kernel, device:
            yield make
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await settle()


@pytest.fixture
async def rig(make: Make) -> Rig:
    rig = make()
    await rig.start()
    return rig


async def test_what_is_asked_is_done_and_answered(rig: Rig) -> None:
    top = 1 << 63 | 2
    for unique in (2, top):
        assert await rig.ask(read_request(unique, 1024, 512)) == [out(unique, pattern(512, 24))]
        for size in (512, LARGE, 1 << 20):
            answer = await rig.ask(write_request(unique, 4096, pattern(size)))
            assert answer == [out(unique, struct.pack("<II", size, 0))]
            assert rig.file.asked[-1] == ("write", 2, 4096, pattern(size))
        assert await rig.ask(fsync_request(unique)) == [out(unique)]
    assert rig.file.asked[0] == ("read", 2, 1024, 512)
    assert rig.file.asked[-1] == ("fsync", 2, False)
    assert rig.requests._pending == 0


async def test_all_but_the_first_request_is_served_detached(rig: Rig) -> None:
    for unique in range(5):
        assert await rig.ask(read_request(unique, 0, 512)) == [out(unique, pattern(512, 0))]
    assert rig.file.detached == [False, True, True, True, True]
    assert len(rig.requests._idle) == rig.requests._tasks == 1


@pytest.mark.parametrize("burst", [1, 3, MOST_IN_A_ROW, 200])
@pytest.mark.parametrize("waits", [False, True])
async def test_each_request_is_taken_once(rig: Rig, burst: int, waits: bool) -> None:
    if waits:
        rig.file.answer = rig.service.answer
    for round_ in range(4):
        uniques = range(round_ * burst, (round_ + 1) * burst)
        heard = await rig.ask(*[read_request(unique, unique, 8) for unique in uniques])
        while waits and rig.service.waiting:
            assert rig.requests._pending == burst - len(heard)
            rig.service.go(7)
            await settle()
            heard += rig.heard()
        assert sorted(heard) == sorted(out(unique, pattern(8, unique % 100)) for unique in uniques)
    assert len(rig.file.asked) == 4 * burst
    assert rig.requests._pending == 0
    assert len(rig.requests._idle) == rig.requests._tasks <= (burst if waits else 2 * MOST_IN_A_ROW)


async def test_one_that_never_is_answered_does_not_hold_back_the_others(rig: Rig) -> None:
    for unique in range(8):
        rig.file.answer = rig.service.answer
        assert await rig.ask(read_request(100 + unique, 0, 8)) == []
        rig.file.answer = at_once
        assert await rig.ask(fsync_request(unique)) == [out(unique)]
    assert rig.requests._pending == 8


async def test_so_many_tasks_and_no_more(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they do not take stays with the kernel, until one of them is free."""
    monkeypatch.setattr(requests_module, "MOST_TASKS", 5)
    rig = make()
    await rig.start()
    rig.file.answer = rig.service.answer
    for _ in range(2):
        rig.file.asked.clear()
        assert await rig.ask(*[fsync_request(unique) for unique in range(12)]) == []
        assert (len(rig.file.asked), rig.requests._tasks, len(rig.requests._idle)) == (5, 5, 0)
        heard: list[bytes] = []
        for done in range(1, 13):
            rig.service.go(1)
            await settle()
            heard += rig.heard()
            assert len(heard) == done
            assert len(rig.file.asked) == min(12, 5 + done)
        assert sorted(heard) == sorted(out(unique) for unique in range(12))
        assert (rig.requests._tasks, len(rig.requests._idle)) == (5, 5)


async def test_requests_answered_at_once_leave_time_for_others(rig: Rig) -> None:
    async def one_more() -> None:
        rig.kernel.send(fsync_request(1))
        rig.heard()
        assert len(rig.file.asked) < 100 * MOST_IN_A_ROW

    rig.file.answer = one_more
    rig.kernel.send(fsync_request(1))
    with trio.fail_after(10):
        while not rig.file.asked:
            await trio.lowlevel.checkpoint()
        before, most = len(rig.file.asked), 0
        for _ in range(20):
            await trio.lowlevel.checkpoint()
            most, before = max(most, len(rig.file.asked) - before), len(rig.file.asked)
    rig.file.answer = at_once
    assert 0 < most <= 2 * MOST_IN_A_ROW  # by a task that trio runs, and by the taker


async def test_the_data_of_a_write_is_its_own_until_it_is_answered(rig: Rig) -> None:
    rig.file.answer = rig.service.answer
    writes = [write_request(seed, seed * LARGE, pattern(LARGE, seed)) for seed in range(8)]
    await rig.ask(*writes, read_request(99, 0, 8))
    assert {bytes(data) for data in rig.file.data} == {pattern(LARGE, seed) for seed in range(8)}
    rig.service.go()
    await settle()
    assert len(rig.heard()) == 9
    for data in rig.file.data:
        with pytest.raises(ValueError, match="released"):
            len(data)
    rig.requests.trim()


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("error", "code"),
    [(pyfuse3.FUSEError(errno.EROFS), errno.EROFS), (ValueError("unexpected"), errno.EIO)],
    ids=["FUSEError", "unexpected"],
)
async def test_errors_become_errnos(
    rig: Rig, error: Exception, code: int, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> None:
        if waits:
            await rig.service.answer()
        raise error

    for _ in range(2):  # attached, then detached
        rig.file.answer = fails
        heard = await rig.ask(read_request(1, 0, 512), write_request(2, 0, b"x" * 512), fsync_request(3))
        rig.service.go()
        await settle()
        heard = sorted(heard + rig.heard())
        assert heard == sorted(out(unique, error=code) for unique in (1, 2, 3))
        rig.file.answer = at_once
        assert await rig.ask(fsync_request(4)) == [out(4)]
    assert rig.requests._pending == 0
    logged = [record for record in caplog.records if record.exc_info and record.exc_info[1] is error]
    assert len(logged) == (6 if code == errno.EIO else 0)


async def test_the_kernel_takes_no_answer(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody who goes on would do no harm: the kernel's request ends with the connection."""
    rig.file.answer = rig.service.answer
    await rig.ask(fsync_request(1))
    rig.requests._taking.cancel()
    rig.kernel.close()
    rig.service.go()
    with trio.fail_after(10):
        await rig.ended.wait()
    assert "the kernel takes no answer: " in caplog.records[-1].getMessage()
    assert rig.requests._pending == 0


async def test_all_else_is_for_pyfuse3(rig: Rig) -> None:
    """In order among themselves; its answers, and what nobody asked for, are written whenever they come."""
    rig.file.answer = rig.service.answer
    others = [request(opcode, 50 + opcode, b"name\0") for opcode in (1, 3, 14, 18)]
    assert await rig.ask(others[0], fsync_request(1), others[1], others[2], fsync_request(2), others[3]) == []
    assert rig.others.sent == others
    assert len(rig.file.asked) == 2
    assert rig.requests._pending == 6
    rig.others.ready = [out(7, b"attributes"), out(0, b"notice")]
    rig.others.something.set()
    await settle()
    assert rig.heard() == sorted([out(7, b"attributes"), out(0, b"notice")])
    rig.others.ready = [out(9, b"there already")]
    assert await rig.ask(GETATTR) == [out(9, b"there already")]


async def test_what_others_answer_during_a_request_is_written_in_the_same_step(rig: Rig) -> None:
    async def answered() -> None:
        rig.others.ready = [out(9)]
        rig.kernel.send(GETATTR)

    rig.file.answer = answered
    assert await rig.ask(fsync_request(1)) == sorted([out(1), out(9)])
    assert rig.requests._pending == 0


@pytest.mark.parametrize("resend", [False, True])
async def test_what_a_predecessor_left_is_asked_for_before_anything_is_read(make: Make, resend: bool) -> None:
    rig = make(resend=resend)
    rig.kernel.send(fsync_request(1))
    rig.nursery.start_soon(rig.run)
    first: list[bytes] = []
    with trio.fail_after(10):
        while not first:
            await trio.lowlevel.checkpoint()
            first = rig.heard()
            assert first or not rig.file.asked or not resend
    await settle()
    notice = struct.pack("<IiQ", 16, 7, 0)
    assert (first + rig.heard()) == ([notice] if resend else []) + [out(1)]


async def test_the_kernel_is_told_of_another_size(rig: Rig) -> None:
    rig.requests.tell_size()
    assert rig.heard() == [struct.pack("<IiQQqq", 40, 2, 0, 2, -1, 0)]


async def test_cancelled_requests_are_not_answered(make: Make) -> None:
    """They stay with the kernel, which sends them to the next worker."""
    rig = make()
    rig.file.answer = rig.service.answer
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.requests.run)
            await settle()
            for unique in (1, 2, 3):
                await rig.ask(fsync_request(unique))
            rig.service.go(2)  # these two are idle, that one waits detached
            await settle()
            assert rig.heard() == [out(1), out(2)]
            await rig.ask(read_request(4, 0, 8))
            scope.cancel()
    assert rig.heard() == []
    assert rig.requests._pending == 2
    assert rig.requests._idle == rig.service.waiting == []


@pytest.mark.parametrize("detached", [False, True])
async def test_drained_when_all_that_was_taken_is_answered(rig: Rig, detached: bool) -> None:
    """pyfuse3's requests, too. Who has answered does not take the next."""
    if detached:
        await rig.ask(fsync_request(1))
    rig.file.answer = rig.service.answer
    await rig.ask(fsync_request(1), GETATTR)
    rig.file.asked.clear()
    drain = Drain(rig)
    assert await rig.ask(fsync_request(2), GETATTR) == []
    rig.service.go()
    await trio.sleep(0.02)
    assert (drain.told, rig.heard()[-1:], len(rig.others.sent)) == ([], [out(1)], 1)
    rig.others.ready = [out(3)]
    rig.others.something.set()
    assert await drain.until_told()
    await settle()
    assert (rig.file.asked, rig.heard(), len(rig.others.sent)) == ([], [out(3)], 1)
    rig.file.answer = at_once
    rig.requests.resume()
    await settle()
    assert (rig.heard(), len(rig.others.sent)) == ([out(2)], 2)


async def test_not_drained_in_time(rig: Rig) -> None:
    rig.file.answer = rig.service.answer
    await rig.ask(fsync_request(1))
    began = trio.current_time()
    drain = Drain(rig, 0.05)
    rig.kernel.send(fsync_request(2))
    assert not await drain.until_told()
    assert trio.current_time() - began >= 0.05
    rig.service.go()
    await settle()
    rig.service.go()
    await settle()
    assert rig.heard() == [out(1), out(2)]


async def test_a_hold_that_follows_another_ends_that(rig: Rig) -> None:
    rig.file.answer = rig.service.answer
    await rig.ask(fsync_request(1))
    first = Drain(rig)
    assert await rig.ask(fsync_request(2)) == []  # the taker waits for the end of the first hold
    second = Drain(rig)
    assert not await first.until_told()
    rig.service.go()
    assert await second.until_told()
    await settle()
    assert (rig.heard(), len(rig.file.asked)) == ([out(1)], 1)
    rig.file.answer = at_once
    rig.requests.resume()
    await settle()
    assert rig.heard() == [out(2)]


async def test_a_hold_that_ends_at_once(rig: Rig) -> None:
    drain = Drain(rig)
    rig.requests.resume()
    assert not await drain.until_told()
    assert await rig.ask(fsync_request(1)) == [out(1)]


async def test_no_request_is_taken_from_the_moment_of_the_hold(rig: Rig) -> None:
    """Not even by the taker that was woken for it before."""
    for _ in range(2):
        rig.kernel.send(fsync_request(1))
        drain = Drain(rig)
        assert await drain.until_told()
        await settle()
        assert rig.heard() == []
        rig.requests.resume()
        await settle()
        assert rig.heard() == [out(1)]


@pytest.mark.parametrize("held", [False, True])
async def test_closed_when_what_was_taken_is_answered(rig: Rig, held: bool) -> None:
    rig.file.answer = rig.service.answer
    await rig.ask(fsync_request(1), fsync_request(2), GETATTR)
    drain = Drain(rig) if held else None
    rig.requests.close()
    assert drain is None or not await drain.until_told()
    assert await rig.ask(fsync_request(3)) == []
    for _ in range(2):
        assert not rig.ended.is_set()
        rig.service.go(1)
        await trio.sleep(0.02)
    assert (rig.heard(), rig.ended.is_set(), rig.terminated) == ([out(1), out(2)], False, [])
    rig.others.ready = [out(9)]
    rig.others.something.set()
    with trio.fail_after(10):
        await rig.ended.wait()
    assert (rig.heard(), rig.terminated, len(rig.file.asked)) == ([out(9)], [True], 2)


async def test_closed_while_drained_or_before_it_began(make: Make) -> None:
    rig = make()
    rig.kernel.send(fsync_request(1))
    rig.requests.hold()
    rig.requests.close()
    rig.nursery.start_soon(rig.run)
    with trio.fail_after(10):
        await rig.ended.wait()
    assert (rig.file.asked, rig.heard()) == ([], [])


async def test_the_connection_ends(rig: Rig) -> None:
    """Nobody waits for an answer any more."""
    rig.file.answer = rig.service.answer
    await rig.ask(fsync_request(1), GETATTR)
    rig.kernel.close()
    with trio.fail_after(10):
        await rig.ended.wait()
    assert (rig.terminated, rig.service.waiting) == ([True], [])
