"""ReadCache against the model of pages: streams, random readers and writers at once."""

from __future__ import annotations

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobfuse_dysk.store.contract import PAGE
from tests.contract.model import Program, Run, Step, model_of, programs
from tests.simulation.clocks import JumpingClock
from tests.slowservice import SlowService
from tests.unit.test_readcache import opened

PAGES = 4096
SIZE = PAGES * PAGE

pauses = st.sampled_from([0.0, 0.001, 0.004])
writers = programs(pauses, calls=("write", "write", "zero"), pages=PAGES, most=16, tasks=3, steps=15)
streams = st.lists(
    st.tuples(st.integers(0, PAGES - 1), st.sampled_from([8, 64, 256, 1024]), st.integers(1, 12), pauses),
    min_size=1,
    max_size=4,
)


def reads(stream: list[tuple[int, int, int, float]]) -> list[Step]:
    """The reads of one task: so many of so many pages, one behind the other, then from another place on."""
    return [
        ("read", page, count, None, pause_s)
        for first, count, times, pause_s in stream
        for page in range(first, min(first + count * times, PAGES), count)
    ]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(writers, st.lists(streams, min_size=1, max_size=3), st.integers(0, 1 << 32))
def test_no_read_is_older_than_a_write_that_had_returned(
    writers: Program, readers: list[list[tuple[int, int, int, float]]], seed: int
) -> None:
    trio.run(_read_and_write, [*writers, *map(reads, readers)], seed, clock=JumpingClock())


async def _read_and_write(program: Program, seed: int) -> None:
    async with opened(SlowService(seed, size=SIZE), capacity=2 << 20, window=1 << 20) as cache:
        await Run(cache, model_of(), set(), pages=PAGES, apart=True).tasks(program)
