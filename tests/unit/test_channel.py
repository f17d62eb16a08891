"""The FUSE device, read and written to in Python and in C: both do the same, byte for byte."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.device.worker import channel as in_python
from blobfuse_dysk.device.worker.channel import FSYNC, READ, WRITE, Channel
from tests.conftest import choose_way, need
from tests.unit.fusefile import pattern
from tests.unit.fusekernel import (
    CALLS,
    IN,
    LARGE,
    MOST,
    OUT,
    WRITE_IN,
    Device,
    come_again,
    cut,
    fail_call,
    failing,
    fsync_request,
    large,
    lies,
    out,
    read_request,
    request,
    write_request,
)

TOP = 1 << 63 | 4711 << 1  # a request that is sent again: FUSE_UNIQUE_RESEND
GETATTR, FORGET = 3, 2


@pytest.fixture(params=["buffers", "kept"])
def device(way: str, request: pytest.FixtureRequest) -> Iterator[Device]:
    """With buffers of its own, and with memory that outlives it."""
    memory = os.memfd_create("taken") if request.param == "kept" else None
    with Device(memory=memory) as device:
        assert isinstance(device.channel, Channel) == (way == "Python")
        assert not os.get_blocking(device.ours.fileno())  # or a test would stand still
        yield device


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (read_request(7, 4096, 512), (READ, 7, 4096, 512, None)),
        (read_request(TOP, (1 << 64) - 512, (1 << 32) - 1), (READ, TOP, (1 << 64) - 512, (1 << 32) - 1, None)),
        (request(READ, 7, read_request(7, 1, 2)[IN.size :] + b"more"), (READ, 7, 1, 2, None)),
        (write_request(8, 512, b"d" * 512), (WRITE, 8, 512, 512, b"d" * 512)),
        (write_request(TOP, 1 << 63, b"d"), (WRITE, TOP, 1 << 63, 1, b"d")),
        (write_request(8, 0, b""), (WRITE, 8, 0, 0, b"")),
        (fsync_request(9), (FSYNC, 9, 0, 0, None)),
        (fsync_request(TOP), (FSYNC, TOP, 0, 0, None)),
        (request(FSYNC, 9), (FSYNC, 9, 0, 0, None)),
    ],
)
def test_a_request_about_data_becomes_a_tuple(device: Device, message: bytes, found: object) -> None:
    assert device.take(message) == found
    assert device.channel.take() is None
    assert not device.channel.gone


@pytest.mark.parametrize(
    "message",
    [
        request(GETATTR, 7, bytes(16)),
        request(GETATTR, TOP, bytes(40)),
        request(FORGET, 7, bytes(8)),
        *(lies(made, by) for made in (read_request(1, 2, 3), fsync_request(1)) for by in (-1, 1, 1000)),
        *(lies(write_request(1, 2, b"data" * 9), by) for by in (-1, 1, 1000)),
        *(cut(read_request(1, 2, 3), size) for size in (IN.size, 59, 60, 79)),
        *(cut(write_request(1, 2, b"data"), size) for size in (IN.size, 59, 60, 79, 80, 83)),
        request(WRITE, 1, write_request(1, 2, b"data")[IN.size :] + b"more"),
        *(fsync_request(1)[:size] for size in (1, 4, 8, 39, 40, 55)),
        b"\0" * 4096,
        b"\xff" * 4096,
    ],
)
def test_anything_else_stays_what_it_is(device: Device, message: bytes) -> None:
    """pyfuse3 is to judge it."""
    found = device.take(message)
    assert type(found) is bytes
    assert found == message


@pytest.mark.parametrize("size", [1, 512, LARGE - 512, LARGE - 1, LARGE, LARGE + 1, LARGE + 512, MOST])
def test_the_data_of_a_write_stays_what_it_is_while_others_come(device: Device, size: int) -> None:
    channel = device.channel
    taken = []
    for number in range(5):
        opcode, unique, offset, length, data = device.take(write_request(number, number * MOST, pattern(size, number)))
        assert (opcode, unique, offset, length, len(data)) == (WRITE, number, number * MOST, size, size)
        assert isinstance(data, memoryview if size >= LARGE else bytes)
        taken.append(data)
    assert device.take(read_request(1, 2, 3))[0] == READ
    assert type(device.take(b"\xee" * (MOST + 80))) is bytes
    for number in (3, 0, 4, 1, 2):
        assert taken[number] == pattern(size, number)
        channel.give_back(taken[number])
        assert device.take(write_request(9, 0, b"\xdd" * MOST))[4] == b"\xdd" * MOST
        assert type(device.take(b"\xcc" * (MOST + 80))) is bytes


def test_a_buffer_that_is_given_back_comes_again(device: Device) -> None:
    """The one that was given back last or first, but no other is made. One that is kept need not be there before."""
    seen = set()
    for _ in range(7):
        data = large(device)
        seen.add(id(data.obj))
        device.channel.acknowledge(1, LARGE)
        device.channel.give_back(data)
    assert len(seen) == (2 if device.taken is None else 1)


def test_the_buffers_of_a_load_stay_but_not_without_end(way: str) -> None:
    with Device(LARGE) as device:
        assert come_again(device, 20) == 20 - 1  # the one that waited for the next request was not one of them
        assert come_again(device, 80) == 64


def test_trimmed_no_buffer_stays(device: Device) -> None:
    taken = [large(device) for _ in range(5)]
    before = [data.obj for data in taken]
    for data in taken[1:]:
        device.channel.give_back(data)
    device.channel.trim()
    again = [large(device) for _ in range(5)]
    assert not any(data.obj is each for data in again for each in before)
    assert all(data == pattern(LARGE) for data in (taken[0], *again))


def test_what_was_given_back_cannot_be_looked_at(device: Device) -> None:
    data = large(device)
    device.channel.give_back(data)
    with pytest.raises(ValueError, match="released"):
        len(data)


def test_what_was_given_back_cannot_be_again(device: Device) -> None:
    """Two writes would share a buffer."""
    data = large(device)
    device.channel.give_back(data)
    with pytest.raises(ValueError, match="released"):
        device.channel.give_back(data)
    taken = [large(device).obj for _ in range(4)]
    assert len({id(each) for each in taken}) == 4


def test_what_somebody_looks_at_is_not_given_back(device: Device) -> None:
    data = large(device)
    looks = struct.iter_unpack("512s", data)
    with pytest.raises(BufferError):
        device.channel.give_back(data)
    others = [large(device, MOST) for _ in range(4)]
    assert b"".join(part for (part,) in looks) == pattern(LARGE)
    assert not any(each.obj is data.obj for each in others)


def test_what_somebody_has_a_slice_of_does_not_come_again(device: Device) -> None:
    part = (data := large(device))[:512]
    device.channel.give_back(data)
    assert not any(large(device, MOST).obj is part.obj for _ in range(4))


def test_data_outlives_the_channel(device: Device) -> None:
    data = large(device)
    del device.channel
    gc.collect()
    assert data == pattern(LARGE)


def test_all_of_a_buffer_is_in_memory_before_the_first_request(way: str) -> None:
    """See worker/channel.py."""
    with Device(16 << 20) as device:
        buffers = [large(device).obj for _ in range(2)]  # the one it began with, and the one that took its place
    for buffer in buffers:
        start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        first, end = -(-start // mmap.PAGESIZE), (start + len(buffer)) // mmap.PAGESIZE  # type: ignore[arg-type]
        resident = (ctypes.c_ubyte * (end - first))()
        libc = ctypes.CDLL(None)
        where, size = ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t((end - first) * mmap.PAGESIZE)
        assert libc.mincore(where, size, resident) == 0
        assert len(resident) >= 4096
        assert all(each & 1 for each in resident)


@pytest.mark.parametrize("unique", [2, TOP, (1 << 64) - 1])
def test_answers_byte_for_byte(device: Device, unique: int) -> None:
    channel, kernel = device.channel, device.kernel
    data = pattern(LARGE)
    for kind in (bytes, bytearray, memoryview, lambda data: memoryview(bytearray(b"xx" + data))[2:]):
        channel.answer(unique, kind(data))
        assert kernel.recv(1 << 20) == out(unique, data)
    channel.answer(unique, b"")
    assert kernel.recv(1 << 20) == out(unique)
    channel.acknowledge(unique, (1 << 32) - 512)
    assert kernel.recv(1 << 20) == out(unique, struct.pack("<II", (1 << 32) - 512, 0))
    channel.end(unique)
    assert kernel.recv(1 << 20) == out(unique)
    channel.end(unique, errno.ENOSPC)
    assert kernel.recv(1 << 20) == out(unique, error=errno.ENOSPC)
    channel.write(b"whatever")
    assert kernel.recv(1 << 20) == b"whatever"


def test_nothing_is_there(device: Device) -> None:
    """Whatever poll said, and although the device was made to block."""
    assert device.channel.take() is None
    assert not device.channel.gone
    assert device.take(fsync_request(9)) == (FSYNC, 9, 0, 0, None)


def test_the_end_of_the_connection(device: Device) -> None:
    device.kernel.send(fsync_request(9))
    device.kernel.close()
    assert device.channel.take() == (FSYNC, 9, 0, 0, None)
    assert not device.channel.gone
    for _ in range(2):
        assert device.channel.take() is None
        assert device.channel.gone


def test_what_else_fails_is_raised(device: Device) -> None:
    channel = device.channel
    device.kernel.close()
    sends: list[Callable[[], None]] = [
        lambda: channel.answer(1, b"data"),
        lambda: channel.acknowledge(1, 2),
        lambda: channel.end(1),
        lambda: channel.write(b"whatever"),
    ]
    for send in sends:
        with pytest.raises(BrokenPipeError):
            send()
    device.ours.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        channel.take()
    assert not channel.gone


def test_where_there_is_no_module_in_c_it_is_done_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blobfuse_dysk.device.native._channel", None)
    monkeypatch.delattr("blobfuse_dysk.device.native._channel", raising=False)
    with Device() as device:
        assert isinstance(device.channel, Channel)


def test_in_python_reading_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    channel, fails = failing(monkeypatch, errno.EAGAIN, errno.ENOENT, errno.ENOENT)
    assert (channel.take(), len(fails.rooms), channel.gone) == (None, 1, False)
    taken = channel.take()
    assert isinstance(taken, tuple)
    assert (taken[4], len(fails.rooms), channel.gone) == (pattern(LARGE), 4, False)
    fails.errors = [errno.EIO]
    with pytest.raises(OSError, match="Input/output"):
        channel.take()
    fails.errors = [errno.ENODEV]
    assert (channel.take(), channel.gone) == (None, True)


def test_in_python_what_the_kernel_writes_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffers that are free are too small from then on, and so are those that are given back later."""
    channel, fails = failing(monkeypatch)
    taken = [channel.take() for _ in range(3)]
    small = [each[4].obj for each in taken if isinstance(each, tuple) and isinstance(each[4], memoryview)]
    assert len(small) == 3
    for each in taken[:2]:
        assert isinstance(each, tuple)
        channel.give_back(each[4])
    room = fails.rooms[-1]
    fails.errors = [errno.EINVAL, errno.EINVAL]
    assert isinstance(channel.take(), tuple)
    assert isinstance(taken[2], tuple)
    channel.give_back(taken[2][4])
    for _ in range(4):
        assert isinstance(channel.take(), tuple)
    assert fails.rooms[3:] == [room, 2 * room, 4 * room, 4 * room, 4 * room, 4 * room, 4 * room]


def test_in_python_there_is_an_end_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_python, "_MOST_BUFFER", 8 << 20)
    channel, fails = failing(monkeypatch, *[errno.EINVAL] * 6)
    with pytest.raises(OSError, match="Invalid argument"):
        channel.take()
    assert 8 << 20 <= fails.rooms[-1] < 16 << 20


def test_in_python_writing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    channel, fails = failing(monkeypatch, errno.ENOENT)
    channel.answer(1, b"data")
    assert not channel.gone
    fails.errors = [errno.EINVAL]
    with pytest.raises(OSError, match="Invalid argument"):
        channel.acknowledge(1, 2)
    assert not channel.gone
    fails.errors = [errno.ENODEV]
    channel.end(1)
    assert channel.gone


def test_in_c_the_kernel_fails_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Python above; only that each call fails from then on."""
    need(CALLS, "the numbers of this machine's system calls are not in fusekernel.py")
    choose_way("C", monkeypatch)

    def body(device: Device) -> None:
        channel, fd = device.channel, device.ours.fileno()
        taken = [large(device) for _ in range(3)]
        for data in taken[:2]:
            channel.give_back(data)
        fail_call("read", fd, errno.EINVAL, below=MOST + LARGE)  # more than the buffers have
        for _ in range(4):
            assert device.take(write_request(2, 0, pattern(MOST + 4096)))[4] == pattern(MOST + 4096)
        channel.give_back(taken[2])
        assert large(device).nbytes == LARGE
        fail_call("read", fd, errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            channel.take()
        fail_call("writev", fd, errno.ENOENT)
        channel.answer(1, b"data")
        fail_call("writev", fd, errno.EINVAL)
        with pytest.raises(OSError, match="Invalid argument"):
            channel.acknowledge(1, 2)
        assert not channel.gone
        fail_call("writev", fd, errno.ENODEV)
        channel.end(1)
        assert channel.gone

    def at_its_end(device: Device) -> None:
        fail_call("read", device.ours.fileno(), errno.ENODEV)
        assert (device.channel.take(), device.channel.gone) == (None, True)

    for each in (body, at_its_end):
        with Device() as device, ThreadPoolExecutor(1) as thread:
            thread.submit(each, device).result()


U64 = st.integers(0, (1 << 64) - 1)
opcodes = st.sampled_from([READ, WRITE, FSYNC, GETATTR, FORGET])
rests = st.one_of(
    st.binary(max_size=3000),
    st.builds(
        lambda offset, size, data: WRITE_IN.pack(2, offset, max(0, len(data) + size), 0, 0, 0, 0) + data,
        U64,
        st.sampled_from([0, 0, 0, -1, 1]),
        st.one_of(st.binary(max_size=3000), st.sampled_from([LARGE - 1, LARGE, LARGE + 1]).map(pattern)),
    ),
)
datagrams = st.one_of(
    st.binary(min_size=1, max_size=3000),
    st.builds(request, opcodes, U64, rests),
    st.builds(lambda made, by: lies(made, by), st.builds(request, opcodes, U64, rests), st.integers(-39, 3)),
)


@pytest.fixture(scope="module")
def both() -> Iterator[list[Device]]:
    """The device in C, and in Python."""
    with pytest.MonkeyPatch.context() as patch:
        choose_way("C", patch)
        with Device() as in_c:
            choose_way("Python", patch)
            with Device() as in_python:
                yield [in_c, in_python]


@settings(max_examples=400, deadline=None)
@given(messages=st.lists(datagrams, min_size=1, max_size=5), unique=U64, data=st.binary(max_size=3000))
def test_both_do_the_same(both: list[Device], messages: list[bytes], unique: int, data: bytes) -> None:
    found = [[device.take(message) for message in messages] for device in both]
    assert found[0] == found[1]
    for one, other in zip(*found, strict=True):
        assert type(one) is type(other)
        if isinstance(one, tuple):
            assert [type(each) for each in one] == [type(each) for each in other]
            for device, taken in zip(both, (one, other), strict=True):
                device.channel.give_back(taken[4])
    for device in both:
        device.channel.answer(unique, data)
        device.channel.acknowledge(unique, len(data))
        device.channel.end(unique, len(data))
        device.channel.write(data + b"x")
    heard = [[device.kernel.recv(1 << 20) for _ in range(4)] for device in both]
    assert heard[0] == heard[1]
    assert heard[0][0] == OUT.pack(OUT.size + len(data), 0, unique) + data
