"""What stands for others in tests of how requests are served: the kernel, its device, and who runs a detached task."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import outcome
import pytest
import trio
import trio.testing

from blobfuse_dysk.detached import Detached, attach, running
from blobfuse_dysk.device.worker import channel as in_python
from blobfuse_dysk.device.worker.channel import ROOM, AnyChannel, Channel, open_channel
from blobfuse_dysk.device.worker.requests import Requests
from blobfuse_dysk.device.worker.taken import Taken
from tests.unit.fusefile import File, Service, pattern

LARGE = 64 << 10  # bytes of a write whose data is not copied
MOST = 1 << 20
INIT = b"as the kernel sent it"

IN = struct.Struct("<IIQQIIII")  # struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, padding
READ_IN = struct.Struct("<QQIIQII")  # struct fuse_read_in: fh, offset, size, read_flags, lock_owner, flags, padding
WRITE_IN = struct.Struct("<QQIIQII")  # struct fuse_write_in: fh, offset, size, write_flags, lock_owner, flags, padding
FSYNC_IN = struct.Struct("<QII")  # struct fuse_fsync_in: fh, fsync_flags, padding
OUT = struct.Struct("<IiQ")  # struct fuse_out_header: len, error, unique
CALLS = {"x86_64": {"read": 0, "writev": 20}, "aarch64": {"read": 63, "writev": 66}}.get(platform.machine(), {})
"""Numbers of system calls; empty for a machine that `fail_call` does not know."""


def request(opcode: int, unique: int, rest: bytes = b"") -> bytes:
    """A request as the kernel sends it."""
    return IN.pack(IN.size + len(rest), opcode, unique, 2, 0, 0, 4711, 0) + rest


def read_request(unique: int, offset: int, size: int) -> bytes:
    return request(15, unique, READ_IN.pack(2, offset, size, 0, 99, 0o100002, 0))


def write_request(unique: int, offset: int, data: bytes) -> bytes:
    return request(16, unique, WRITE_IN.pack(2, offset, len(data), 0, 99, 0o100002, 0) + data)


def fsync_request(unique: int) -> bytes:
    return request(20, unique, FSYNC_IN.pack(2, 1, 0))


def out(unique: int, data: bytes = b"", error: int = 0) -> bytes:
    """What the kernel is to be answered; error: an errno."""
    return OUT.pack(OUT.size + len(data), -error, unique) + data


def fail_call(call: str, fd: int, code: int, below: int = 0xFFFFFFFF) -> None:
    """From now on a call on `fd` fails with an errno if its third argument is less; in this thread, until it ends.

    Of several for one call the last one counts. Source: seccomp(2); `struct seccomp_data` has the number at 0, the
    machine at 4, the arguments from 16 on.
    """
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    steps = [
        (load, 0, 0, 0),
        (equal, 0, 5, CALLS[call]),
        (load, 0, 0, 16),
        (equal, 0, 3, fd),
        (load, 0, 0, 32),
        (at_least, 1, 0, below),
        (end, 0, 0, 0x00050000 | code),  # SECCOMP_RET_ERRNO
        (end, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    about = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(program)))
    assert libc.prctl(22, 2, about) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


Body = Callable[[Detached, "Place"], Awaitable[None]]


class Place:
    """Where one task waits: keeps it, as a line of the pool of connections does, until it is given something."""

    def __init__(self) -> None:
        self.waiter: Detached | None = None
        self.given_up = 0

    async def wait(self, me: Detached) -> Any:
        self.waiter = me
        return await me.wait(self.give_up)

    def give_up(self) -> None:
        self.waiter = None
        self.given_up += 1

    def give(self, what: object) -> None:
        self._taken_out().go_on(what)

    def wake(self, what: outcome.Outcome[Any]) -> None:
        self._taken_out().wake(what)

    def _taken_out(self) -> Detached:
        waiter, self.waiter = self.waiter, None
        assert waiter is not None
        return waiter


class World:
    """A nursery, and places for its tasks to wait at."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.said: list[Any] = []

    async def start(
        self, body: Body, mode: str, scope: trio.CancelScope | None = None, then: Body | None = None
    ) -> tuple[Place, Detached]:
        """A task that does `body` in `scope`, begun in that mode, and after it `then`, begun attached."""
        place, me = Place(), None

        async def task() -> None:
            nonlocal me
            me = Detached()
            with scope or trio.CancelScope():
                if mode == "detached":
                    await place.wait(me)
                    assert running() is me
                await body(me, place)
                await attach()
            if then is not None:
                await then(me, place)
                await attach()

        self.nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
        if mode == "detached":
            place.give("first")
        assert me is not None
        return place, me


class Device:
    """A socket pair in the place of the device: `kernel` is the kernel's end.

    memory: a memfd in which requests are kept, of a worker before this one, or an empty one.
    """

    def __init__(self, most: int = MOST, memory: int | None = None) -> None:
        self.kernel, self.ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self.ours):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.taken = None if memory is None else Taken(memory, most + ROOM)
        self.channel: AnyChannel = open_channel(self.ours.fileno(), most, self.taken)

    def take(self, message: bytes) -> Any:
        self.kernel.send(message)
        return self.channel.take()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.kernel.close()
        self.ours.close()


def cut(message: bytes, size: int) -> bytes:
    """Its start, with a header that says so."""
    return struct.pack("<I", size) + message[4:size]


def lies(message: bytes, by: int) -> bytes:
    """With a header that says another length."""
    return struct.pack("<I", len(message) + by) + message[4:]


def large(device: Device, size: int = LARGE) -> memoryview:
    data = device.take(write_request(1, 0, pattern(size)))[4]
    assert isinstance(data, memoryview)
    return data


def come_again(device: Device, count: int) -> int:
    """How many of `count` buffers that are given back come again."""
    taken = [large(device) for _ in range(count)]
    before = [data.obj for data in taken]
    for data in taken:
        device.channel.give_back(data)
    again = [large(device).obj for _ in range(count)]
    assert len({id(each) for each in again}) == count
    return sum(any(each is buffer for buffer in before) for each in again)


class Failing:
    """The device in the place of `os`: fails as told, then goes on."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.rooms: list[int] = []
        self.written = 0
        self.message = write_request(1, 0, pattern(LARGE))

    def readv(self, _: int, buffers: list[bytearray]) -> int:
        self.rooms.append(len(buffers[0]))
        self._fail()
        buffers[0][: len(self.message)] = self.message
        return len(self.message)

    def writev(self, _: int, parts: list[bytes]) -> None:
        self.written += 1
        self._fail()

    def _fail(self) -> None:
        if self.errors:
            code = self.errors.pop(0)
            raise OSError(code, os.strerror(code))


def failing(monkeypatch: pytest.MonkeyPatch, *errors: int) -> tuple[Channel, Failing]:
    fails = Failing(*errors)
    monkeypatch.setattr(in_python, "os", SimpleNamespace(readv=fails.readv, writev=fails.writev))
    return Channel(-1, MOST), fails


class StandIn:
    """In the place of Others."""

    def __init__(self, file: object, init: bytes) -> None:
        assert init == INIT
        self.pending = 0
        self.sent: list[bytes] = []
        self.ready: list[bytes] = []
        self.something = trio.Event()

    def send(self, request: bytes) -> None:
        self.sent.append(request)
        self.pending += 1

    def answers(self) -> Iterator[bytes]:
        while self.ready:
            self.pending -= 1
            yield self.ready.pop(0)

    async def answered(self) -> None:
        await self.something.wait()
        self.something = trio.Event()

    async def sendable(self) -> None:
        await trio.sleep_forever()


class Rig:
    """Requests on a socket pair, of which the test has the kernel's end."""

    def __init__(
        self,
        nursery: trio.Nursery,
        kernel: socket.socket,
        device: socket.socket,
        *,
        resend: bool = False,
        taken_fd: int | None = None,
    ) -> None:
        self.nursery = nursery
        self.kernel = kernel
        self.file = File()
        self.service = Service()
        self.ended = trio.Event()
        self.requests = Requests(device.fileno(), INIT, self.file, resend=resend, taken_fd=taken_fd)  # type: ignore[arg-type]
        others = self.requests._others
        assert isinstance(others, StandIn)
        self.others = others
        self.terminated: list[bool] = []

    async def run(self) -> None:
        await self.requests.run()
        self.ended.set()

    async def start(self) -> None:
        self.nursery.start_soon(self.run)
        await settle()

    async def ask(self, *messages: bytes) -> list[bytes]:
        """Send these; the answers that come without anything else, in any order."""
        for message in messages:
            self.kernel.send(message)
        await settle()
        return self.heard()

    def heard(self) -> list[bytes]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while answer := self.kernel.recv(4 << 20):
                found.append(answer)
        return sorted(found)


async def settle() -> None:
    """All that can be done without anything else is done."""
    with trio.fail_after(10):
        await trio.testing.wait_all_tasks_blocked()


class Drain:
    """A hold, and what is told to who waits for it to be drained."""

    def __init__(self, rig: Rig, limit_s: float = 10.0) -> None:
        self.hold = rig.requests.hold()
        self.told: list[bool] = []
        rig.nursery.start_soon(self._wait, rig, limit_s)

    async def _wait(self, rig: Rig, limit_s: float) -> None:
        self.told.append(await rig.requests.drained(self.hold, limit_s))

    async def until_told(self) -> bool:
        with trio.fail_after(10):
            while not self.told:  # noqa: ASYNC110
                await trio.sleep(0.001)
        return self.told[0]
