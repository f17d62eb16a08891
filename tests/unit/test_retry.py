"""Retry: what may pass by itself is tried again, for as long as the budget allows and no longer."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.layers.retry import STALL_S, Retry
from blobfuse_dysk.store.parts.backoff import IMMEDIATE_IN_A_ROW, MOST_RETRY_AFTER_S, Backoff
from blobfuse_dysk.testing import Fault, FaultyStore, MemoryStore, RecordingStore, in_turn

DATA = b"x" * 512


def over(*faults: Fault | None, io_timeout_s: float | None = 60.0, seed: int = 0) -> tuple[Retry, RecordingStore]:
    below = RecordingStore(FaultyStore(MemoryStore(1 << 20), in_turn(faults, ("read", "write", "zero", "flush"))))
    return Retry(below, io_timeout_s=io_timeout_s, random=Random(seed)), below


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.retryable])
async def test_what_may_pass_is_tried_again(kind: Kind, autojump_clock: MockClock) -> None:
    retry, below = over(*[Fault(kind)] * 3)
    await retry.write(0, DATA)
    assert bytes(await retry.read(0, 512)) == DATA
    assert below.named("write") == [("write", 0, 512)] * 4
    assert retry.retries == 3


@pytest.mark.parametrize("kind", [kind for kind in Kind if not kind.retryable])
async def test_what_will_not_pass_is_raised_at_once(kind: Kind, autojump_clock: MockClock) -> None:
    retry, below = over(Fault(kind))
    started = trio.current_time()
    with pytest.raises(StoreError) as caught:
        await retry.zero(0, 512)
    assert caught.value.kind is kind
    assert trio.current_time() == started
    assert len(below.calls) == 1


async def test_flush_and_extents_are_tried_again(autojump_clock: MockClock) -> None:
    below = FaultyStore(MemoryStore(1 << 20), in_turn([Fault()] * 2 + [None] + [Fault()] * 2, ("flush", "extents")))
    retry = Retry(below, io_timeout_s=60, random=Random(0))
    await retry.flush()
    assert await retry.extents(0, 4096) == []
    assert retry.retries == 4


async def test_the_budget_ends_it(autojump_clock: MockClock) -> None:
    retry, _ = over(*[Fault(Kind.THROTTLED)] * 1000)
    started = trio.current_time()
    with pytest.raises(StoreError, match=r"io-timeout of 60 s; last: .*throttled") as caught:
        await retry.read(0, 512)
    assert caught.value.kind is Kind.TIMEOUT
    assert not caught.value.unknown
    assert trio.current_time() - started == 60


@pytest.mark.parametrize("name", ["read", "write", "zero", "flush", "extents"])
async def test_the_budget_bounds_an_attempt_in_progress(name: str, autojump_clock: MockClock) -> None:
    below = RecordingStore(FaultyStore(MemoryStore(1 << 20), in_turn([Fault(kind=None, delay_s=1000)], (name,))))
    retry = Retry(below, io_timeout_s=60, random=Random(0))
    arguments = {"write": (0, DATA), "flush": ()}.get(name, (0, 512))
    with pytest.raises(StoreError) as caught:
        await getattr(retry, name)(*arguments)
    assert caught.value.kind is Kind.TIMEOUT
    modifies = name in ("write", "zero", "flush")
    assert caught.value.unknown is modifies, "the attempt was cut off, so what it changes may be under way"
    assert [call.ended - call.started for call in below.calls if call.ended] == [60]


async def test_an_outcome_once_unknown_stays_unknown(autojump_clock: MockClock) -> None:
    retry, _ = over(Fault(Kind.UNREACHABLE, "dropped"), Fault(Kind.GONE))
    with pytest.raises(StoreError) as caught:
        await retry.write(0, DATA)
    assert caught.value.kind is Kind.GONE
    assert caught.value.unknown


async def test_without_budget_it_goes_on_for_ever(autojump_clock: MockClock) -> None:
    retry, _ = over(*[Fault(Kind.UNREACHABLE)] * 2000, io_timeout_s=None)
    started = trio.current_time()
    await retry.write(0, DATA)
    assert trio.current_time() - started > 3600


async def test_the_budget_can_be_changed_for_calls_in_progress(autojump_clock: MockClock) -> None:
    retry, _ = over(*[Fault(kind=None, delay_s=10_000)] * 2, io_timeout_s=None)
    ends: list[float] = []

    async def call(offset: int) -> None:
        with pytest.raises(StoreError):
            await retry.write(offset, DATA)
        ends.append(trio.current_time())

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, 0)
        nursery.start_soon(call, 512)
        await trio.sleep(100)
        retry.set_io_timeout(300)
    assert ends == [started + 300] * 2
    assert retry.io_timeout_s == 300


async def test_cancellation_from_above_passes(autojump_clock: MockClock) -> None:
    retry, _ = over(*[Fault(Kind.THROTTLED)] * 100)
    with trio.move_on_after(5) as scope:
        await retry.write(0, DATA)
    assert scope.cancelled_caught


async def test_retry_after_is_honoured(autojump_clock: MockClock) -> None:
    retry, below = over(Fault(Kind.THROTTLED, retry_after_s=17))
    await retry.read(0, 512)
    assert below.calls[1].started - below.calls[0].started == 17


async def test_immediate_errors_need_no_pause_but_cannot_spin(autojump_clock: MockClock) -> None:
    retry, below = over(*[Fault(Kind.EPOCH, immediate=True)] * (IMMEDIATE_IN_A_ROW + 3))
    await retry.write(0, DATA)
    starts = [call.started - below.calls[0].started for call in below.calls]
    assert starts[: IMMEDIATE_IN_A_ROW + 1] == [0] * (IMMEDIATE_IN_A_ROW + 1)
    assert starts[-1] > 0


async def test_it_is_the_same_for_the_same_seed(autojump_clock: MockClock) -> None:
    async def starts(seed: int) -> list[float]:
        retry, below = over(*[Fault(Kind.INTERNAL)] * 6, seed=seed)
        await retry.read(0, 512)
        return [round(call.started - below.calls[0].started, 9) for call in below.calls]

    assert await starts(1) == await starts(1) != await starts(2)


def test_backoff_doubles_up_to_its_bound() -> None:
    class Most(Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    backoff = Backoff(Most(), first_s=0.5, most_s=3.0)
    assert [backoff.next_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_backoff_believes_no_absurd_retry_after() -> None:
    assert Backoff(Random(0)).next_s(StoreError("", Kind.THROTTLED, retry_after_s=1e9)) == MOST_RETRY_AFTER_S


async def test_a_direct_attempt_that_fails_is_tried_again_within_the_same_budget(autojump_clock: MockClock) -> None:
    faults = [Fault(Kind.UNREACHABLE, "dropped", delay_s=40)] + [Fault(Kind.THROTTLED)] * 1000
    below = FaultyStore(MemoryStore(1 << 20), in_turn(faults, ("write",)))
    retry = Retry(below, io_timeout_s=60, random=Random(0), direct=lambda length, modifies: True, direct_s=50)
    started = trio.current_time()
    with pytest.raises(StoreError) as caught:
        await retry.write(0, DATA)
    assert caught.value.kind is Kind.TIMEOUT
    assert caught.value.unknown
    assert trio.current_time() - started == 60


@pytest.mark.parametrize("name", ["read", "write"])
@pytest.mark.parametrize("kind", [kind for kind in Kind if not kind.retryable])
async def test_a_direct_attempt_that_fails_for_good_is_raised(kind: Kind, name: str, autojump_clock: MockClock) -> None:
    """It is not sent a second time, and its doubt is not forgotten."""
    below = RecordingStore(FaultyStore(MemoryStore(1 << 20), in_turn([Fault(kind, "dropped")], (name,))))
    told: list[StoreError] = []
    retry = Retry(
        below,
        io_timeout_s=60,
        random=Random(0),
        on_error=told.append,
        direct=lambda length, modifies: True,
        direct_s=50,
    )
    with pytest.raises(StoreError) as caught:
        await (retry.write(0, DATA) if name == "write" else retry.read(0, 512))
    assert (caught.value.kind, caught.value.unknown) == (kind, name == "write")
    assert len(below.calls) == 1
    assert told == [caught.value]
    await retry.write(0, DATA)
    assert bytes(await retry.read(0, 512)) == DATA


@pytest.mark.parametrize("direct", [False, True])
async def test_each_attempt_that_fails_is_told_of(direct: bool, autojump_clock: MockClock) -> None:
    kinds = [Kind.THROTTLED, Kind.UNREACHABLE, Kind.INTERNAL]
    below = FaultyStore(MemoryStore(1 << 20), in_turn([Fault(kind) for kind in kinds], ("write",)))
    told: list[Kind] = []
    retry = Retry(
        below,
        io_timeout_s=60,
        random=Random(0),
        on_error=lambda error: told.append(error.kind),
        direct=lambda length, modifies: direct,
        direct_s=50,
    )
    await retry.write(0, DATA)
    assert told == kinds


async def test_whether_an_attempt_is_direct_is_asked_with_its_length_and_kind() -> None:
    asked = []

    def direct(length: int, modifies: bool) -> bool:
        asked.append((length, modifies))
        return True

    retry = Retry(MemoryStore(1 << 20), io_timeout_s=60, direct=direct, direct_s=50)
    await retry.write(0, DATA)
    await retry.read(0, 1024)
    assert asked == [(len(DATA), True), (1024, False)]


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("name", ["read", "write"])
async def test_no_attempt_is_direct_that_may_outlast_the_budget(
    name: str, change: bool, autojump_clock: MockClock
) -> None:
    """Whether the budget was that short from the beginning, or was made so."""
    below = FaultyStore(MemoryStore(1 << 20), in_turn([Fault(kind=None, delay_s=1000)], (name,)))
    retry = Retry(below, io_timeout_s=60 if change else 20, direct=lambda length, modifies: True, direct_s=50)
    if change:
        retry.set_io_timeout(20)
    started = trio.current_time()
    with pytest.raises(StoreError):
        await (retry.write(0, DATA) if name == "write" else retry.read(0, 512))
    assert trio.current_time() - started == 20


async def test_calls_that_stall_are_told_of(autojump_clock: MockClock) -> None:
    """Not the short failures; how long there is left follows a change of the budget."""
    told: list[dict[str, object] | None] = []
    below = FaultyStore(MemoryStore(1 << 20), in_turn([Fault()] * 1000, ("read",)))
    retry = Retry(below, io_timeout_s=60.0, random=Random(0), on_stall=lambda: told.append(retry.waiting))
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(StoreError, match="io-timeout of 40 s"):
                await retry.read(0, 512)

        nursery.start_soon(read)
        nursery.start_soon(read)
        await trio.sleep(STALL_S / 2)
        assert retry.waiting is None
        await trio.sleep(20 - STALL_S / 2)
        found = retry.waiting
        assert found is not None
        assert (found["calls"], found["since_s"], found["fails_in_s"]) == (2, 20, 40)
        assert "read" in str(found["reason"])
        retry.set_io_timeout(None)
        assert retry.waiting is not None and retry.waiting["fails_in_s"] is None
        retry.set_io_timeout(40.0)
    assert retry.waiting is None
    assert len(told) == 2 and told[0] is not None and told[1] is None


@pytest.mark.parametrize("direct", [False, True])
async def test_a_call_that_hangs_or_is_held_back_is_stalled_as_well(direct: bool, autojump_clock: MockClock) -> None:
    """It has not failed once: the reason is what holds it back, where that is known."""
    told: list[dict[str, object] | None] = []
    below = FaultyStore(MemoryStore(1 << 20), in_turn([Fault(kind=None, delay_s=20.0)] * 2, ("read",)))
    blockers: list[StoreError] = []
    retry = Retry(
        below,
        io_timeout_s=60.0,
        on_stall=lambda: told.append(retry.waiting),
        blocker=lambda: blockers[0] if blockers else None,
        direct=lambda length, modifies: direct,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retry.read, 0, 512)
        await trio.sleep(4.0)
        assert [found and found["calls"] for found in told] == [1]
        nursery.start_soon(retry.read, 512, 512)
        await trio.sleep(4.0)
        found = retry.waiting
        assert found is not None and found["calls"] == 2
        assert "not answered" in str(found["reason"])
        blockers.append(StoreError("the epoch cannot be raised", Kind.UNREACHABLE))
        found = retry.waiting
        assert found is not None and "epoch" in str(found["reason"])
        blockers.clear()
        await trio.sleep(14.0)  # the first is over
        found = retry.waiting
        assert found is not None and found["calls"] == 1
    assert retry.waiting is None
    assert [found and found["calls"] for found in told] == [1, None]


async def test_a_call_that_stalls_after_the_others_went_on_is_told_of(autojump_clock: MockClock) -> None:
    told: list[bool] = []
    hang = [Fault(kind=None, delay_s=5.0), Fault(kind=None, delay_s=5.0)]
    below = FaultyStore(MemoryStore(1 << 20), in_turn(hang, ("read",)))
    retry = Retry(below, io_timeout_s=60.0, on_stall=lambda: told.append(retry.waiting is not None))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retry.read, 0, 512)
        await trio.sleep(4.0)
        nursery.start_soon(retry.read, 512, 512)  # nothing new begins after this
    assert told == [True, False, True, False]
