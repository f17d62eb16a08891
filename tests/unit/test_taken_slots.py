"""The slots of the memory of taken requests: which are free, what of them is in memory, and that both ways agree."""

from __future__ import annotations

import mmap
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.device.worker import taken as module
from blobfuse_dysk.device.worker.channel import READ, ROOM
from tests.conftest import choose_way
from tests.unit.fusefile import pattern
from tests.unit.fusekernel import IN, LARGE, MOST, Device, fsync_request, lies, read_request, request, write_request
from tests.unit.keptrequests import (
    FORGET,
    GETATTR,
    Kernel,
    found,
    in_memory,
    kernel,
    memory,
    number,
    opened,
    resident,
)

__all__ = ["kernel", "memory"]


def test_without_a_compact_slot_it_stays_where_it_came(
    way: str, memory: int, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COMPACT", ((512, 1), (12 << 10, 1), (72 << 10, 1)))
    monkeypatch.setattr(module, "_LANDINGS", 3)
    kernel.waits = {*range(1, 9)}
    with Device(memory=memory) as device:
        messages = [read_request(unique, unique, 9) for unique in range(1, 9)]
        taken = [device.take(message) for message in messages]
        assert taken == [*((READ, unique, unique, 9, None) for unique in range(1, 7)), None, None]
        assert device.channel.full
        assert found(memory) == messages[:6]
        device.channel.answer(2, b"a compact slot does not help")
        assert device.channel.full
        device.channel.answer(5, b"")
        assert not device.channel.full
        assert device.channel.take() == (READ, 7, 7, 9, None)
        assert not device.channel.full, "it went into the compact slot"
        assert device.channel.take() == (READ, 8, 8, 9, None)
        assert device.channel.full
        assert [*map(number, found(memory))] == [1, 3, 4, 6, 7, 8]


def test_a_slot_is_free_when_it_is_answered_and_nobody_looks_at_it(
    way: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LANDINGS", 2)
    with Device(memory=memory) as device:
        channel = device.channel
        first, second = (device.take(write_request(unique, 0, pattern(MOST, unique)))[4] for unique in (2, 4))
        assert channel.full
        channel.give_back(second)
        assert channel.full, "it is not answered"
        channel.acknowledge(2, MOST)
        assert channel.full, "somebody looks at it"
        part = first[:512]
        channel.give_back(first)
        assert channel.full, "somebody looks at a part of it"
        assert part == pattern(512, 2)
        part.release()
        assert not channel.full
        channel.acknowledge(4, MOST)
        assert bytes(device.take(write_request(6, 0, pattern(MOST, 6)))[4]) == pattern(MOST, 6)
        assert bytes(device.take(write_request(8, 0, pattern(MOST, 8)))[4]) == pattern(MOST, 8)


def test_all_of_a_landing_slot_is_in_memory_before_the_kernel_copies_into_it(way: str, memory: int) -> None:
    """See kernel/hardening.py. What a worker before touched, and what was given back, is not in this one's memory."""
    for _ in range(2):
        with Device(memory=memory) as device:
            assert device.taken is not None
            slots = device.taken.slabs[-1]
            places = range(slots.start, slots.start + 4 * slots.size, slots.size)
            for _ in range(3):
                assert device.channel.take() is None  # the kernel was asked
                ready = [at for at in places if resident(at, slots.size) == slots.size]
                large = device.take(write_request(2, 0, pattern(LARGE)))[4]
                assert [at for at in ready if os.pread(memory, 4, at) != bytes(4)]
                device.channel.acknowledge(2, LARGE)
                device.channel.give_back(large)
                device.channel.trim()


def test_the_memory_of_a_load_is_given_back(way: str, memory: int, kernel: Kernel) -> None:
    with Device(memory=memory) as device:
        channel = device.channel
        assert in_memory(memory) <= mmap.PAGESIZE
        reads = [device.take(read_request(unique, 0, 512)) for unique in range(2, 200, 2)]
        assert in_memory(memory) < 4 * mmap.PAGESIZE + (MOST + (64 << 10)) + 99 * 512
        writes = [device.take(write_request(unique, 0, pattern(MOST))) for unique in range(202, 262, 2)]
        writes += [device.take(write_request(unique, 0, pattern(8192))) for unique in range(300, 360, 2)]
        assert in_memory(memory) > 30 * MOST
        channel.trim()
        assert in_memory(memory) > 30 * MOST, "all of it is needed"
        other = request(4711, 1000, pattern(100_000))  # of which nobody has a view
        assert device.take(other) == other
        kept = (reads[3], writes[5], writes[40])
        kernel.waits = {1000, *(each[1] for each in kept)}
        for each in [*reads, *writes]:
            if each not in kept:
                channel.end(each[1])
                channel.give_back(each[4])
        del reads, writes, each
        channel.trim()
        assert in_memory(memory) < 4 * MOST + 30 * 12288 // 2
        assert len(found(memory)) == 4
        assert found(memory)[-1] == other
        channel.end(1000)
        assert kept[1][4] == pattern(MOST)
        for each in kept:
            channel.end(each[1])
            channel.give_back(each[4])
        del kept, each
        channel.trim()
        assert in_memory(memory) <= 4 * mmap.PAGESIZE, "the next request's slot has none yet"
        assert bytes(device.take(write_request(2, 0, pattern(MOST)))[4]) == pattern(MOST)


def test_there_is_room_for_all_that_the_kernel_may_send(memory: int) -> None:
    from blobfuse_dysk.device.worker.requests import MOST_TASKS

    *compact, landing = opened(memory).slabs
    assert all(slab.slots >= MOST_TASKS for slab in (*compact, landing))
    assert landing.size >= MOST + ROOM
    assert all(slab.start % (64 << 10) == 0 for slab in (*compact, landing)), "each is mapped for itself"
    assert compact[-1].size >= LARGE + 80


def message(what: str, unique: int, size: int) -> bytes:
    return {
        "write": write_request(unique, 0, pattern(size, unique % 7)),
        "read": read_request(unique, 0, 512),
        "fsync": fsync_request(unique),
        "other": request(GETATTR, unique, pattern(700)),
        "forget": request(FORGET, unique, bytes(8)),
        "lies": lies(fsync_request(unique), 4),
    }[what]


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.builds(
                lambda size: ("write", size), st.sampled_from([0, 1, 512, 4096, 12000, LARGE - 1, LARGE, 100000])
            ),
            st.sampled_from([("read", 0), ("fsync", 0), ("other", 0), ("forget", 0), ("lies", 0), ("trim", 0)]),
            st.integers(1, 40).map(lambda which: ("answer", which)),
        ),
        max_size=40,
    )
)
def test_both_keep_the_same_at_the_same_place(steps: list[tuple[str, int]]) -> None:
    """So each can go on where the other left."""
    held: list[int] = []
    images = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LANDINGS", 50)
        for way in ("C", "Python"):
            choose_way(way, patch)
            memory = os.memfd_create("taken")
            unique, held, taken = 0, [], {}
            with Device(memory=memory) as device:
                for what, how in steps:
                    unique += 2
                    if what == "trim":
                        device.channel.trim()
                    elif what != "answer":
                        taken[unique] = device.take(message(what, unique, how))
                        if what not in ("forget", "lies"):
                            held.append(unique)
                    elif held:
                        done = held.pop(how % len(held))
                        device.channel.end(done)
                        if isinstance(taken[done], tuple):
                            device.channel.give_back(taken.pop(done)[4])
                        taken.pop(done, None)
                slots = [at for slab in opened(memory).slabs for at in range(slab.start, slab.end, slab.size)]
                headers = {at: IN.unpack(os.pread(memory, IN.size, at)) for at in slots}
                images.append({at: os.pread(memory, each[0], at) for at, each in headers.items() if each[0]})
            os.close(memory)
    assert images[0] == images[1]
    assert sorted(number(message) for message in images[0].values()) == sorted(held)
