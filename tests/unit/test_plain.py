"""plain.py and native/exchange.c: whatever is answered, the outcome is that of the way of Python alone."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from blobfuse_dysk.azure import plain
from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.connection import Connection
from blobfuse_dysk.azure.wire import Reply
from blobfuse_dysk.errors import DyskError, TransportError
from blobfuse_dysk.testing.detached import in_a_detached_task
from tests.conftest import need
from tests.unit.plain_answers import CASES, GOOD, ID, IN_LANE, LEASE, PART, Call, T, raw, read, write
from tests.unit.scripted import Peer, Script, client_to
from tests.unit.trusted import Trust


@dataclass
class Seen:
    """What a client made of the answers that it got, and by which way.

    quick: of each exchange that began in C, whether it ended there.
    """

    outcomes: list[object] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    requests: list[tuple[int, bytes]] = field(default_factory=list)
    quick: list[bool] = field(default_factory=list)
    free: int = 0

    def same(self) -> tuple[object, ...]:
        """What must be the same on both ways."""
        return self.outcomes, self.connections, self.requests, self.free


async def attempt(call: Call, client: BlobClient) -> object:
    """What a call returns or raises, in a form that two servers give alike."""
    try:
        found = await call(client)
    except DyskError as error:
        text = re.sub(r":\d{4,5}\b", "", str(error))
        return type(error), text, {name: getattr(error, name, None) for name in ("sent", "stale", "status", "code")}
    return None if found is None else bytes(found)


def answering(seen: Seen, answers: list[list[bytes]], ends: bool) -> Script:
    """Each request, on whichever connection, is answered by the next of these, in pieces; then by the last, for ever.

    ends: after the second one the connection is closed.
    """
    left = list(answers)

    async def script(peer: Peer) -> None:
        while True:
            head = await peer.request()
            seen.requests.append((peer.number, re.sub(rb"Host:[^\r]*|x-ms-date:[^\r]*", b"", head)))
            last = len(left) == len(answers) - 1
            for piece in left.pop(0) if len(left) > 1 else left[0]:
                await peer.send(piece)
                await trio.testing.wait_all_tasks_blocked()
            if ends and last:
                return

    return script


async def ask_thrice(
    native: bool,
    call: Call,
    pieces: list[bytes],
    ends: bool,
    monkeypatch: pytest.MonkeyPatch,
    trust: Trust | None,
    *,
    detached: bool = False,
    in_lane: bool = False,
) -> Seen:
    """Ask a server that answers well, then with these pieces, then well: the first time is never quick.

    detached: by a task that is detached from trio's scheduler. in_lane: by none (`begin_get`, `begin_put`).
    """
    seen = Seen()
    exchange, finish = plain.PlainConnection.exchange_plain, Connection._finish
    begin = plain.PlainConnection.begin_plain

    def beginning(self: plain.PlainConnection, *rest: object) -> bool:
        seen.quick.append(True)
        return begin(self, *rest)  # type: ignore[arg-type]

    async def counting(self: plain.PlainConnection, *rest: object) -> bytes | Reply:
        seen.quick.append(True)
        return await exchange(self, *rest)  # type: ignore[arg-type]

    async def finishing(self: Connection, *rest: object) -> Reply:
        if rest[3] is not None:  # bytes that were sent before
            seen.quick[-1] = False
        return await finish(self, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(plain.PlainConnection, "exchange_plain", counting)
        patch.setattr(plain.PlainConnection, "begin_plain", beginning)
        patch.setattr(Connection, "_finish", finishing)
        patch.setenv("DYSK_NATIVE", "yes" if native else "no")
        good = [GOOD[call]]
        script = answering(seen, [good, pieces, good], ends)
        async with client_to(script, trust=trust) as client, trio.open_nursery() as nursery:
            for _ in range(3):
                made = partial(attempt, IN_LANE[call] if in_lane else call, client)
                seen.outcomes.append(await (in_a_detached_task(nursery, made) if detached else made()))
                seen.connections.append(client._pool.connections)
            seen.free = client._pool._free
    return seen


def cut(data: bytes) -> list[list[bytes]]:
    """The ways in which an answer may come in pieces."""
    body = data.find(b"\r\n\r\n") + 4
    return [
        [data],
        [data[:40], data[40:]],
        [data[:body], data[body:]],
        [data[: body + 100], data[body + 100 : body + 200], data[body + 200 :]],
        [data[: body - 1], data[body - 1 :]],
    ]


@pytest.fixture(autouse=True)
def _native() -> None:
    need(plain.NATIVE, "the module in C is not built")


@pytest.mark.parametrize(("call", "data", "is_plain"), CASES)
async def test_the_outcome_is_the_same_on_both_ways(
    call: Call,
    data: bytes,
    is_plain: bool,
    trust: Trust | None,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    """And it is the plain answer alone that C takes, if its head came in one piece."""
    for number, pieces in enumerate(cut(data)):
        for ends in (False, True)[: 1 if number else 2]:
            ours = await ask_thrice(True, call, [piece for piece in pieces if piece], ends, monkeypatch, trust)
            pure = await ask_thrice(False, call, [piece for piece in pieces if piece], ends, monkeypatch, trust)
            loose = await ask_thrice(True, call, list(filter(None, pieces)), ends, monkeypatch, trust, detached=True)
            lane = await ask_thrice(True, call, list(filter(None, pieces)), ends, monkeypatch, trust, in_lane=True)
            assert ours.same() == loose.same() == lane.same() == pure.same()
            assert loose.quick == lane.quick == ours.quick
            assert pure.quick == []
            if is_plain or number == 0:  # surplus that comes later is found by the next request, on both ways
                assert ours.quick[:1] == [is_plain and number not in (1, 4)]


@pytest.mark.parametrize("length", range(0, len(GOOD[read]), 13))
async def test_an_answer_that_is_cut_is_the_same_on_both_ways(
    length: int, trust: Trust | None, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    for call in (read, write):
        for ends in (False, True):
            pieces = [GOOD[call][:length]] if length else []
            ours = await ask_thrice(True, call, pieces, ends, monkeypatch, trust)
            loose = await ask_thrice(True, call, pieces, ends, monkeypatch, trust, detached=True)
            lane = await ask_thrice(True, call, pieces, ends, monkeypatch, trust, in_lane=True)
            pure = await ask_thrice(False, call, pieces, ends, monkeypatch, trust)
            assert ours.same() == loose.same() == lane.same() == pure.same()


@pytest.mark.parametrize("call", [read, write])
@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 20", GOOD[read][:-1]])
async def test_a_reset_is_the_same_on_both_ways(
    call: Call, begun: bytes, trust: Trust | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for way, made in (("yes", call), ("no", call), ("yes", IN_LANE[call])):
        monkeypatch.setenv("DYSK_NATIVE", way)

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(GOOD[call])
            await peer.request()
            await peer.send(begun)
            await trio.testing.wait_all_tasks_blocked(0.02)
            await peer.reset()

        async with client_to(script, trust=trust) as client:
            await call(client)
            found.append((await attempt(made, client), client._pool.connections))
    assert found[0] == found[1] == found[2]
    assert found[0][1] == 0


async def waiting(client: BlobClient, call: Call, scope: trio.CancelScope, ended: list[object]) -> None:
    """A call that may be cancelled; what became of it is in `ended`."""
    with scope:
        ended.append(await attempt(call, client))


@pytest.mark.parametrize("call", [read, write])
@pytest.mark.parametrize("begun", [0, 50, -1])
async def test_a_request_that_was_cancelled_leaves_no_connection_for_the_next(
    call: Call, begun: int, trust: Trust | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The late answer is nobody's."""
    arrived = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(GOOD[call])
        if peer.number == 0:
            await peer.request()
            await peer.send(GOOD[call][:begun])  # nothing, a part, all but a byte
            arrived.set()
            await trio.sleep_forever()
        await peer.request()
        await peer.send(GOOD[call])

    monkeypatch.delenv("DYSK_NATIVE", raising=False)
    async with client_to(script, trust=trust) as client, trio.open_nursery() as nursery:
        await call(client)
        scope, ended = trio.CancelScope(), list[object]()
        nursery.start_soon(waiting, client, call, scope, ended)
        await arrived.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert client._pool.connections == 1
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (ended, client._pool.connections) == ([], 0)
        await call(client)
        await call(client)
        assert client._pool._free == 256


async def test_an_answer_that_comes_as_the_request_is_cancelled_wakes_nobody_twice() -> None:
    """trio runs whoever is due in any order: the pump may find the answer before the cancelled task has closed."""
    pump = plain.Pump()
    for _ in range(40):
        ours, theirs = socket.socketpair()
        with theirs, ours:
            ours.setblocking(False)
            connection = pump.connection(ours)
            assert isinstance(connection, plain.PlainConnection)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.exchange_plain, b"GET", None, 512, 512, bytearray(4096))
                await trio.testing.wait_all_tasks_blocked()
                theirs.send(GOOD[read])
                nursery.cancel_scope.cancel()
            connection.close()
    pump.close()


@pytest.mark.parametrize("made", [read, IN_LANE[read]])
async def test_a_request_past_its_time_ends_as_sent_and_costs_the_connection(
    made: Call, trust: Trust | None, autojump_clock: MockClock
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(GOOD[read])
        await peer.request()
        await trio.sleep_forever()

    async with client_to(script, trust=trust) as client:
        await read(client)
        begin = trio.current_time()
        with pytest.raises(TransportError, match="time limit") as caught:
            await made(client)
        assert trio.current_time() - begin == pytest.approx(T, abs=0.1)
        assert (caught.value.sent, caught.value.stale, client._pool.connections) == (True, False, 0)


async def test_a_short_time_limit_does_not_wait_for_a_long_one(trust: Trust | None, autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(GOOD[read])
        await peer.request()
        await trio.sleep_forever()

    async with client_to(script, trust=trust) as client:
        await read(client)
        begin = trio.current_time()
        with pytest.raises(TransportError, match="time limit"):
            await client.get_range(512, 512, timeout_s=0.5)
        assert trio.current_time() - begin == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("made", [read, IN_LANE[read]])
async def test_closing_the_client_ends_what_waits(made: Call, trust: Trust | None) -> None:
    arrived = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(GOOD[read])
        await peer.request()
        arrived.set()
        await trio.sleep_forever()

    ended = list[object]()
    async with client_to(script, trust=trust) as client, trio.open_nursery() as nursery:
        await read(client)
        nursery.start_soon(waiting, client, made, trio.CancelScope(), ended)
        await arrived.wait()
        await client.aclose()
    assert len(ended) == 1
    await trio.testing.wait_all_tasks_blocked()
    root = trio.lowlevel.current_root_task()
    assert root is not None
    names = [task.name for nursery in root.child_nurseries for task in nursery.child_tasks]
    assert not [name for name in names if "pump" in name], names


async def test_a_write_that_the_socket_does_not_take_at_once_arrives_whole(trust: Trust | None) -> None:
    """What is left of it, and the answer, are for Python."""
    body = bytes(range(256)) * (4 << 12)
    bodies = []

    async def script(peer: Peer) -> None:
        for _ in range(3):
            head = b""
            while b"\r\n\r\n" not in head:
                head += await peer.stream.receive_some(100)
            received = head.partition(b"\r\n\r\n")[2]
            while len(received) < len(body):
                received += await peer.stream.receive_some(100_000)
            bodies.append(received)
            await peer.send(GOOD[write])

    async with client_to(script, trust=trust) as client:
        for _ in range(3):
            await client.put_pages(512, memoryview(body), lease_id=LEASE, epoch=7, timeout_s=T)
        assert client._pool.connections == 1
    assert bodies == [body] * 3


async def test_many_at_a_time_get_each_its_own_answer(trust: Trust | None) -> None:
    """Answers come together, and in another order than the requests."""
    waiting: list[tuple[Peer, bytes]] = []

    async def script(peer: Peer) -> None:
        while True:
            head = await peer.request()
            first, last = map(int, head.partition(b"x-ms-range:bytes=")[2].partition(b"\r\n")[0].split(b"-"))
            body = (b"%d." % first).ljust(last + 1 - first, b"z")
            lines = (f"Content-Length: {len(body)}", f"Content-Range: bytes {first}-{last}/{1 << 40}", ID)
            waiting.append((peer, raw(PART, *lines, body=body)))
            await trio.testing.wait_all_tasks_blocked()
            for other, data in reversed(waiting):
                waiting.remove((other, data))
                await other.send(data)

    async with client_to(script, trust=trust) as client:

        async def many(number: int) -> None:
            for round_ in range(20):
                offset, length = 512 * (1000 * number + round_), 512 * (1 + (number * 7 + round_ * 3) % 40)
                body = await client.get_range(offset, length, timeout_s=T)
                assert bytes(body) == (b"%d." % offset).ljust(length, b"z")

        async with trio.open_nursery() as nursery:
            for number in range(24):
                nursery.start_soon(many, number)


def test_no_more_than_there_is_room_for() -> None:
    assert plain.NATIVE is not None
    ready, pairs, lines = plain.NATIVE.Ready(), [], []
    with pytest.raises((ValueError, OSError)):
        for _ in range(2000):
            pairs.append(socket.socketpair())
            lines.append(plain.NATIVE.Line(ready, pairs[-1][0].fileno()))
    for one in pairs:
        for side in one:
            side.close()
