"""A disk that can never be written to again says so, since when it looks, why, and what to do: within one renewal."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.azure.explain import HOLDER_NODE, HOLDER_SINCE
from blobfuse_dysk.errors import Kind, ServiceError, StoreError
from blobfuse_dysk.store.layers import retry
from blobfuse_dysk.store.lease.epoch import TAGS, next_number
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY, Ring
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from blobfuse_dysk.testing.fates import refuse
from tests.simulation.stacks import DATA, SIZE, attached

RENEWAL_S = 20.0
OTHER = "2" * 8 + "-2222-2222-2222-" + "2" * 12


@pytest.fixture
def ring() -> Iterator[Ring]:
    """A dirty ring with nothing in it."""
    memory = os.memfd_create("ring")
    ring = Ring(memory, MIN_CAPACITY)
    yield ring
    ring.close()
    os.close(memory)


def delete(blob: SimBlob) -> None:
    blob.gone = True


def shrink(blob: SimBlob) -> None:
    blob.resize(SIZE // 2, blob.lease_id)


def set_back(blob: SimBlob) -> None:
    blob.number = 0


def make_anew(blob: SimBlob) -> None:
    blob.created = "Fri, 02 Jan 1970 00:00:00 GMT"


CHANGES = [(delete, "gone"), (shrink, "made smaller"), (set_back, "replaced"), (make_anew, "replaced")]


@pytest.mark.parametrize(("change", "word"), CHANGES)
@pytest.mark.parametrize("read_only", [False, True])
async def test_a_blob_that_is_not_the_disk_any_more_is_said_within_one_renewal(
    change: Callable[[SimBlob], None],
    word: str,
    read_only: bool,
    blob: SimBlob,
    client: SimClient,
    autojump_clock: MockClock,
) -> None:
    states: list[str] = []
    async with attached(client, states=states, read_only=read_only) as stack:
        await trio.sleep(3.3 * RENEWAL_S)
        assert stack.detail is None
        change(blob)
        await trio.sleep(RENEWAL_S + 1)
        if read_only and change is set_back:
            assert stack.state == "attached", "another node's number is nothing to a reader"
            return
        assert stack.state == "failed"
        assert word in str(stack.detail)
        assert "detach" in str(stack.detail)
        assert states[-1] == "failed"
        await trio.sleep(500)
        assert stack.state == "failed"


@pytest.mark.parametrize("change", [delete, shrink, set_back])
async def test_nothing_is_written_to_it_again_even_if_it_comes_back_as_it_was(
    change: Callable[[SimBlob], None], blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    async with attached(client) as stack:
        await stack.store.write(0, DATA)
        number = blob.number
        change(blob)
        await trio.sleep(RENEWAL_S + 1)
        blob.gone, blob.number = False, number
        blob.resize(SIZE, blob.lease_id)
        writes = len(blob.writes)
        for call in (
            stack.store.write(0, DATA),
            stack.store.zero(0, 512),
            stack.store.flush(),
            stack.store.grow(2 * SIZE),
        ):
            with pytest.raises(StoreError, match="the blob"):
                await call
        assert len(blob.writes) == writes
        assert bytes(await stack.store.read(0, 512)) == DATA, "what is there still can be read"


async def test_a_disk_that_grows_is_not_taken_for_one_that_shrank(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    """The answer to a look may be older than the growing that was done while it was on its way."""
    async with attached(client) as stack:
        client.fate = lambda name: Fate(after_s=5.0) if name == "properties" else Fate()
        await trio.sleep(RENEWAL_S + 1)
        client.fate = lambda name: Fate()
        await stack.store.grow(2 * SIZE)
        await trio.sleep(5 * RENEWAL_S)
        assert stack.state == "attached"


async def test_a_raise_of_our_own_is_not_taken_for_a_blob_that_was_replaced(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    async with attached(client) as stack:
        client.fate = lambda name: Fate(after_s=5.0) if name == "properties" else Fate()
        await trio.sleep(RENEWAL_S + 1)
        before = blob.number
        lost = Fate(after_s=50.0, lost_s=0.5)
        client.fate = lambda name: lost if name == "put" and blob.number == before else Fate()
        await stack.store.write(0, DATA)
        assert blob.number > before
        await trio.sleep(5 * RENEWAL_S)
        assert stack.state == "attached"


async def test_a_service_that_cannot_be_reached_is_no_end(client: SimClient, autojump_clock: MockClock) -> None:
    async with attached(client) as stack:
        client.down = True
        await trio.sleep(600)
        assert stack.state == "paused"
        assert "up to io-timeout" in str(stack.detail)
        client.down = False
        await trio.sleep(RENEWAL_S)
        assert (stack.state, stack.detail) == ("attached", None)


async def test_a_write_that_was_lost_behind_the_cache_fails_the_disk(
    client: SimClient, ring: Ring, autojump_clock: MockClock
) -> None:
    """The write itself was taken; nobody flushed it, and without the state nobody would know."""
    states: list[str] = []
    async with attached(client, ring=ring, cache="readwrite", states=states) as stack:
        await stack.store.write(512, DATA)
        refusal = ServiceError("put: HTTP 400", status=400, code="InvalidHeaderValue")
        client.fate = lambda name: Fate(error=refusal) if name == "put" else Fate()
        await trio.sleep(5)
        assert (stack.state, states[-1]) == ("failed", "failed")
        assert "400" in str(stack.detail)
        assert "check its file system" in str(stack.detail)
        assert stack.unwritten == [(512, 512)]
        client.fate = lambda name: Fate()
        with pytest.raises(StoreError):
            await stack.store.flush()
        assert stack.state == "failed"


async def took_s(call: Awaitable[object]) -> float:
    """Simulated seconds until it failed."""
    begun = trio.current_time()
    with pytest.raises(StoreError):
        await call
    return trio.current_time() - begun


async def test_a_disk_that_failed_does_not_wait_for_a_service_that_is_away_again_and_again(
    client: SimClient, ring: Ring, autojump_clock: MockClock
) -> None:
    """umount of ext4 reads one block after the other, and waited io-timeout for each."""
    async with attached(client, ring=ring, cache="readwrite", io_timeout_s=60.0) as stack:
        await stack.store.write(512, DATA)
        await stack.store.write(2048, DATA * 20)
        await stack.store.flush()
        await stack.store.write(1024, DATA)
        client.down = True
        async with trio.open_nursery() as nursery:
            waited: list[float] = []

            async def read() -> None:
                await trio.sleep(50.0)
                waited.append(await took_s(stack.store.read(512, 512)))

            nursery.start_soon(read)
            assert await took_s(stack.store.flush()) == pytest.approx(60.0, abs=1.0)
        assert stack.state == "failed"
        assert waited[0] < 10 + retry.LAST_S + 1, "a read that was under way waited its whole time"
        begun = trio.current_time()
        for number in range(20):
            for call in (stack.store.write(0, DATA), stack.store.zero(0, 512), stack.store.flush()):
                assert await took_s(call) == 0.0
            await took_s(stack.store.read(512 * (number + 4), 512))
        assert trio.current_time() - begun <= retry.LAST_S + 1
        client.down = False
        await trio.sleep(retry.AGAIN_S)
        assert bytes(await stack.store.read(512, 512)) == DATA, "what is there still can be read"
        client.fate = lambda name: Fate(after_s=20.0) if name == "get" else Fate()
        assert bytes(await stack.store.read(512, 512)) == DATA, "a slow answer is an answer"


async def test_a_service_that_only_refuses_is_there_so_reads_succeed_when_it_has_ended(
    client: SimClient, ring: Ring, autojump_clock: MockClock
) -> None:
    async with attached(client, ring=ring, cache="readwrite", io_timeout_s=30.0) as stack:
        await stack.store.write(512, DATA)
        await stack.store.flush()
        await stack.store.write(1024, DATA)
        client.fate = lambda name: Fate(error=refuse(503, "ServerBusy")) if name in ("put", "get") else Fate()
        await took_s(stack.store.flush())
        assert stack.state == "failed"
        await took_s(stack.store.read(512, 512))
        client.fate = lambda name: Fate()
        assert bytes(await stack.store.read(512, 512)) == DATA


async def test_what_is_on_its_way_when_a_disk_fails_has_its_whole_time(
    blob: SimBlob, client: SimClient, ring: Ring, autojump_clock: MockClock
) -> None:
    """A write that began later than the one that was lost still is written if the service comes back."""
    async with attached(client, ring=ring, cache="readwrite", io_timeout_s=60.0, write_delay_s=0.1) as stack:
        await stack.store.write(512, DATA)
        await stack.store.flush()
        client.down = True
        await stack.store.write(1024, DATA)
        await trio.sleep(30.0)
        await stack.store.write(64 << 10, DATA)
        await trio.sleep(31.0)
        assert stack.state == "failed"
        await trio.sleep(2 * retry.LAST_S)
        client.down = False
        await trio.sleep(18.0 - 2 * retry.LAST_S + 25.0)
        assert stack.unwritten == [(1024, 512)]
        assert bytes(blob.get(64 << 10, 512)) == DATA


async def test_a_disk_is_failed_from_outside_as_a_worker_does_that_follows(
    client: SimClient, autojump_clock: MockClock
) -> None:
    async with attached(client) as stack:
        stack.fail(StoreError("the blob is gone", Kind.REJECTED))
        with pytest.raises(StoreError, match="gone"):
            await stack.store.write(0, DATA)
        assert (stack.state, stack.detail) == ("failed", "the blob is gone")


def break_it(blob: SimBlob) -> None:
    blob.break_now()


def take_it(blob: SimBlob) -> None:
    blob.break_now()
    blob.acquire(60, OTHER)
    blob.number = next_number(blob.number) + (1 << 20) * (TAGS + 1)  # of another tag
    blob.metadata = {HOLDER_NODE: "web-7", HOLDER_SINCE: "2026-01-31T12:00:00Z"}


def take_it_without_a_name(blob: SimBlob) -> None:
    blob.break_now()
    blob.acquire(60, OTHER)


def take_it_and_let_go(blob: SimBlob) -> None:
    take_it(blob)
    blob.release(OTHER)
    blob.metadata = {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (break_it, "broken from outside, and nobody has the disk now"),
        (take_it, "node web-7 took the disk at 2026-01-31T12:00:00Z"),
        (take_it_without_a_name, "has not written its name"),
        (take_it_and_let_go, "had the disk meanwhile"),
    ],
)
async def test_a_fenced_disk_says_who_took_it(
    change: Callable[[SimBlob], None], words: str, blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    told: list[str | None] = []
    async with attached(client) as stack:
        stack.on_detail = lambda: told.append(stack.detail)
        change(blob)
        await trio.sleep(RENEWAL_S + 2)
        assert stack.state == "fenced"
        assert words in str(stack.detail)
        assert "detach it here" in str(stack.detail)
        assert told == [stack.detail]


async def test_who_takes_a_disk_a_while_after_breaking_its_lease_is_found(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    async with attached(client) as stack:
        break_it(blob)
        await trio.sleep(RENEWAL_S + 1)
        assert "nobody has the disk" in str(stack.detail)
        take_it(blob)
        await trio.sleep(RENEWAL_S)
        assert "node web-7" in str(stack.detail)


async def test_status_says_why(blob: SimBlob, client: SimClient, autojump_clock: MockClock) -> None:
    async with attached(client) as stack:
        delete(blob)
        await trio.sleep(RENEWAL_S + 1)
        assert stack.status()["state"] == "failed"
