"""pyfuse3 behind a socket pair: what it is sent, what comes of it, and how many requests it has."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator

import pyfuse3
import pytest
import trio
import trio.testing

from blobfuse_dysk.device.kernel.fuse import without_splicing
from blobfuse_dysk.device.worker.others import Others
from tests.unit.fusekernel import IN, INIT, out, request, settle

GETATTR, FORGET, INTERRUPT, BATCH_FORGET = 3, 2, 36, 42
OPERATIONS = pyfuse3.Operations()


class Libfuse:
    """The other end: what pyfuse3 has to read, and what it answers."""

    def __init__(self, number: int) -> None:
        self.socket = socket.socket(fileno=number)

    def read(self) -> list[bytes]:
        """All that is there."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(1 << 20))
            except BlockingIOError:
                return found

    def answer(self, *messages: bytes) -> None:
        for message in messages:
            self.socket.send(message)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Others, Libfuse]]:
    """INIT is not answered yet."""
    made: list[Libfuse] = []

    def init(operations: pyfuse3.Operations, mountpoint: str, options: set[str]) -> None:
        assert operations is OPERATIONS
        found = re.fullmatch("/dev/fd/([0-9]+)", mountpoint)
        assert found
        made.append(Libfuse(int(found[1])))

    monkeypatch.setattr(pyfuse3, "init", init)
    others = Others(OPERATIONS, INIT)
    yield others, made[0]
    others._ours.close()
    made[0].socket.close()


def relay(others: Others) -> list[bytes]:
    return list(others.answers())


async def relays(others: Others, wait: Callable[[], Awaitable[None]], answers: list[bytes]) -> None:
    """As in Requests."""
    while True:
        await wait()
        answers += others.answers()


def test_init_comes_before_all_else(ends: tuple[Others, Libfuse]) -> None:
    """It is pending as any other request, until it is answered."""
    others, libfuse = ends
    assert others.pending == 1
    others.send(request(GETATTR, 4))
    assert relay(others) == []
    assert libfuse.read() == [INIT, request(GETATTR, 4)]
    assert others.pending == 2
    libfuse.answer(out(2, b"init"))
    assert relay(others) == [out(2, b"init")]
    assert others.pending == 1


def test_each_answer_is_counted_and_no_notice_is(ends: tuple[Others, Libfuse]) -> None:
    others, libfuse = ends
    libfuse.answer(out(2))
    relay(others)
    top = 1 << 63 | 4
    sent = [request(GETATTR, unique, bytes(16)) for unique in (4, 6, top)]
    for each in sent:
        others.send(each)
    assert (relay(others), others.pending) == ([], 3)
    assert libfuse.read() == [INIT, *sent]
    libfuse.answer(out(6, b"x" * 200_000))
    assert (relay(others), others.pending) == ([out(6, b"x" * 200_000)], 2)
    libfuse.answer(out(0, b"notice"), out(top), out(0, b"another"), out(4, error=errno.ENOENT))
    found = [out(0, b"notice"), out(top), out(0, b"another"), out(4, error=errno.ENOENT)]
    assert (relay(others), others.pending) == (found, 0)
    assert relay(others) == []


def test_what_is_never_answered_is_not_counted(ends: tuple[Others, Libfuse]) -> None:
    others, libfuse = ends
    forgets = [request(FORGET, 4, bytes(8)), request(BATCH_FORGET, 6, bytes(24))]
    for each in forgets:
        others.send(each)
    assert (relay(others), others.pending) == ([], 1)
    assert libfuse.read() == [INIT, *forgets]


def test_nobody_gives_up(ends: tuple[Others, Libfuse]) -> None:
    others, libfuse = ends
    others.send(request(GETATTR, 4))
    others.send(request(INTERRUPT, 5, struct.pack("<Q", 4)))
    others.send(request(GETATTR, 6))
    assert (relay(others), others.pending) == ([], 3)
    assert libfuse.read() == [INIT, request(GETATTR, 4), request(GETATTR, 6)]


def test_a_request_that_is_too_large_is_refused(ends: tuple[Others, Libfuse]) -> None:
    """And those behind it go on."""
    others, libfuse = ends
    for each in (request(GETATTR, 4), request(21, 1 << 63 | 6, bytes(4 << 20)), request(GETATTR, 8)):
        others.send(each)
    assert others.pending == 4
    assert relay(others) == [out(1 << 63 | 6, error=errno.E2BIG)]
    assert others.pending == 3
    assert libfuse.read() == [INIT, request(GETATTR, 4), request(GETATTR, 8)]


async def test_what_does_not_fit_goes_on_when_it_does(ends: tuple[Others, Libfuse]) -> None:
    """In order, nothing twice, nothing lost; and no answer is forgotten over it."""
    others, libfuse = ends
    sent = [request(GETATTR, 2 * number + 4, bytes(1000)) for number in range(1000)]
    for each in sent:
        others.send(each)
        assert relay(others) == []
    assert others.pending == 1001
    assert 0 < len(others._unsent) < 1000
    found: list[bytes] = []
    answers: list[bytes] = []

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for wait in (others.answered, others.sendable):
                nursery.start_soon(relays, others, wait, answers)
            while len(found) <= 1000:
                await settle()
                some = libfuse.read()
                found += some
                libfuse.answer(*(out(struct.unpack_from("<Q", each, 8)[0]) for each in some if each != INIT))
            libfuse.answer(out(2))
            await settle()
            nursery.cancel_scope.cancel()
    assert found == [INIT, *sent]
    assert answers == [*(out(2 * number + 4) for number in range(1000)), out(2)]
    assert (others.pending, len(others._unsent)) == (0, 0)


async def test_what_did_not_fit_goes_on_although_nothing_is_answered(ends: tuple[Others, Libfuse]) -> None:
    others, libfuse = ends
    libfuse.answer(out(2))
    relay(others)

    async with trio.open_nursery() as nursery:
        for wait in (others.answered, others.sendable):
            nursery.start_soon(relays, others, wait, [])
        await settle()
        while not others._unsent:
            others.send(request(FORGET, 4, bytes(8)))
            relay(others)
        others.send(request(GETATTR, 6))
        relay(others)
        found: list[bytes] = []
        for _ in range(5):
            found += libfuse.read()
            await settle()
        assert found[-1] == request(GETATTR, 6)
        nursery.cancel_scope.cancel()


async def test_who_waits_is_woken_by_an_answer_only(ends: tuple[Others, Libfuse]) -> None:
    others, libfuse = ends
    woken = trio.Event()

    async def waits() -> None:
        await others.answered()
        woken.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits)
            await settle()
            assert not woken.is_set()
            libfuse.answer(out(2))
            await woken.wait()
    assert relay(others) == [out(2)]


def test_an_error_of_the_socket_is_raised(ends: tuple[Others, Libfuse]) -> None:
    others, libfuse = ends
    libfuse.socket.close()
    others.send(request(GETATTR, 4))
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        relay(others)


def test_the_descriptors_are_not_inherited_and_do_not_block(ends: tuple[Others, Libfuse]) -> None:
    for end in (ends[0]._ours, ends[1].socket):
        assert not os.get_inheritable(end.fileno())
        assert not os.get_blocking(end.fileno())


def init_of(flags: int, length: int = 64) -> bytes:
    return request(26, 2, struct.pack("<IIIII", 7, 39, 1 << 17, flags, 0xFFFFFFFF) + bytes(44))[: IN.size + length]


@pytest.mark.parametrize("length", [16, 17, 64])
@pytest.mark.parametrize("flags", [0xFFFFFFFF, 0, 1 << 7, 1 << 8, 1 << 9, 0x73FFFFFB])
def test_no_splicing_and_all_else_as_it_is(flags: int, length: int) -> None:
    """Source: linux/fuse.h, FUSE_SPLICE_WRITE, FUSE_SPLICE_MOVE, FUSE_SPLICE_READ."""
    assert without_splicing(init_of(flags, length)) == init_of(flags & ~0b11_1000_0000, length)


@pytest.mark.parametrize("length", [0, 8, 12, 15])
def test_an_init_without_flags_stays_what_it_is(length: int) -> None:
    assert without_splicing(init_of(0xFFFFFFFF, length)) == init_of(0xFFFFFFFF, length)


def test_pyfuse3_is_sent_an_init_without_splicing(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    monkeypatch.setattr(pyfuse3, "init", lambda _, mountpoint, __: numbers.append(int(mountpoint.rpartition("/")[2])))
    others = Others(OPERATIONS, init_of(0xFFFFFFFF))
    with others._ours, socket.socket(fileno=numbers[0]) as theirs:
        assert theirs.recv(4096) == init_of(0xFFFFFFFF & ~0b11_1000_0000)
