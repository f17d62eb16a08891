"""Random programs against the whole stack and a simulated page blob, in all weathers.

Several tasks write, clear, read and flush overlapping ranges at once and let the disk grow; calls are cancelled,
requests are refused, lost, delayed for minutes and done after their sender gave up; the network goes down for longer
than the lease; another node takes the disk over. Calls are made by tasks, or in the plain lane where they can be
(store/passage.py). Checked: every read, the blob's content and size at the end, that
nothing done by then was undone by a straggler, that no two overlapping requests were in flight at once, that every data
request carried lease and epoch, that after a take-over nothing of the first node was done any more, and that the blob
never became smaller.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random
from typing import get_args

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.options import Cache
from blobfuse_dysk.store.contract import PAGE
from blobfuse_dysk.store.open import ResumeState, open_stack
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY, Ring
from blobfuse_dysk.store.stack import StackOptions
from blobfuse_dysk.testing import Fate, LaneStore, SimBlob, SimClient, weather
from blobfuse_dysk.testing.fates import LATEST_S
from tests.contract.factories import ADDRESS, NOBODY, ring_for
from tests.contract.model import CALLS, PAGES, SIZE, Program, Run, check, model_of, programs
from tests.simulation.clocks import JumpingClock

LONG_S = LATEST_S + 10  # by then every request on the network has arrived

seconds = st.sampled_from([0.0, 0.001, 0.003, 0.01, 0.05, 1.0, 20.0])
drawn = programs(seconds, calls=(*CALLS, "grow"), pages=3 * PAGES)
caches = st.sampled_from(get_args(Cache))
outages = st.lists(st.tuples(st.floats(0, 200), st.floats(1, 400)), max_size=2)


def image_of(blob: SimBlob) -> Callable[[], bytes]:
    return lambda: blob.store.peek(0, blob.size)


def check_requests(blob: SimBlob, client: SimClient) -> None:
    assert not client.overlaps, f"overlapping requests in flight: {client.overlaps}"
    assert not client.stragglers, f"stragglers landed: {client.stragglers}"
    assert not blob.shrunk
    for write in blob.writes:
        assert write.lease_id is not None and write.epoch is not None, write


async def outage(client: SimClient, start_s: float, length_s: float) -> None:
    await trio.sleep(start_s)
    client.down = True
    await trio.sleep(length_s)
    client.down = False


async def one_node(
    program: Program,
    down: list[tuple[float, float]],
    seed: int,
    bad: float,
    cache: Cache,
    io_timeout_s: float | None,
    in_lanes: bool,
) -> None:
    random = Random(seed)
    blob, model = SimBlob(SIZE), model_of()
    async with trio.open_nursery() as network:
        client = SimClient(blob, network, name="a")
        options = StackOptions(node="a", io_timeout_s=io_timeout_s, cache=cache)
        async with (
            ring_for(options) as ring,
            open_stack(
                ADDRESS,
                NOBODY,
                options,
                client=client,
                ring=ring,
                random=random,
            ) as stack,
        ):
            store = LaneStore(stack.store) if in_lanes else stack.store
            client.fate = weather(random, bad=bad)
            run = Run(store, model, {Kind.TIMEOUT}, image_of(blob))
            async with trio.open_nursery() as nursery:
                for start_s, length_s in down:
                    nursery.start_soon(outage, client, start_s, length_s)
                for tasks in program:
                    nursery.start_soon(run.task, tasks)
            client.fate = lambda name: Fate()
            client.down = False
            await trio.sleep(LONG_S)
            lost: dict[str, object] = stack.status()["cache"]  # type: ignore[assignment]
            assert stack.state == ("failed" if lost.get("latched") else "attached")
            await trio.sleep(io_timeout_s or 0.0)  # what nobody asked for is written, or given up
            cached: dict[str, object] = stack.status()["cache"]  # type: ignore[assignment]
            if cached.get("latched"):
                for name in ("write", "zero", "flush"):
                    with pytest.raises(StoreError, match="an earlier write was lost"):
                        await run.one(name, 0, 1)
                check(model, run.durable, blob.store.peek(0, run.size))
                check(model, model.now(), bytes(await stack.store.read(0, run.size)))
                return
            await stack.store.flush()
            since = model.now()
            assert stack.store.size == run.size
            check(model, since, blob.store.peek(0, run.size))
            check(model, since, bytes(await stack.store.read(0, run.size)))
            await run.one("grow", 0, 1)
            assert stack.store.size == blob.size == run.size
            for page in range(run.size // PAGE):
                await run.one("write", page, 1)
            await stack.store.flush()
            check(model, model.now(), blob.store.peek(0, run.size))
            await stack.release()
        assert blob.lease_state == "available"
    check_requests(blob, client)


async def two_nodes(
    program: Program,
    down: list[tuple[float, float]],
    seed: int,
    bad: float,
    take_over_s: float,
    cache: Cache,
    in_lanes: bool,
) -> None:
    """Node b takes the disk over from node a at some moment, and has it for itself from then on."""
    random = Random(seed)
    blob, model_a, model_b = SimBlob(SIZE), model_of(), model_of()
    async with trio.open_nursery() as network:
        a, b = SimClient(blob, network, name="a"), SimClient(blob, network, name="b")
        options = StackOptions(node="a", io_timeout_s=120.0, cache=cache)
        async with (
            ring_for(options) as ring,
            open_stack(
                ADDRESS,
                NOBODY,
                options,
                client=a,
                ring=ring,
                random=random,
            ) as stack_a,
            trio.open_nursery() as nursery,
        ):
            store = LaneStore(stack_a.store) if in_lanes else stack_a.store
            a.fate = weather(random, bad=bad)
            run_a = Run(store, model_a, {Kind.TIMEOUT, Kind.FENCED}, image_of(blob))
            for start_s, length_s in down:
                nursery.start_soon(outage, a, start_s, length_s)
            for tasks in program:
                nursery.start_soon(run_a.task, tasks)
            await trio.sleep(take_over_s)
            run_a.alone = False
            options = StackOptions(node="b", break_lease=True)
            async with open_stack(ADDRESS, NOBODY, options, client=b, random=random) as stack_b:
                taken_at = trio.current_time()
                run_b = Run(stack_b.store, model_b, set(), image_of(blob), pages=stack_b.store.size // PAGE)
                for page in range(run_b.size // PAGE):
                    run_b.serial += 1000
                    await run_b.one("write", page, 1)
                await trio.sleep(sum(start_s + length_s for start_s, length_s in down) + LONG_S)
                assert blob.size == run_b.size, "the first node grew it"
                check(model_b, model_b.now(), blob.store.peek(0, run_b.size))
                assert stack_a.state == "fenced"
                assert stack_b.state == "attached"
                assert not [w for w in blob.writes if w.client == "a" and not w.code and w.at > taken_at]
                for name in ("read", "write", "zero", "flush", "grow"):
                    try:
                        await run_a.one(name, 0, 1)
                    except StoreError as error:
                        assert error.kind is Kind.FENCED
                    else:
                        raise AssertionError(f"{name} succeeded on a fenced disk")
    check_requests(blob, a)
    check_requests(blob, b)


async def several_lives(
    lives: list[tuple[Program, float]],
    down: list[tuple[float, float]],
    seed: int,
    bad: float,
    cache: Cache,
    in_lanes: bool,
) -> None:
    """A worker is killed at some moment, and the next takes up its lease and what it had accepted.

    Also while the network is down, and after the lease ran out.
    """
    random = Random(seed)
    blob, model = SimBlob(SIZE), model_of()
    options = StackOptions(node="a", io_timeout_s=None, cache=cache)
    memory = os.memfd_create("ring")
    resume: ResumeState | None = None
    clients = []
    async with trio.open_nursery() as network:
        for number, (program, kill_s) in enumerate([*lives, ([], 0.0)]):
            clients.append(client := SimClient(blob, network, name=f"a{number}"))
            async with open_stack(
                ADDRESS,
                NOBODY,
                options,
                client=client,
                resume=resume,
                ring=Ring(memory, MIN_CAPACITY) if cache == "readwrite" else None,
                random=random,
            ) as stack:
                store = LaneStore(stack.store) if in_lanes else stack.store
                assert stack.lease_id is not None and stack.epoch is not None
                resume = ResumeState(stack.lease_id, stack.epoch, stack.lease_s)
                client.fate = weather(random, bad=bad)
                run = Run(store, model, set(), image_of(blob), pages=stack.store.size // PAGE)
                run.serial = number * 1000
                with trio.move_on_after(kill_s):
                    async with trio.open_nursery() as nursery:
                        for start_s, length_s in down:
                            nursery.start_soon(outage, client, start_s, length_s)
                        for tasks in program:
                            nursery.start_soon(run.task, tasks)
                if number == len(lives):
                    client.fate = lambda name: Fate()
                    since = model.now()
                    check(model, since, bytes(await stack.store.read(0, stack.store.size)))
                    await stack.store.flush()
                    await trio.sleep(LONG_S)
                    assert blob.size == stack.store.size
                    check(model, since, blob.store.peek(0, blob.size))
    os.close(memory)
    for client in clients:
        check_requests(blob, client)


@given(
    st.lists(st.tuples(drawn, st.one_of(st.floats(0, 30), st.floats(0, 300))), min_size=1, max_size=4),
    st.one_of(st.just([]), outages),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.1, 0.3]),
    caches,
    st.booleans(),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_a_killed_worker_had_accepted_is_there_for_the_next(
    lives: list[tuple[Program, float]],
    down: list[tuple[float, float]],
    seed: int,
    bad: float,
    cache: Cache,
    in_lanes: bool,
) -> None:
    trio.run(several_lives, lives, down, seed, bad, cache, in_lanes, clock=JumpingClock())


@given(
    drawn,
    outages,
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    caches,
    st.sampled_from([None, 120.0, 20.0]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_one_node_reads_what_it_wrote_in_all_weathers(
    program: Program,
    down: list[tuple[float, float]],
    seed: int,
    bad: float,
    cache: Cache,
    io_timeout_s: float | None,
    in_lanes: bool,
) -> None:
    trio.run(one_node, program, down, seed, bad, cache, io_timeout_s, in_lanes, clock=JumpingClock())


@given(
    drawn,
    outages,
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    st.floats(0, 100),
    caches,
    st.booleans(),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_after_a_take_over_nothing_of_the_first_node_is_done(
    program: Program,
    down: list[tuple[float, float]],
    seed: int,
    bad: float,
    take_over_s: float,
    cache: Cache,
    in_lanes: bool,
) -> None:
    clock = JumpingClock()
    trio.run(two_nodes, program, down, seed, bad, take_over_s, cache, in_lanes, clock=clock)
