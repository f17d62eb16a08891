"""Requests that outlive the worker which took them: whatever it was doing when it died, the next one has them all."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from blobfuse_dysk.device.kernel import fuse
from blobfuse_dysk.device.worker import taken as module
from blobfuse_dysk.device.worker.channel import READ, WRITE, KeptChannel, open_channel
from blobfuse_dysk.device.worker.taken import Taken, TakenError
from blobfuse_dysk.store.contract import Buffer
from tests.conftest import choose_way
from tests.unit.fusefile import pattern
from tests.unit.fusekernel import LARGE, MOST, OUT, Device, fsync_request, out, read_request, request, write_request
from tests.unit.keptrequests import (
    BATCH_FORGET,
    FORGET,
    GETATTR,
    INTERRUPT,
    OF_EACH_KIND,
    Kernel,
    alike,
    found,
    kept,
    kernel,
    lengths,
    memory,
    number,
    opened,
    put,
)

__all__ = ["kernel", "memory"]


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


class Dies:
    """In the place of memory: whoever writes to it is dead; what it can still write, it writes before."""

    def __init__(self, memory: mmap.mmap, part: int) -> None:
        self.memory = memory
        self.part = part

    def __setitem__(self, where: slice, data: bytes) -> None:
        self.memory[where.start : where.start + self.part] = data[: self.part]
        raise KeyboardInterrupt


@pytest.mark.parametrize("part", [0, 4, 36, 1000])
def test_killed_in_the_middle_of_the_copy(
    memory: int, kernel: Kernel, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same by the program itself."""
    choose_way("Python", monkeypatch)
    kernel.waits = {2, 4}
    messages = [write_request(2, 0, pattern(4096)), write_request(4, 0, pattern(4096, 2))]
    with Device(memory=memory) as device:
        channel = device.channel
        assert isinstance(channel, KeptChannel)
        device.take(messages[0])
        monkeypatch.setattr(channel, "_memory", Dies(channel._memory, part))
        with pytest.raises(KeyboardInterrupt):
            device.take(messages[1])
        assert sorted(kept(memory), key=number) == messages
        assert found(memory) == messages


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


def test_in_c_what_is_no_data_of_a_request_is_not_given_back(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python that is asserted, as far as it can tell."""
    choose_way("C", monkeypatch)
    both: list[Buffer] = [b"data", bytearray(b"data")]
    for where, others in ((None, both[:1]), (memory, both)):
        with Device(memory=where) as device:
            for other in others:
                with pytest.raises(ValueError, match="not the data"):
                    device.channel.give_back(memoryview(other))
            data = device.take(write_request(2, 0, pattern(LARGE)))[4]
            assert data == pattern(LARGE)


def test_in_c_slabs_that_lie_over_one_another_are_none(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A landing slot would be looked for among the compact ones."""
    choose_way("C", monkeypatch)
    beside = ((8, 512, 2), (1032, 512, 2), (2056, 512, 2), (3080, 512, 2))
    with Device() as device:

        def channel(slabs: tuple[tuple[int, ...], ...]) -> object:
            make: Any = type(device.channel)
            return make(device.ours.fileno(), 0, bytearray(4104), memory, slabs)

        channel(beside)
        for number in range(4):
            over = tuple((start - 8 * (each == number), *rest) for each, (start, *rest) in enumerate(beside))
            with pytest.raises(ValueError, match="no slabs"):
                channel(over)
        with pytest.raises(ValueError, match="no slabs"):
            channel(beside[::-1])


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment(way: str, memory: int, kernel: Kernel, seed: int) -> None:
    """A worker that does nothing but take and answer is killed again and again: each request is answered, or there.

    What is there is whole each time; who looks for requests of which a part is there finds them in one of some kills.
    """
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
            for message in kept(memory):
                assert message == sent[number(message)], "a part of it"
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
