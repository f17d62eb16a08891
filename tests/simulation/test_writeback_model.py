"""WriteBack against a plain model: random callers, a ring that goes round, killed workers and lost nodes."""

from __future__ import annotations

import os
import random
from unittest import mock

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.store.contract import PAGE, Buffer
from blobfuse_dysk.store.layers.writeback import WriteBack
from blobfuse_dysk.store.parts import ring as ring_module
from tests.slowservice import SlowService as Service
from tests.unit.written import memory, opened

__all__ = ["memory"]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 32))
def test_model(seed: int) -> None:
    """Random writers, readers, flushes, cancellations, worker kills and node crashes; every page is checked.

    Each page write carries its own number. A read must return a number not older than the newest write that had
    returned when it began, and not newer than the newest begun when it ended. After a node crash (the ring is gone too)
    each page holds a number not older than the last flush that returned guarantees.

    Most rings are so small that two or three of the writes fill them: they go round many times, while reads and
    requests are on their way, and a new worker finds them in the middle of a lap.
    """
    with mock.patch.object(ring_module, "MIN_CAPACITY", 2 * (MOST * PAGE + 64)):
        trio.run(_model, seed, clock=trio.testing.MockClock(autojump_threshold=0))


PAGES = 48
MOST = 8  # pages in one write
RINGS = (9 << 10, 12 << 10, 24 << 10, 8 << 20)  # bytes


async def _model(seed: int) -> None:
    rng = random.Random(seed)
    service = Service(seed, size=PAGES * PAGE)
    numbers = iter(range(1, 1 << 30))
    history: list[list[int]] = [[0] for _ in range(PAGES)]  # begun writes of a page, in order; 0: zeros
    accepted = [0] * PAGES  # index into history of the newest write that returned
    durable = [0] * PAGES  # the same, as of the last flush that returned
    busy: set[int] = set()  # pages under a modifying call: callers do not overlap their own writes

    def number(data: Buffer) -> int:
        return int.from_bytes(bytes(data[:8]), "little")

    async def write(cache: WriteBack) -> None:
        first = rng.randrange(PAGES)
        count = rng.randint(1, min(MOST, PAGES - first))
        pages = range(first, first + count)
        if busy.intersection(pages):
            return
        busy.update(pages)
        kind = rng.random()
        stamps = [0 if kind < 0.15 else next(numbers) for _ in pages]
        for page, stamp in zip(pages, stamps, strict=True):
            history[page].append(stamp)
        places = [len(history[page]) - 1 for page in pages]
        try:
            if kind < 0.15:
                await cache.zero(first * PAGE, count * PAGE)
            else:
                await cache.write(first * PAGE, b"".join(s.to_bytes(8, "little") * 64 for s in stamps))
            for page, place in zip(pages, places, strict=True):
                accepted[page] = place
        finally:
            busy.difference_update(pages)

    async def read(cache: WriteBack) -> None:
        first = rng.randrange(PAGES)
        count = rng.randint(1, PAGES - first)
        floor = accepted[first : first + count]
        data = await cache.read(first * PAGE, count * PAGE)
        for index in range(count):
            page = memoryview(data)[index * PAGE : (index + 1) * PAGE]
            assert bytes(page) == bytes(page[:8]) * 64, "a torn page"
            assert number(page) in history[first + index][floor[index] :]

    async def flush(cache: WriteBack) -> None:
        before = list(accepted)
        await cache.flush()
        durable[:] = [max(a, b) for a, b in zip(durable, before, strict=True)]
        for page in range(PAGES):
            assert number(service.image[page * PAGE : page * PAGE + 8]) in history[page][before[page] :]

    async def client(cache: WriteBack) -> None:
        for _ in range(rng.randint(1, 25)):
            action = rng.choices((write, read, flush), (6, 3, 1))[0]
            with trio.move_on_after(0.001 if rng.random() < 0.1 else 1000):
                await action(cache)
            if rng.random() < 0.5:
                await trio.sleep(rng.expovariate(500))

    memory = os.memfd_create("ring")
    capacity = rng.choice(RINGS)
    try:
        for _ in range(rng.randint(1, 4)):
            async with opened(service, memory, capacity=capacity, idle_s=rng.choice((0.001, 0.02, 1.0))) as cache:
                with trio.move_on_after(rng.choice((0.005, 0.05, 1000))):  # a kill, or an orderly end
                    async with trio.open_nursery() as nursery:
                        for _ in range(rng.randint(1, 6)):
                            nursery.start_soon(client, cache)
            if rng.random() < 0.3:  # the node goes down: the ring is lost, the service is all there is
                os.close(memory)
                memory = os.memfd_create("ring")
                for page in range(PAGES):
                    found = number(service.image[page * PAGE : page * PAGE + 8])
                    assert found in history[page][durable[page] :]
                    history[page] = [found]
                accepted[:] = durable[:] = [0] * PAGES
        async with opened(service, memory, capacity=capacity) as cache:
            await read(cache)
            await flush(cache)
    finally:
        os.close(memory)
