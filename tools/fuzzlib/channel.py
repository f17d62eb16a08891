"""What is done to device/native/channel.c and taken.c: the same as to the Channel and the KeptChannel in Python.

An input says what the kernel sends, and when and how a worker takes it, looks at its data, answers it, gives memory
back or dies; and what its memory looks like when the next one comes. Each way has a kernel and a memory of its own.
After each step both have said and kept the same, byte for byte, and in addition, whatever Python does:

1. What was taken is what was sent, and its data stays so for as long as somebody looks at it.
2. In the memory are just those requests that were taken and not answered, each in one slot. The next worker finds
   these.
3. Nothing is taken up that is no request, or a second time.

The slots are few, so that there is none now and then. One kind of input makes tables of slabs instead (slabs.py).
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from typing import Any, cast
from unittest import mock

from blobfuse_dysk.device.kernel.fuse import IN_HEADER, NO_ANSWER, OUT_HEADER
from blobfuse_dysk.device.worker import taken as module
from blobfuse_dysk.device.worker.channel import FSYNC, READ, WRITE, Request
from tools.fuzzlib.script import Script
from tools.fuzzlib.slabs import any_slabs
from tools.fuzzlib.way import DATA_AT, MOST, RANGE, Way

__all__ = ["run"]

_SIZES = (
    *(0, 1, 431, 432, 433, 512, 4096, 12207, 12208, 12209, 73648, 73649),
    *((64 << 10) - 1, 64 << 10, (64 << 10) + 1, MOST),
)
_AGAIN = 1 << 63  # in the number of a request that is sent again
_STEPS = 80
_BEGIN = 512  # bytes of a request that are looked at after each step; the rest now and then
_QUEUED = 2  # messages; of the longest ones, a socket takes not many more
_FEW = (
    mock.patch.object(module, "_COMPACT", ((512, 3), (12 << 10, 2), (72 << 10, 2))),
    mock.patch.object(module, "_LANDINGS", 3),
)
Taking = Request | bytes | None


def _plain(found: Taking) -> Any:
    return (*found[:4], None if found[4] is None else bytes(found[4])) if isinstance(found, tuple) else found


class _Fuzzed:
    """Both ways, and what must be so. in_c: is the first one."""

    def __init__(self, script: Script, keeps: bool) -> None:
        self._script = script
        self._keeps = keeps
        self._ways = (Way(True, keeps), Way(False, keeps))
        self._number = 0
        self._queue: list[bytes] = []
        self._open: dict[int, bytes] = {}  # not answered, by their numbers
        self._data: list[tuple[Any, Any, bytes]] = []  # of large writes: what each way gave out, and what it is
        self._parts: list[tuple[Any, Any, bytes]] = []  # slices of that
        self._ghosts: list[Any] = []  # data that dead workers had
        self._looked = False  # by C alone, into its memory: it may have a page more

    def run(self) -> None:
        steps = (
            *(self._send, self._take, self._send, self._take, self._answer, self._answer, self._give_back, self._trim),
            *(
                self._answer_wrongly,
                self._die,
                self._damage,
                self._look,
                self._take_up_wrongly,
                self._give_back_wrongly,
            ),
        )
        for _ in range(_STEPS):
            if not self._script:
                break
            self._script.one_of(steps)()
            self._check()
        if self._script.byte() % 2:
            self._end()
        for data in self._ghosts:
            self._ways[0].channel.give_back(data)
        self._compare_memory()

    def close(self) -> None:
        for way in self._ways:
            way.close()

    def _both(self, do: Callable[[Way], Any]) -> Any:
        """What is done on each way, which has to come to the same."""
        found: list[Any] = []
        for way in self._ways:
            try:
                found.append(do(way))
            except (ValueError, BufferError, OSError) as error:
                found.append(type(error))
        assert found[0] == found[1], f"in C {found[0]!r}, in Python {found[1]!r}"
        return found[0]

    def _check(self) -> None:
        for ours, _, what in (*self._data, *self._parts):
            assert ours == what, "data that somebody looks at has changed"
        if self._keeps:
            kept = self._both(lambda way: way.kept(_BEGIN))
            expected = sorted(each[:_BEGIN] for each in self._open.values())
            assert sorted(kept.values()) == expected, "what is kept is not what is not answered"

    def _compare_memory(self) -> None:
        one, other = (way.image() for way in self._ways)
        assert one == other, "the memory differs"

    def _message(self) -> bytes:
        script = self._script
        self._number += 2
        unique = self._number | (_AGAIN if script.byte() % 4 == 3 else 0)
        kind = script.byte() % 8
        opcode, rest = script.one_of((READ, FSYNC, 3, 2, 42, 36, WRITE, 4711)), b""
        if kind < 2:
            opcode, rest = READ, RANGE.pack(2, script.number(8), script.number(4), 0, 0, 0, 0)
        elif kind < 4:
            data = self._pattern(script.one_of(_SIZES)) if kind == 2 else script.bytes(script.byte())
            opcode, rest = WRITE, RANGE.pack(2, script.number(8), len(data), 0, 0, 0, 0) + data
        elif kind < 6:
            rest = self._pattern(script.one_of(_SIZES)) if kind == 4 else script.bytes(script.byte())
        length = IN_HEADER.size + len(rest)
        if kind == 6:  # its header lies, or it is cut
            rest = script.bytes(script.byte())
            length = script.one_of((0, 39, 40, IN_HEADER.size + len(rest) + 1, 512, (1 << 32) - 1))
        message = IN_HEADER.pack(length, opcode, unique, 2, 0, 0, 1, 0) + rest
        return message[: 1 + script.byte()] if kind == 7 else message

    def _pattern(self, size: int) -> bytes:
        return (b"%8d" % self._number * (size // 8 + 1))[:size]

    def _send(self) -> None:
        message = self._message()
        if len(self._queue) < _QUEUED:
            self._queue.append(message)
            self._both(lambda way: way.kernel.send(message))

    def _take(self) -> None:
        full = self._both(lambda way: way.channel.full)
        found = [way.channel.take() for way in self._ways]
        if full or not self._queue:
            assert found == [None, None]
            return
        message = self._queue.pop(0)
        self._took(message, found)

    def _took(self, message: bytes, found: list[Taking]) -> None:
        ours, reference = found
        assert _plain(ours) == _plain(reference), "what was taken differs"
        if isinstance(ours, bytes):
            assert ours == message, "it is not what was sent"
        elif ours is not None:
            assert isinstance(reference, tuple)
            assert ours[1] == IN_HEADER.unpack_from(message)[2]
            if ours[0] == WRITE:
                assert ours[4] == message[DATA_AT:], "the data is not what was sent"
            if isinstance(ours[4], memoryview):
                self._data.append((ours[4], reference[4], bytes(ours[4])))
        header = IN_HEADER.unpack_from(message) if len(message) >= IN_HEADER.size else (0, 0, 0)
        if header[0] == len(message) and header[1] not in NO_ANSWER:
            self._open[header[2]] = message

    def _answer(self) -> None:
        if self._open:
            self._answer_one(self._script.one_of([*self._open]))

    def _answer_one(self, unique: int) -> None:
        way, value, data = self._script.byte() % 4, self._script.number(2), self._script.bytes(self._script.byte())
        ways: tuple[Callable[[Any], object], ...] = (
            lambda channel: channel.answer(unique, data),
            lambda channel: channel.acknowledge(unique, value),
            lambda channel: channel.end(unique, value),
            lambda channel: channel.write(OUT_HEADER.pack(OUT_HEADER.size, -value, unique) + data),
        )
        assert self._both(lambda each: ways[way](each.channel)) is None
        heard = self._both(lambda each: each.heard())
        assert len(heard) == 1
        assert OUT_HEADER.unpack_from(heard[0])[2] == unique
        self._open.pop(unique, None)

    def _answer_wrongly(self) -> None:
        if self._script.byte() % 2:
            self._answer_one(self._script.number(8))
            return
        message = self._script.bytes(1 + self._script.byte() % (OUT_HEADER.size - 1)) or b"x"
        self._both(lambda way: way.channel.write(message))
        assert self._both(lambda way: way.heard()) == [message]

    def _give_back(self) -> None:
        if not self._data:
            return
        ours, reference, what = self._data.pop(self._script.byte() % len(self._data))
        how = self._script.byte() % 4
        if how == 1:  # somebody has a part of it
            self._parts.append((ours[1:99], reference[1:99], what[1:99]))
        looks = [struct.iter_unpack("1s", each) for each in (ours, reference)] if how == 2 else []
        given = dict(zip(self._ways, (ours, reference), strict=True))
        found = self._both(lambda way: way.channel.give_back(given[way]))
        assert found is (BufferError if looks else None)
        if looks:
            self._data.append((ours, reference, what))
        elif how == 3:
            assert self._both(lambda way: way.channel.give_back(given[way])) is ValueError

    def _look(self) -> None:
        """Or no longer: who has a part of some data lets go of it."""
        if self._parts:
            for each in self._parts.pop(self._script.byte() % len(self._parts))[:2]:
                each.release()

    def _trim(self) -> None:
        self._both(lambda way: way.channel.trim())
        if self._keeps and not self._looked:
            self._both(lambda way: os.fstat(way.memory).st_blocks)

    def _die(self) -> None:
        """The next worker finds all that the last one had not answered."""
        if self._keeps:
            self._succeed(lambda unique: unique in self._open)

    def _damage(self) -> None:
        """As if what was there before had written anything there; the kernel is said to wait for all of it.

        But for number 0, which is that of notices.
        """
        if not self._keeps:
            return
        script, slots = self._script, self._ways[0].slots()
        for _ in range(1 + script.byte() % 4):
            at, size = script.one_of(slots)
            length = script.one_of(
                (0, 1, 39, 40, 41, 80, 81, 512, size - 1, size, size + 1, (1 << 32) - 1, script.byte())
            )
            unique = script.one_of([*self._open, script.number(8)])
            header = IN_HEADER.pack(length, script.one_of((READ, WRITE, FSYNC, 3, 2)), unique, 2, 0, 0, 1, 0)
            size_in = script.one_of((0, max(0, length - DATA_AT), script.number(4)))
            rest = RANGE.pack(2, script.number(8), size_in & 0xFFFFFFFF, 0, 0, 0, 0)
            self._both(lambda way, at=at, what=header + rest: os.pwrite(way.memory, what, at))  # type: ignore[misc]
        self._succeed(None)

    def _succeed(self, waits: Callable[[int], bool] | None) -> None:
        self._compare_memory()
        self._ghosts += [each[0] for each in (*self._data, *self._parts)]
        del self._data[:], self._parts[:]
        for way in self._ways:
            way.channel = None
            way.begin()
        places = self._both(lambda way: way.left(waits or bool))
        self._both(lambda way: way.refused)
        kept = self._ways[0].kept()
        assert sorted(kept) == sorted(places)
        before, self._open = self._open, {}
        for at in places:
            self._took(kept[at], [way.channel.take_up(at) for way in self._ways])
        assert waits is None or before == self._open, "the next worker has others"

    def _take_up_wrongly(self) -> None:
        """In C alone, which looks at it. In a slot that is empty, what is too short or too long lies meanwhile."""
        self._looked = True
        way, script = self._ways[0], self._script
        sizes = dict(way.slots())
        at = script.one_of((*sizes, script.number(8), script.number(3)))
        by = script.one_of((0, 0, 0, 0, 8, 1))
        length = script.one_of((0, 1, 39, (1 << 32) - 1, sizes.get(at, 0) + 1))
        lies = at in sizes and at not in way.kept(0)
        if lies:
            os.pwrite(way.memory, length.to_bytes(4, "little"), at)
        try:
            way.channel.take_up(at + by)
        except (ValueError, OverflowError):
            return
        finally:
            if lies:
                os.pwrite(way.memory, bytes(4), at)
        raise AssertionError("what is no request was taken up, or one twice")

    def _give_back_wrongly(self) -> None:
        what = self._script.one_of((None, b"x", bytearray(5), memoryview(b"x"), memoryview(bytearray(5))))
        with contextlib.suppress(ValueError):
            self._ways[0].channel.give_back(cast("memoryview", what))

    def _end(self) -> None:
        """The kernel ends the connection."""
        for way in self._ways:
            way.kernel.close()
        for _ in range(len(self._queue) + 1):
            self._take()
            self._check()
        gone = self._both(lambda way: way.channel.gone)
        assert gone or self._both(lambda way: way.channel.full)


def run(data: bytes) -> None:
    """Do what an input says. Raises AssertionError if something is wrong."""
    script = Script(data)
    kind = script.byte() % 8
    if kind == 7:
        any_slabs(script)
        return
    with _FEW[0], _FEW[1]:
        fuzzed = _Fuzzed(script, keeps=kind > 1)
        try:
            fuzzed.run()
        finally:
            fuzzed.close()
