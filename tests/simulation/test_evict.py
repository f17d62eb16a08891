"""A disk is taken from the node that does not answer: nothing of it lands, the next waits not, no other loses."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.azure.explain import HOLDER_NODE, HOLDER_TAG
from blobfuse_dysk.errors import DyskError, LeasedError, StoreError
from blobfuse_dysk.store.lease import epoch
from blobfuse_dysk.store.lease.evict import evict
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from blobfuse_dysk.testing.fates import refuse, weather
from tests.simulation.stacks import ADDRESS, DATA, LEASE, Node, attached

OLD, NEW = b"o" * 512, b"n" * 512
LATE = Fate(before_s=30.0, lost_s=1.0)  # arrives half a minute after its sender stopped waiting
DENIED = Fate(error=refuse(403, "AuthorizationFailure"))


async def evicted(client: SimClient, node: str = "one", *, seed: int = 9) -> bool:
    return await evict(BlobLease(client, timeout_s=5.0), ADDRESS, node=node, random=Random(seed), budget_s=8.0)


@pytest.mark.parametrize("lease_s", [60.0, None])
async def test_the_next_node_attaches_at_once_and_nothing_of_the_old_one_lands(
    lease_s: float | None, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    one = node("1", put=[Fate(), LATE])
    async with attached(one, node="one", lease_s=lease_s, io_timeout_s=5.0) as old:
        await old.store.write(0, DATA)
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                with suppress(StoreError):
                    await old.store.write(0, OLD)

            nursery.start_soon(write)
            await trio.sleep(0.5)  # it is on its way
            one.down = True
            assert await evicted(node("controller"))
            assert blob.lease_state == "available"
            assert blob.metadata == {}
            started = trio.current_time()
            async with attached(node("2"), node="two", seed=2) as new:
                assert trio.current_time() - started < 1.0
                await new.store.write(0, NEW)
                one.down = False
                await trio.sleep(100)
                assert old.state == "fenced"
                assert new.state == "attached"
                assert blob.get(0, 512) == NEW
    assert blob.writes[-1].code == "" or blob.writes[-1].client == "1"
    assert any(write.client == "1" and write.code for write in blob.writes), "the late write arrived, and was refused"


async def test_even_under_its_own_lease_id_nothing_of_the_old_node_lands(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """The lease was the user's, and the next attachment has the same: only the number is between the two."""
    one = node("1", put=[LATE])
    async with attached(one, node="one", lease_id=LEASE, io_timeout_s=5.0) as old:
        with suppress(StoreError), trio.move_on_after(0.5):
            await old.store.write(0, OLD)
        one.down = True
        assert await evicted(node("controller"))
        blob.acquire(60, LEASE)
        await trio.sleep(40)
        assert [write.code for write in blob.writes] == ["SequenceNumberConditionNotMet"]


async def test_another_node_is_not_touched(blob: SimBlob, node: Node, autojump_clock: MockClock) -> None:
    async with attached(node("2"), node="two") as other:
        number = blob.number
        controller = node("controller")
        assert not await evicted(controller)
        assert controller.sent == ["properties"]
        assert not await evicted(controller, "unnamed")
        await trio.sleep(70)
        assert other.state == "attached"
        assert blob.number == number
        await other.store.write(0, DATA)


async def test_a_name_that_another_left_behind_does_not_cost_the_holder_the_disk(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """One died. Two could not write its name, so the blob still names one."""
    one = node("1")
    async with attached(one, node="one"):
        one.down = True
        await trio.sleep(61)
    async with attached(node("2", metadata=[DENIED]), node="two", seed=2) as other:
        assert blob.metadata[HOLDER_NODE] == "one"
        controller = node("controller")
        with pytest.raises(LeasedError, match="has not written its name") as caught:
            await evicted(controller)
        assert caught.value.remedy
        assert controller.sent == ["properties"]
        await trio.sleep(70)
        assert other.state == "attached"
        await other.store.write(0, DATA)


@pytest.mark.parametrize("metadata", [{}, {HOLDER_NODE: "one"}, {HOLDER_NODE: "one", HOLDER_TAG: ""}])
async def test_a_lease_of_which_nobody_knows_whose_it_is_stays(
    metadata: dict[str, str], blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    blob.acquire(60, LEASE)
    blob.metadata = metadata
    with pytest.raises(LeasedError, match="has not written its name"):
        await evicted(node("controller"))
    assert blob.lease_state == "leased"
    await trio.sleep(61)
    assert not await evicted(node("controller"))


async def test_a_disk_that_was_let_go_is_left_as_it_is(blob: SimBlob, node: Node, autojump_clock: MockClock) -> None:
    assert not await evicted(node("controller"))
    async with attached(node("1", metadata=[Fate(), DENIED]), node="one") as stack:
        await stack.release()
    assert blob.metadata[HOLDER_NODE] == "one", "its name could not be taken off"
    number = blob.number
    assert not await evicted(node("controller"))
    assert blob.number == number


async def test_a_node_whose_lease_is_over_cannot_come_back(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    one = node("1")
    async with attached(one, node="one") as old:
        one.down = True
        await trio.sleep(61)
        assert blob.lease_state == "expired"
        assert await evicted(node("controller"))
        one.down = False
        await trio.sleep(61)
        assert old.state == "fenced"


async def test_a_node_that_writes_all_the_time_is_evicted(blob: SimBlob, node: Node, autojump_clock: MockClock) -> None:
    async with attached(node("1"), node="one", io_timeout_s=5.0) as old, trio.open_nursery() as nursery:

        async def write(page: int) -> None:
            with suppress(StoreError):
                while True:
                    await old.store.write(page * 512, DATA)

        for page in range(8):
            nursery.start_soon(write, page)
        await trio.sleep(0.1)
        assert await evicted(node("controller"))
        async with attached(node("2"), node="two", seed=2) as new:
            await new.store.write(0, NEW)
            await trio.sleep(30)
            assert (old.state, new.state) == ("fenced", "attached")
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("late", ["properties", "break", "acquire", "raise", "metadata", "release"])
async def test_no_copy_of_its_requests_harms_the_next_node(
    late: str, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    one = node("1")
    async with attached(one, node="one"):
        one.down = True
        with suppress(DyskError):
            await evicted(node("controller", **{late: [LATE] * 20}))
        if blob.lease_state == "leased":  # the old node's, or what a release that was lost leaves
            await trio.sleep(61)
        async with attached(node("2"), node="two", seed=2) as new:
            await new.store.write(0, NEW)
            number = blob.number
            await trio.sleep(120)
            assert new.state == "attached"
            assert epoch.tag(blob.number) == epoch.tag(number)
            assert blob.get(0, 512) == NEW


@pytest.mark.parametrize("after_s", [0.001 * step for step in range(1, 24, 2)])
async def test_one_that_was_ended_in_the_middle_is_done_by_the_next(
    after_s: float, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    one = node("1")
    async with attached(one, node="one") as old:
        one.down = True
        dying = node("controller")
        with trio.move_on_after(after_s) as scope:
            await evicted(dying)
        dying.down = True
        with trio.fail_after(16):  # the term of the lease that it may have had
            while True:
                try:
                    await evicted(node("controller"), seed=10)
                    break
                except LeasedError:
                    await trio.sleep(1)
        one.down = False
        async with attached(node("2"), node="two", seed=2) as new:
            await new.store.write(0, NEW)
            await trio.sleep(70)
            assert (old.state, new.state) == ("fenced", "attached")
    assert scope.cancelled_caught or after_s > 0.01


async def test_a_second_time_there_is_nothing_to_do(blob: SimBlob, node: Node, autojump_clock: MockClock) -> None:
    one = node("1")
    async with attached(one, node="one"):
        one.down = True
        assert await evicted(node("controller"))
        number = blob.number
        assert not await evicted(node("controller"))
        assert blob.number == number


async def test_two_controllers_at_once_evict_it_once(blob: SimBlob, node: Node, autojump_clock: MockClock) -> None:
    one = node("1")
    async with attached(one, node="one") as old:
        one.down = True
        results: list[bool] = []

        async def run(seed: int) -> None:
            with suppress(DyskError):  # it may be told that the other was faster
                results.append(await evicted(node("controller"), seed=seed))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, 1)
            nursery.start_soon(run, 2)
        assert True in results
        assert blob.lease_state == "available"
        one.down = False
        await trio.sleep(61)
        assert old.state == "fenced"


async def test_what_goes_wrong_is_told_and_leaves_no_lease(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    one = node("1")
    async with attached(one, node="one"):
        one.down = True
        with pytest.raises(StoreError):
            await evicted(node("controller", **{"raise": [DENIED]}))
        assert blob.lease_state in ("available", "broken")
        assert await evicted(node("controller")) or blob.lease_state == "available"


@pytest.mark.parametrize("seed", range(20))
async def test_in_bad_weather_an_eviction_that_is_told_is_one(
    seed: int, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    random = Random(seed)
    one = node("1")
    async with attached(one, node="one", io_timeout_s=5.0) as old:
        one.down = True
        controller = node("controller")
        controller.fate = weather(random, bad=0.3)
        done = False
        while not done:
            with suppress(DyskError):
                done = await evicted(controller, seed=random.randrange(1000)) or blob.lease_state == "available"
            await trio.sleep(1)
        number = blob.number
        one.down = False
        async with attached(node("2"), node="two", seed=2) as new:
            await new.store.write(0, NEW)
            await trio.sleep(300)
            assert (old.state, new.state) == ("fenced", "attached")
            assert blob.get(0, 512) == NEW
        assert epoch.generation(number) >= 2


async def test_who_took_the_disk_since_the_first_look_keeps_it(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """The node lets it go after all, and another attaches it, while the break is on its way."""
    one = node("1")
    results: list[bool] = []

    async def evict_it() -> None:
        results.append(await evicted(node("controller", **{"break": [Fate(before_s=1.0)]})))

    async with trio.open_nursery() as nursery:
        async with attached(one, node="one") as old:
            nursery.start_soon(evict_it)
            await trio.sleep(0.1)
            await old.release()
        async with attached(node("2"), node="two", seed=2) as new:
            await new.store.write(0, NEW)
            number = blob.number
            await trio.sleep(100)
            assert new.state == "attached"
            await new.store.write(0, DATA)
            assert blob.number == number
    assert results == [False]
