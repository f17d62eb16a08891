"""Requests that outlive the worker which took them: whatever it was doing when it died, the next one has them all."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.device.kernel import fuse
from blobfuse_dysk.device.worker import taken as module
from blobfuse_dysk.device.worker.channel import READ, ROOM, WRITE, KeptChannel, Request, open_channel
from blobfuse_dysk.device.worker.taken import Taken, TakenError
from tests.conftest import choose_way
from tests.unit.fusekernel import (
    IN,
    LARGE,
    MOST,
    OUT,
    Device,
    fsync_request,
    lies,
    out,
    pattern,
    read_request,
    request,
    write_request,
)

GETATTR, LOOKUP, FORGET, INTERRUPT, BATCH_FORGET = 3, 1, 2, 36, 42
OF_EACH_KIND = [
    read_request(2, 4096, 512),
    fsync_request(4),
    write_request(6, 512, b"d" * 512),
    write_request(8, 4096, pattern(4096)),
    write_request(10, 8192, pattern(8192)),
    write_request(12, 0, pattern(LARGE - 1)),
    write_request(14, 0, pattern(LARGE)),
    write_request(16, MOST, pattern(MOST)),
    request(GETATTR, 18, bytes(16)),
    request(LOOKUP, 20, b"disk\0"),
    request(4711, 22, pattern(100_000)),
]


def number(message: bytes) -> int:
    return int(IN.unpack_from(message)[2])


class Kernel:
    """What it waits for, and what it was told to fail."""

    def __init__(self) -> None:
        self.waits: set[int] = set()
        self.refused: list[tuple[int, int]] = []


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(fuse, "waits_for", lambda fd, unique: unique in kernel.waits)
    monkeypatch.setattr(fuse, "refuse", lambda fd, unique, code: kernel.refused.append((unique, code)))
    return kernel


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("taken")
    yield fd
    os.close(fd)


def opened(memory: int) -> Taken:
    return Taken(memory, MOST + ROOM)


def found(memory: int) -> list[bytes]:
    """What the next worker finds there, as the kernel sent it; all else is emptied."""
    taken = opened(memory)
    places = taken.left(-1)
    return [os.pread(memory, struct.unpack("I", os.pread(memory, 4, at))[0], at) for at in places]


def lengths(memory: int) -> int:
    """How many slots are not empty."""
    slots = [at for slab in opened(memory).slabs for at in range(slab.start, slab.end, slab.size)]
    return sum(os.pread(memory, 4, at) != bytes(4) for at in slots)


def in_memory(memory: int) -> int:
    return os.fstat(memory).st_blocks * 512


def same(one: Any, other: Any) -> bool:
    """Data in a buffer is what it is in bytes."""
    return (bytes(one) if isinstance(one, memoryview) else one) == (
        bytes(other) if isinstance(other, memoryview) else other
    )


def alike(one: Request | bytes, other: Request | bytes) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(same(*each) for each in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize("then", ["C", "Python"])
def test_what_was_taken_is_there_for_the_next(
    way: str, then: str, memory: int, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may be of the other kind."""
    kernel.waits = {*map(number, OF_EACH_KIND)}
    with Device(memory=memory) as device:
        assert isinstance(device.channel, KeptChannel) == (way == "Python")
        before = [device.take(message) for message in random.Random(way).sample(OF_EACH_KIND, len(OF_EACH_KIND))]
        assert lengths(memory) == len(OF_EACH_KIND)
        assert found(memory) == OF_EACH_KIND, "in the order of their numbers, and bit for bit"
        choose_way(then, monkeypatch)
        with Device(memory=memory) as after:
            assert after.taken is not None
            again = [after.channel.take_up(at) for at in after.taken.left(-1)]
            before.sort(key=lambda each: each[1] if isinstance(each, tuple) else number(each))
            assert all(alike(*each) for each in zip(before, again, strict=True))
            assert len(found(memory)) == len(OF_EACH_KIND), "it may die, too"
            new = [after.take(message) for message in (read_request(30, 0, 1), write_request(32, 0, pattern(MOST)))]
            assert (new[0], bytes(new[1][4])) == ((READ, 30, 0, 1, None), pattern(MOST))
            assert all(alike(*each) for each in zip(before, again, strict=True)), "it took the place of another"
            for message in OF_EACH_KIND:
                after.channel.end(number(message))
            kernel.waits |= {30, 32}
            assert [*map(number, found(memory))] == [30, 32]


Answer = Callable[[Device, int], None]
ANSWERS: list[Answer] = [
    lambda device, unique: device.channel.answer(unique, b"data"),
    lambda device, unique: device.channel.acknowledge(unique, 512),
    lambda device, unique: device.channel.end(unique),
    lambda device, unique: device.channel.end(unique, errno.EIO),
    lambda device, unique: device.channel.write(out(unique, b"attributes")),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=["answer", "acknowledge", "end", "fail", "write"])
def test_what_was_answered_is_not(way: str, memory: int, kernel: Kernel, answer: Answer) -> None:
    kernel.waits = {*map(number, OF_EACH_KIND)}
    with Device(memory=memory) as device:
        for message in OF_EACH_KIND:
            device.take(message)
        device.channel.write(out(0, b"notice"))
        device.channel.end(4711)
        assert lengths(memory) == len(OF_EACH_KIND)
        for done, message in enumerate(OF_EACH_KIND, 1):
            answer(device, number(message))
            assert found(memory) == OF_EACH_KIND[done:]
        assert lengths(memory) == 0


def test_an_answer_that_the_kernel_does_not_take_is_none(way: str, memory: int, kernel: Kernel) -> None:
    kernel.waits = {4}
    with Device(memory=memory) as device:
        device.take(fsync_request(4))
        device.kernel.close()
        with pytest.raises(BrokenPipeError):
            device.channel.end(4)
        assert len(found(memory)) == 1


def test_what_was_answered_and_is_still_in_its_slot_is_not_served_again(way: str, memory: int, kernel: Kernel) -> None:
    """The worker died between the answer and the next line."""
    with Device(memory=memory) as device:
        for message in OF_EACH_KIND:
            device.take(message)
        kernel.waits = {6, 16}
        assert [*map(number, found(memory))] == [6, 16]
        assert lengths(memory) == 2


def put(memory: int, at: int, message: bytes) -> None:
    assert os.pwrite(memory, message, at) == len(message)


@pytest.mark.parametrize("message", [read_request(2, 0, 512), write_request(2, 0, pattern(4096))])
def test_killed_while_a_request_moves(memory: int, kernel: Kernel, message: bytes) -> None:
    """At each step of the copy there is one, and whole."""
    kernel.waits = {2}
    slabs = opened(memory).slabs
    landing, compact = slabs[-1].start + 3 * slabs[-1].size, slabs[1].start + 7 * slabs[1].size
    put(memory, landing, message)
    assert found(memory) == [message]
    for part in (4, 8, 40, len(message)):
        put(memory, compact, bytes(4) + message[4:part])
        assert found(memory) == [message]
    put(memory, compact, message)
    assert found(memory) == [message]
    assert os.pread(memory, 4, landing) == bytes(4), "and not twice"
    assert opened(memory).left(-1) == [compact]
    put(memory, landing, bytes(4))
    assert found(memory) == [message]


@pytest.mark.parametrize("way_of_last", ["C", "Python"])
def test_killed_before_it_looked_at_the_request(
    memory: int, kernel: Kernel, way_of_last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has copied it, and the worker got no further; that one had half of an older one in its slot."""
    choose_way(way_of_last, monkeypatch)
    kernel.waits = {2}
    slabs = opened(memory).slabs
    put(memory, slabs[-1].start, write_request(2, 4096, pattern(MOST)))
    put(memory, slabs[0].start, bytes(4) + b"\xff" * 200)
    with Device(memory=memory) as device:
        assert device.taken is not None
        (opcode, unique, offset, size, data) = device.channel.take_up(*device.taken.left(-1))
        assert (opcode, unique, offset, size) == (WRITE, 2, 4096, MOST)
        assert isinstance(data, memoryview)
        assert device.take(write_request(4, 0, b"\xee" * MOST))[1] == 4
        assert data == pattern(MOST)


@pytest.mark.parametrize("opcode", [FORGET, INTERRUPT, BATCH_FORGET])
def test_what_has_no_answer_is_not_kept(way: str, memory: int, kernel: Kernel, opcode: int) -> None:
    kernel.waits = {6, 7}
    message = request(opcode, 7, bytes(8))
    with Device(memory=memory) as device:
        assert device.take(message) == message
        assert lengths(memory) == 0
    put(memory, opened(memory).slabs[-1].start, message)  # it came, and the worker died
    assert found(memory) == []
    assert lengths(memory) == 0


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("length", [1, 39, 513, MOST, (1 << 32) - 1])
def test_what_is_no_request_fails_and_stands_in_nobodys_way(
    memory: int, kernel: Kernel, length: int, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fsync_request(4)
    kernel.waits = {4, *([2] if waits else [])}
    slabs = opened(memory).slabs
    put(memory, slabs[0].start + 512, struct.pack("<I", length) + fsync_request(2)[4:])
    put(memory, slabs[0].start, whole)
    assert found(memory) == [whole]
    assert kernel.refused == ([(2, errno.EIO)] if waits else [])
    assert lengths(memory) == 1
    assert ("damaged" in caplog.text) is waits


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


def resident(offset: int, size: int) -> int:
    """Bytes of this range of the memory that are mapped here, by all that this process has of it."""
    most, entry = 0, None
    page = mmap.PAGESIZE
    with Path("/proc/self/maps").open() as maps, Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
        for line in maps:
            where, _, start, _, inode, *name = line.split()
            if not name or "memfd:taken" not in name[0] or inode == "0":
                continue
            begin, end = (int(each, 16) for each in where.split("-"))
            first, last = max(offset, int(start, 16)), min(offset + size, int(start, 16) + end - begin)
            if first >= last:
                continue
            entry = os.pread(pages.fileno(), (last - first) // page * 8, (begin + first - int(start, 16)) // page * 8)
            most = max(most, page * sum(each >> 63 for each in struct.unpack(f"{len(entry) // 8}Q", entry)))
    return most


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
        kept = (reads[3], writes[5], writes[40])
        kernel.waits = {each[1] for each in kept}
        for each in [*reads, *writes]:
            if each not in kept:
                channel.end(each[1])
                channel.give_back(each[4])
        del reads, writes, each
        channel.trim()
        assert in_memory(memory) < 3 * MOST + 30 * 12288 // 2
        assert len(found(memory)) == 3
        assert kept[1][4] == pattern(MOST)
        for each in kept:
            channel.end(each[1])
            channel.give_back(each[4])
        del kept, each
        channel.trim()
        assert in_memory(memory) <= MOST + (64 << 10) + 8 * mmap.PAGESIZE, "one is for the next request"
        assert bytes(device.take(write_request(2, 0, pattern(MOST)))[4]) == pattern(MOST)


def test_there_is_room_for_all_that_the_kernel_may_send(memory: int) -> None:
    from blobfuse_dysk.device.worker.requests import MOST_TASKS

    *compact, landing = opened(memory).slabs
    assert all(slab.slots >= MOST_TASKS for slab in (*compact, landing))
    assert landing.size >= MOST + ROOM
    assert all(slab.start % (64 << 10) == 0 for slab in (*compact, landing)), "each is mapped for itself"
    assert compact[-1].size >= LARGE + 80


@pytest.mark.parametrize("damage", [struct.pack("@QQQ", 1, 1, 65536), struct.pack("@Q", module._MAGIC) + bytes(8)])
def test_memory_that_is_something_else_is_not_used(memory: int, damage: bytes) -> None:
    put(memory, 0, damage)
    with pytest.raises(TakenError, match="version"):
        opened(memory)


def test_memory_that_was_cut_off_is_not_used(memory: int) -> None:
    opened(memory)
    os.ftruncate(memory, 1 << 20)
    with pytest.raises(TakenError, match="bytes"):
        opened(memory)


def test_who_died_while_it_made_the_memory_took_nothing(memory: int, kernel: Kernel) -> None:
    size = opened(memory).size
    for half_done in (bytes(24), bytes(8) + struct.pack("@QQ", 1, 65536)):
        put(memory, 0, half_done)
        again = opened(memory)
        assert (again.size, again.left(-1)) == (size, [])
    os.ftruncate(memory, size)
    assert Taken(memory, 4711).slabs == opened(memory).slabs, "the layout stays what it was made for"


@pytest.mark.parametrize("at", [0, 1, 4096, 1 << 40])
def test_where_nothing_was_left_nothing_is_taken_up(way: str, memory: int, at: int) -> None:
    with Device(memory=memory) as device, Device() as other:
        for each in (device, other):
            with pytest.raises((ValueError, struct.error)):
                each.channel.take_up(at)


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment(way: str, memory: int, kernel: Kernel, seed: int) -> None:
    """A worker that does nothing but take and answer is killed again and again: each request is answered, or there."""
    chance = random.Random(f"{way} {seed}")
    sizes = [512, 4096, 20000, LARGE, 200_000]
    sent: dict[int, bytes] = {}
    with Device(memory=memory) as device:
        answered: set[int] = set()
        device.kernel.setblocking(False)
        for _ in range(12):
            pid = os.fork()
            if pid == 0:
                try:
                    work(device, memory)
                finally:
                    os._exit(1)
            until = time.monotonic() + 0.01 + 0.03 * chance.random()
            while time.monotonic() < until:
                unique = 2 * len(sent) + 2
                kinds = [read_request(unique, unique, 512), fsync_request(unique), request(GETATTR, unique, bytes(16))]
                message = chance.choice([*kinds, write_request(unique, unique, pattern(chance.choice(sizes), 7))])
                try:
                    device.kernel.send(message)
                except BlockingIOError:
                    pass
                else:
                    sent[unique] = message
                answered |= heard(device)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            answered |= heard(device)
        waiting = set()
        while True:
            try:
                waiting.add(number(device.ours.recv(2 << 20)))
            except BlockingIOError:
                break
        kernel.waits = sent.keys() - answered - waiting
        there = {number(message): message for message in found(memory)}
        assert there == {unique: sent[unique] for unique in kernel.waits}
    assert len(answered) > 100


def heard(device: Device) -> set[int]:
    numbers = set()
    while True:
        try:
            numbers.add(int(OUT.unpack_from(device.kernel.recv(1 << 20))[2]))
        except BlockingIOError:
            return numbers


def work(device: Device, memory: int) -> None:
    """As a worker: what is left comes first, whether it was answered or not; each is answered after some others."""
    taken = opened(memory)
    channel = open_channel(device.ours.fileno(), MOST, taken)
    fuse.waits_for = lambda fd, unique: True
    held = [channel.take_up(at) for at in taken.left(-1)]
    while True:
        found = channel.take()
        if found is not None:
            held.append(found)
        if len(held) > 5 or (found is None and held):
            each = held.pop(0)
            unique = each[1] if isinstance(each, tuple) else number(each)
            channel.end(unique)
            if isinstance(each, tuple):
                channel.give_back(each[4])


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
