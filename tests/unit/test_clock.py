"""The clock that requests read is trio's, whichever it is in a run."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from blobfuse_dysk.clock import bound_clock


async def test_it_is_the_clock_of_this_run(autojump_clock: MockClock) -> None:
    now = bound_clock()
    before = now()
    assert before == trio.current_time()
    await trio.sleep(1000)
    assert now() == trio.current_time() == before + 1000


def test_made_outside_of_a_run_it_is_the_clock_of_any() -> None:
    now = bound_clock()

    async def read() -> None:
        assert now() <= trio.current_time() <= now()

    trio.run(read)
    trio.run(read)
