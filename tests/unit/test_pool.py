"""http.py: how connections are made, shared, limited, ended and given up."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from blobfuse_dysk.azure.connection import Connection
from blobfuse_dysk.azure.pool import IDLE_S, HttpPool
from blobfuse_dysk.disk import Endpoint
from blobfuse_dysk.errors import TransportError
from tests.unit.scripted import Peer, Script, answer, ask, forever, get, pool_to, scripted

pytestmark = pytest.mark.usefixtures("way")


async def test_refused_and_unknown_names_were_not_sent() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for host in ("127.0.0.1", "no-such-host.invalid"):
            async with HttpPool(Endpoint("http", host, unused.getsockname()[1])) as pool:
                with pytest.raises(TransportError, match="cannot connect to http://") as caught:
                    await ask(pool)
                assert not caught.value.sent
                assert isinstance(caught.value.__cause__, OSError)


async def silent(peer: Peer) -> None:
    await peer.request()
    await trio.sleep_forever()


async def stalling(peer: Peer) -> None:
    await peer.request()
    await peer.send(answer(b"0123456789")[:-5])
    await trio.sleep_forever()


@pytest.mark.parametrize("script", [silent, stalling])
async def test_an_answer_that_does_not_come_runs_into_the_time_limit_and_costs_the_connection(
    script: Script, autojump_clock: MockClock
) -> None:
    async with pool_to(script) as pool:
        start = trio.current_time()
        with pytest.raises(TransportError, match="time limit") as caught:
            await ask(pool, timeout_s=7)
        assert trio.current_time() - start == pytest.approx(7, abs=0.1)
        assert (caught.value.sent, caught.value.stale) == (True, False)
        assert pool.connections == 0


async def test_a_short_timeout_does_not_wait_for_an_earlier_long_one(autojump_clock: MockClock) -> None:
    async with pool_to(silent) as pool, trio.open_nursery() as nursery:
        ends: list[float] = []

        async def fail(timeout_s: float) -> None:
            with pytest.raises(TransportError):
                await ask(pool, timeout_s=timeout_s)
            ends.append(round(trio.current_time() - start))

        start = trio.current_time()
        nursery.start_soon(fail, 30)
        await trio.sleep(1)
        nursery.start_soon(fail, 5)
        nursery.start_soon(fail, 2)
    assert ends == [3, 6, 30]


async def test_hurry_shortens_what_is_on_its_way_and_lengthens_nothing(autojump_clock: MockClock) -> None:
    async with pool_to(silent) as pool, trio.open_nursery() as nursery:
        ends: list[float] = []

        async def fail(timeout_s: float) -> None:
            await _fails(pool, timeout_s, True)
            ends.append(trio.current_time() - start)

        start = trio.current_time()
        nursery.start_soon(fail, 30)
        await trio.sleep(1)
        pool.hurry(1)
        pool.hurry(10)
        nursery.start_soon(fail, 9)  # comes later, so it is not meant
    assert ends == [pytest.approx(2, abs=0.1), pytest.approx(10, abs=0.1)]


async def test_connecting_has_a_time_limit_of_its_own(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def never(host: str, port: int) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", never)
    started = trio.current_time()
    async with HttpPool(Endpoint("http", "127.0.0.1", 1), connect_timeout_s=3) as pool:
        with pytest.raises(TransportError, match="cannot connect") as caught:
            await ask(pool, timeout_s=100)
        assert not caught.value.sent
        assert trio.current_time() == pytest.approx(started + 3)
        await _fails(pool, 2.0, False)
        assert trio.current_time() == pytest.approx(started + 5), "and takes no longer than the request may"


class Dying:
    """A server to which a load balancer drops what it knows of: old connections are silent, or reset, from then on."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.alive_from = 0
        self.asked: list[int] = []
        self.together = 8
        self.all_there = trio.Event()

    async def __call__(self, peer: Peer) -> None:
        while True:
            await peer.request()
            if peer.number < self.alive_from:
                self.asked.append(peer.number)
                if self.how == "silence":
                    await trio.sleep_forever()
                await peer.reset()
                return
            self.together -= 1
            if self.together <= 0:
                self.all_there.set()
            await self.all_there.wait()
            await peer.send(answer(b"alive"))


@pytest.mark.parametrize("how", ["silence", "reset"])
async def test_after_one_connection_died_in_silence_the_repeat_goes_out_on_a_new_one(how: str) -> None:
    """A NAT that forgets its table forgets all: with 30 s for each dead connection the request would end in EIO."""
    server = Dying(how)
    async with pool_to(server) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask, pool)
        assert pool.connections == 8
        server.alive_from = 8
        with pytest.raises(TransportError):
            await ask(pool, timeout_s=0.2)
        assert pool.connections == 0
        assert (await ask(pool, timeout_s=5)).body == b"alive"
        assert len(server.asked) == 1


async def test_requests_that_run_as_one_times_out_go_on() -> None:
    release, answered = trio.Event(), trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number:
            await trio.sleep_forever()
        await release.wait()
        await peer.send(answer(b"slow"))
        await peer.request()
        await peer.send(answer(b"again"))
        await peer.request()

    async def slow(pool: HttpPool) -> None:
        assert (await ask(pool)).body == b"slow"
        answered.set()

    async with pool_to(script) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(slow, pool)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await _fails(pool, 0.2, True)
        assert pool.connections == 1
        release.set()
        await answered.wait()
        assert (await ask(pool)).body == b"again", "it has just shown that it lives"


async def test_cancellation_closes_the_connection() -> None:
    gone = trio.Event()
    asked = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            asked.set()
            try:
                await peer.request()
            finally:
                gone.set()
        await peer.send(answer(b"ok"))

    async with pool_to(script) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, pool)
            await asked.wait()
            nursery.cancel_scope.cancel()
        await gone.wait()
        assert pool.connections == 0
        assert (await ask(pool)).body == b"ok"


async def test_the_number_of_connections_is_bounded_and_the_last_used_is_next() -> None:
    numbers: set[int] = set()
    most = now = 0

    async def script(peer: Peer) -> None:
        nonlocal most, now
        while True:
            await peer.request()
            numbers.add(peer.number)
            now += 1
            most = max(most, now)
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            now -= 1
            await peer.send(answer(b"x"))

    async with pool_to(script, max_connections=4) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask, pool)
        assert pool.connections == pool._free == most == 4
        numbers.clear()
        for _ in range(5):
            await ask(pool)
        assert len(numbers) == 1


async def test_waiting_for_a_connection_counts_against_the_time(autojump_clock: MockClock) -> None:
    async with pool_to(silent, max_connections=1) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(_fails, pool, 50.0, True)
        await trio.sleep(1)
        nursery.start_soon(_fails, pool, 5.0, False)


async def _fails(pool: HttpPool, timeout_s: float, sent: bool) -> None:
    with pytest.raises(TransportError) as caught:
        await ask(pool, timeout_s=timeout_s)
    assert caught.value.sent == sent


@pytest.mark.parametrize(("header", "after_s"), [("X: y", IDLE_S), ("Keep-Alive: timeout=5", 4.0)])
async def test_idle_connections_are_closed(header: str, after_s: float, autojump_clock: MockClock) -> None:
    async with pool_to(forever(answer(b"x", "200 OK", header))) as pool:
        await ask(pool)
        await trio.sleep(after_s - 0.5)
        assert pool.connections == 1
        await trio.sleep(IDLE_S if after_s == IDLE_S else 6.0)
        assert pool.connections == 0


async def test_aclose_ends_requests_in_flight_and_refuses_later_ones() -> None:
    asked = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.request()

    async with scripted(script) as endpoint:
        pool = HttpPool(endpoint)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_fails, pool, 50.0, True)
                await asked.wait()
                await pool.aclose()
        await pool.aclose()
        await _fails(pool, 5.0, False)
        assert pool.connections == 0


async def test_a_pool_that_is_closed_while_a_connection_is_made_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def script(peer: Peer) -> None:
        asked.append(await peer.request())

    async with scripted(script) as endpoint:
        pool, opens = HttpPool(endpoint), HttpPool._open

        async def closed_meanwhile(self: HttpPool) -> Connection:
            connection = await opens(self)
            await self.aclose()
            return connection

        monkeypatch.setattr(HttpPool, "_open", closed_meanwhile)
        await _fails(pool, 5.0, False)
        await trio.testing.wait_all_tasks_blocked()
    assert (asked, pool.connections) == ([], 0)


async def test_two_hundred_at_a_time() -> None:
    async def script(peer: Peer) -> None:
        while True:
            head = await peer.request()
            await peer.send(answer(head.split(b" ")[1]))

    async with pool_to(script) as pool:
        seen: list[str] = []

        async def one(number: int) -> None:
            for turn in range(3):
                path = f"/{number}/{turn}"
                assert (await ask(pool, get(path))).body == path.encode()
                seen.append(path)

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(one, number)
        assert len(set(seen)) == 600
