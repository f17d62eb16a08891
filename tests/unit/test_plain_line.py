"""native/exchange.c and tls.c while Python code that runs in the middle does what it likes."""

from __future__ import annotations

import gc
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from trio.lowlevel import Task

from blobfuse_dysk.azure import plain
from tests.conftest import need
from tests.unit.plain_answers import GOOD, PAGE, read

TASK = cast(Task, SimpleNamespace())
START = GOOD[read].find(b"\r\n\r\n") + 4
Doing = Callable[["Side"], object]


class Side:
    """In place of an ssl.SSLObject that encrypts nothing, and calls `doing` whenever it is to read or write."""

    def __init__(self, ready: Any, doing: Doing | None = None) -> None:
        self.doing = doing
        self.ours, self.theirs = socket.socketpair()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        assert plain.NATIVE is not None
        self.ready = ready
        self.line = plain.NATIVE.Line(ready, self.ours.fileno(), self, self.incoming, self.outgoing, 15_000)

    def read(self, size: int) -> object:
        return self._did(lambda: self.incoming.read(size))

    def write(self, data: bytes) -> object:
        return self._did(lambda: self.outgoing.write(data))

    def pending(self) -> object:
        return self._did(lambda: 0)

    def _did(self, otherwise: Callable[[], object]) -> object:
        found = self.doing(self) if self.doing else None
        return otherwise() if found is None else found

    def ask(self) -> int:
        doing, self.doing = self.doing, None
        sent: int = self.line.start(b"GET", None, 512, 512, TASK)
        self.doing = doing
        return sent

    def close(self) -> None:
        if self.line is not None:
            self.line.close()
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def ready() -> object:
    need(plain.NATIVE, "the module in C is not built")
    assert plain.NATIVE is not None
    return plain.NATIVE.Ready()


@pytest.fixture
def side(ready: object) -> Iterator[Side]:
    made = Side(ready)
    yield made
    made.close()


def raising(error: BaseException) -> Doing:
    def doing(_: Side) -> None:
        raise error

    return doing


def test_an_exchange(side: Side) -> None:
    assert side.ask() == 3
    assert side.theirs.recv(100) == b"GET"
    for piece in (GOOD[read][:START], GOOD[read][START : START + 100]):
        side.theirs.send(piece)
        assert side.ready.collect() == []
    side.theirs.send(GOOD[read][START + 100 :])
    assert side.ready.collect() == [TASK]
    assert side.line.take() == PAGE
    assert side.line.quiet() is True
    assert side.ready.collect() == []


@pytest.mark.parametrize("brought", [GOOD[read], GOOD[read][:START], GOOD[read][: START + 50]])
@pytest.mark.parametrize("first", [True, False])
def test_a_line_that_is_closed_as_it_receives(side: Side, brought: bytes, first: bool) -> None:
    assert side.ask() == 3
    if not first:
        side.theirs.send(GOOD[read][:START])
        assert side.ready.collect() == []
        brought = GOOD[read][START:]
    side.doing = lambda _: side.line.close()
    side.theirs.send(brought)
    assert side.ready.collect() == []
    with pytest.raises(RuntimeError):
        side.line.take()
    with pytest.raises(RuntimeError):
        side.line.start(b"GET", None, 512, 512, TASK)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_a_line_that_is_stopped_as_it_receives(side: Side, first: bool, fails: bool) -> None:
    """Whoever stops it has the task; nobody else gets it. It starts nothing new in there."""
    assert side.ask() == 3
    if not first:
        side.theirs.send(GOOD[read][:START])
        assert side.ready.collect() == []
    stopped: list[object] = []

    def doing(_: Side) -> None:
        stopped.append(side.line.stop())
        gc.collect()
        with pytest.raises(RuntimeError):
            side.line.start(b"GET", None, 512, 512, TASK)
        if fails:
            raise ValueError

    side.doing = doing
    side.theirs.send(GOOD[read][0 if first else START :])
    assert side.ready.collect() == []
    assert stopped == [TASK]
    with pytest.raises(RuntimeError):
        side.line.take()


def test_a_line_that_nobody_keeps_is_there_until_it_has_received(side: Side) -> None:
    assert side.ask() == 3

    def doing(_: Side) -> None:
        side.line.close()
        del side.line
        side.line = None
        gc.collect()

    side.doing = doing
    side.theirs.send(GOOD[read])
    assert side.ready.collect() == []


def test_what_is_collected_in_the_middle_of_collecting(side: Side) -> None:
    """The rest comes just then: it is not read before what is being read."""
    assert side.ask() == 3
    inner: list[object] = []

    def doing(_: Side) -> None:
        side.doing = None
        side.theirs.send(GOOD[read][START:])
        inner.append(side.ready.collect())
        inner.append(side.line.quiet())
        with pytest.raises(RuntimeError):
            side.line.take()

    side.doing = doing
    side.theirs.send(GOOD[read][:START])
    assert side.ready.collect() == [TASK]
    assert inner == [[], False]
    assert side.line.take() == PAGE


def ending(other: Side, way: str, _: Side) -> None:
    getattr(other.line, way)()


def test_another_line_that_is_closed_or_stopped_meanwhile(ready: object) -> None:
    for way in ("close", "stop"):
        sides = [Side(ready), Side(ready)]
        for each, other in zip(sides, sides[::-1], strict=True):
            assert each.ask() == 3
            each.doing = partial(ending, other, way)
            each.theirs.send(GOOD[read])
        assert sides[0].ready.collect() == [TASK]
        for each in sides:
            each.close()


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ValueError("odd"), ssl.SSLError(1, "bad"), ssl.SSLWantWriteError()]
)
def test_whatever_is_raised_is_for_who_waits(side: Side, error: BaseException) -> None:
    assert side.ask() == 3
    side.doing = raising(error)
    side.theirs.send(GOOD[read])
    assert side.ready.collect() == [TASK]
    with pytest.raises(type(error)) as caught:
        side.line.take()
    assert caught.value is error
    assert side.line.heard() is False


@pytest.mark.parametrize("found", [bytes(513), "text", 5, bytearray(3), bytes(20_000)])
def test_what_no_ssl_object_reads(side: Side, found: object) -> None:
    """More than was asked for would be written behind the body."""
    assert side.ask() == 3
    side.theirs.send(GOOD[read][:START])
    assert side.ready.collect() == []
    side.doing = lambda _: found
    side.theirs.send(b"x")
    assert side.ready.collect() == [TASK]
    with pytest.raises(ValueError, match="not asked for"):
        side.line.take()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("odd"), ssl.SSLError(1, "bad")])
def test_what_is_raised_as_a_request_is_sent(side: Side, error: BaseException) -> None:
    """An OSError is met again by TlsConnection."""
    side.doing = raising(error)
    if isinstance(error, OSError):
        assert side.line.start(b"GET", None, 512, 512, TASK) == 0
    else:
        with pytest.raises(type(error)):
            side.line.start(b"GET", None, 512, 512, TASK)
    with pytest.raises(type(error)):
        side.line.quiet()
    side.doing = None
    assert side.ask() == 3


@pytest.mark.parametrize("found", [2, -1, "text", 1 << 70])
def test_what_no_ssl_object_writes(side: Side, found: object) -> None:
    side.doing = lambda _: found
    with pytest.raises((ValueError, TypeError, OverflowError)):
        side.line.start(b"GET", None, 512, 512, TASK)


def test_a_line_that_is_closed_as_it_sends(side: Side) -> None:
    side.doing = lambda _: side.line.close()
    with pytest.raises(RuntimeError):
        side.line.start(b"GET", None, 512, 512, TASK)


@pytest.mark.parametrize("sends", [True, False])
def test_a_descriptor_that_is_anothers_meanwhile_is_left_alone(side: Side, sends: bool) -> None:
    """Closed, its number is the next socket's, whose bytes are nobody else's."""
    fd = side.ours.fileno()
    pair: list[socket.socket] = []

    def doing(_: Side) -> None:
        side.line.close()
        side.ours.close()
        pair.extend(socket.socketpair())
        pair[1].send(b"theirs")
        if not sends:
            raise ssl.SSLWantReadError

    if not sends:
        assert side.ask() == 3
        side.theirs.send(GOOD[read][:100])
    side.doing = doing
    if sends:
        with pytest.raises(RuntimeError, match="closed"):
            side.line.start(b"GET", None, 512, 512, TASK)
    else:
        assert side.ready.collect() == []
    with pair[0], pair[1]:
        assert pair[0].fileno() == fd
        assert pair[0].recv(100) == b"theirs"
        pair[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            pair[1].recv(100)


def test_a_line_that_is_used_as_it_sends(side: Side) -> None:
    def doing(_: Side) -> None:
        side.doing = None
        assert side.line.quiet() is False
        assert side.ready.collect() == []
        with pytest.raises(RuntimeError):
            side.line.start(b"GET", None, 512, 512, TASK)

    side.doing = doing
    assert side.line.start(b"GET", None, 512, 512, TASK) == 3
    assert side.theirs.recv(100) == b"GET"


def test_it_is_tls_with_all_of_it_or_none(ready: Any) -> None:
    assert plain.NATIVE is not None
    with socket.socket() as sock:
        for rest in ((object(),), (object(), ssl.MemoryBIO()), (object(), ssl.MemoryBIO(), ssl.MemoryBIO())):
            with pytest.raises(TypeError):
                plain.NATIVE.Line(ready, sock.fileno(), *rest)
