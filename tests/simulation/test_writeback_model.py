"""WriteBack against the model of pages: random callers, a ring that goes round, killed workers and lost nodes."""

from __future__ import annotations

import os
from unittest import mock

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobfuse_dysk.store.contract import PAGE
from blobfuse_dysk.store.parts import ring as ring_module
from tests.contract.model import Program, Run, check, model_of, programs
from tests.simulation.clocks import JumpingClock
from tests.slowservice import SlowService
from tests.unit.written import opened

PAGES = 48
MOST = 8  # pages in one write
RINGS = (9 << 10, 12 << 10, 24 << 10, 8 << 20)  # bytes

seconds = st.sampled_from([0.0, 0.0005, 0.001, 0.004])
lives = st.lists(
    st.tuples(
        programs(
            seconds,
            calls=("write", "write", "write", "write", "zero", "read", "read", "flush"),
            pages=PAGES,
            most=MOST,
            tasks=5,
            steps=20,
        ),
        st.sampled_from([0.001, 0.02, 1.0]),  # the delay of writes
        st.sampled_from([1000.0, 0.005, 0.05]),  # a kill after so long, or an orderly end
        st.booleans(),  # whether the node goes down then
    ),
    min_size=1,
    max_size=4,
)
Life = tuple[Program, float, float, bool]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(lives, st.sampled_from(RINGS), st.integers(0, 1 << 32))
def test_no_page_is_older_than_what_a_return_or_a_flush_guarantees(lives: list[Life], ring: int, seed: int) -> None:
    """Random writers, readers, flushes, cancellations, worker kills and node crashes; every page is checked.

    Most rings are so small that two or three of the writes fill them: they go round many times, while reads and
    requests are on their way, and a new worker finds them in the middle of a lap.
    """
    with mock.patch.object(ring_module, "MIN_CAPACITY", 2 * (MOST * PAGE + 64)):
        trio.run(_live, lives, ring, seed, clock=JumpingClock())


async def _live(lives: list[Life], capacity: int, seed: int) -> None:
    service, model = SlowService(seed, size=PAGES * PAGE), model_of()
    serial, durable = 0, model.now()
    memory = os.memfd_create("ring")
    try:
        for program, idle_s, kill_s, node_goes_down in lives:
            async with opened(service, memory, capacity=capacity, idle_s=idle_s) as cache:
                run = Run(cache, model, set(), lambda: service.image, pages=PAGES)
                run.serial, run.durable = serial, durable
                with trio.move_on_after(kill_s):
                    await run.tasks(program)
                serial, durable = run.serial, run.durable
            if node_goes_down:  # the ring is lost, the service is all there is
                os.close(memory)
                memory = os.memfd_create("ring")
                check(model, durable, service.image)
                model = model_of(service.image)
                durable = model.now()
        async with opened(service, memory, capacity=capacity) as cache:
            run = Run(cache, model, set(), lambda: service.image, pages=PAGES)
            await run.one("read", 0, PAGES)
            await run.one("flush", 0, PAGES)
    finally:
        os.close(memory)
