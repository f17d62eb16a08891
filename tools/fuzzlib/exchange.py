"""What is done to azure/native/exchange.c, ready.c and tls.c: exchanges on a few lines of one Ready.

An input says what the far ends send, in which pieces, where the stream ends, and when and how this end asks, collects,
takes, stops and closes; with TLS by a toy (farside.py), also what Python code does in the middle of a call of it.
Always:

1. Who waits is given out once, by `collect` or by `stop`, and nobody else is. Nobody waits when all that has come is
   collected and is a whole answer, or the end, or no beginning of the expected one; and no byte that came is unread
   while somebody waits.
2. A body is what connection.py makes of the same bytes, which it takes for a success on a connection that goes on. Of
   an odd answer, `begun` has all that was read. All else that came is still there.
3. The end of the stream is told as that, and an error only where there was one. The expected answer is a plain one if
   its head came in one piece.
4. What the far end gets is what `start` said was sent.

After `stop`, and after what else leaves a connection of no use, 1 holds alone.
"""

from __future__ import annotations

import contextlib
import gc
import select
import socket
import ssl
from collections.abc import Callable

from blobfuse_dysk.azure.native import _exchange
from blobfuse_dysk.azure.tlsconnection import HELD, ONE_RECORD
from tools.fuzzlib.farside import Far, Plain, Real, Toy
from tools.fuzzlib.script import Script
from tools.fuzzlib.side import GOOD, ID, LENGTHS, OFFSET, Side, Waiter, as_in_python

__all__ = ["run"]

_STEPS, _DEEPEST, _LINES = 60, 2, 3
_ODD = (
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n" + ID + b"\r\nno",
    b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n" + ID + b"\r\n0\r\n\r\n",
    b"HTTP/1.1 206 Partial Content\r\nContent-Length: 512\r\nContent-Range: bytes 0-511/4096\r\n" + ID + b"\r\n",
    b"Connection: close\r\n",
    b"\r\n\r\n",
    b"\r",
    b"",
)


class _Fuzzed:
    def __init__(self, script: Script) -> None:
        self._script = script
        self._ready = _exchange.Ready()
        self._depth = 0  # of steps in calls of the toy
        self._inside: list[Far] = []  # whose calls those are
        self._armed = 0  # calls of it until one does something
        self._inner = 0  # things that were done in such a call
        self._wrong: AssertionError | None = None  # in there, from where nobody else may hear of it
        self._waiting: set[Waiter] = set()
        self._given: set[Waiter] = set()  # that an outer `collect` may have in its list
        self._sides = [self._side(script.byte()) for _ in range(1 + script.byte() % _LINES)]

    def _side(self, kind: int) -> Side:
        far: Far = Plain()
        if kind % 4 == 3 and kind > 200:
            far = Real(ONE_RECORD)
        elif kind % 4:
            far = Toy(self._meanwhile, ONE_RECORD)
        return Side(self._ready, far, narrow=bool(kind & 16))

    def run(self) -> None:
        for _ in range(_STEPS):
            if not self._script:
                break
            self._step()
        self._armed = 0
        self._collect()
        if self._wrong is not None:
            raise self._wrong

    def close(self) -> None:
        self._armed = 0
        for side in self._sides:
            side.close()
            side.waiter = None
        self._waiting.clear()

    def _step(self) -> None:
        steps: tuple[Callable[[Side], object], ...] = (
            *(self._start, self._start, self._say_good, self._say_good, self._deliver, self._deliver, self._deliver),
            *(self._collect, self._collect, self._take, self._say_part, self._say_odd, self._say_anything, self._arm),
            *(self._stop, self._close, self._end, self._quiet, self._hear, self._damage),
            *(self._all_of_it, self._all_of_it),
        )
        step, which = self._script.one_of(steps), self._script.byte() % len(self._sides)
        if self._sides[which].line is not None:
            step(self._sides[which])
        elif not self._depth:  # another one, in the same slot
            self._sides[which].close()
            self._sides[which] = self._side(self._script.byte())

    def _meanwhile(self, toy: Toy) -> object:
        """What Python code does in a call of ssl: None, and the call goes on; or what the call returns, or raises."""
        if self._armed == 0 or self._depth >= _DEEPEST:
            return None
        self._armed -= 1
        if self._armed:
            return None
        self._inner += 1
        self._depth += 1
        self._inside.append(toy)
        try:
            steps = self._script.byte() % 4
            for _ in range(steps):
                self._step()
            if not steps:  # as a rule nothing but this finds the line in the middle of something
                self._collect()
        except AssertionError as error:
            self._wrong = error
            raise
        finally:
            self._depth -= 1
            self._inside.pop()
        what = self._script.byte()
        if what > 200:
            for side in self._sides:
                side.spent |= side.far is toy
        if what > 240:
            raise self._script.one_of(
                (ValueError("odd"), KeyboardInterrupt(), ssl.SSLError(1, "bad"), ssl.SSLWantReadError())
            )
        odd: tuple[object, ...] = (bytes(513), "text", -1, 1 << 70, bytearray(3), b"", 2, bytes(20_000))
        return self._script.one_of(odd) if what > 200 else None

    def _arm(self, _: Side) -> None:
        self._armed = 1 + self._script.byte() % 3

    def _start(self, side: Side) -> None:
        line, before = side.line, self._inner
        idle = self._quiet(side)
        if side.line is None:
            return
        if not idle and self._script.byte() % 4:
            return
        if not self._depth and side.waiter is None:
            side.spent |= not idle
            side.came, side.first = b"", 0
        else:
            side.spent = True
        length = self._script.one_of((0, *LENGTHS))
        body = None if length else b"body" * (1 << self._script.byte() % 16)
        waiter = Waiter(line)
        try:
            sent = line.start(b"GET", body, OFFSET, length, waiter)
        except (RuntimeError, ValueError, TypeError, OverflowError, OSError, KeyboardInterrupt):
            side.spent = True
            return
        whole = b"GET" + (body or b"")
        if isinstance(side.far, Plain):
            side.sent += whole[:sent]
        assert sent in (0, HELD, len(whole)) or (isinstance(side.far, Plain) and 0 < sent < len(whole))
        side.asked = length
        if sent != len(whole):
            side.spent = True
            return
        side.spent |= self._inner != before
        side.waiter, side.late = waiter, not idle or self._inner != before
        self._waiting.add(waiter)

    def _say_good(self, side: Side) -> None:
        side.say(GOOD[max(side.asked, 0)])

    def _say_part(self, side: Side) -> None:
        good = GOOD[max(side.asked, 0)]
        at = self._script.number(1 + self._script.byte() % 2)
        side.say(good[:at])
        change = self._script.byte() % 4
        if change:
            side.say((b"", self._script.bytes(1), b"", self._script.one_of(_ODD))[change])
            side.say(good[at + (change == 2) :])

    def _say_odd(self, side: Side) -> None:
        side.say(self._script.one_of(_ODD))

    def _say_anything(self, side: Side) -> None:
        if isinstance(side.far, Toy):
            side.put(side.far.seal(b""), b"")
        side.say(self._script.bytes(self._script.byte()))

    def _deliver(self, side: Side) -> None:
        side.deliver(self._script.number(1 + self._script.byte() % 2))

    def _all_of_it(self, side: Side) -> None:
        side.deliver(1 << 20)
        self._collect()

    def _hear(self, side: Side) -> None:
        side.hear()

    def _quiet(self, side: Side) -> bool:
        """Also while somebody waits, which nobody does: what is collected in the middle of it is not told then."""
        before, quiet = self._inner, False
        with contextlib.suppress(ValueError, TypeError, OverflowError, OSError, KeyboardInterrupt):
            quiet = side.line.quiet()
            assert not quiet or not side.in_socket() or self._inner > before, "what came is taken for quiet"
        side.late |= self._inner > before
        return quiet and self._inner == before

    def _damage(self, side: Side) -> None:
        """What TLS notices; a toy, and what is none, would take it for what was said."""
        if isinstance(side.far, Real) and side.wire:
            at = self._script.number(2) % len(side.wire)
            side.wire = side.wire[:at] + bytes([side.wire[at] ^ 1]) + side.wire[at + 1 :]
            side.broken = True

    def _end(self, side: Side) -> None:
        how = self._script.byte() % 3
        if how == 0 and not side.ended:
            side.put(side.far.bye(), b"")
            side.deliver(1 << 20)
            side.spent |= bool(side.wire)
        if how == 1:
            side.broken = True  # what this end has sent may be unread
            side.theirs.close()
        else:
            side.theirs.shutdown(socket.SHUT_WR) if side.theirs.fileno() >= 0 else None
        side.ended = True

    def _stop(self, side: Side) -> None:
        waiter = side.line.stop()
        side.spent = True
        assert waiter is None or waiter in self._waiting, "who did not wait is given out"
        assert waiter is not None or self._depth or side.waiter is None, "who waits is not given out"
        self._gone(side, waiter)

    def _close(self, side: Side) -> None:
        line, side.line = side.line, None
        line.close()
        self._gone(side, side.waiter)
        side.ours.close()
        del line
        if self._script.byte() % 4 == 0:
            gc.collect()

    def _gone(self, side: Side, waiter: Waiter | None) -> None:
        self._waiting.discard(waiter)
        if self._depth and side.waiter is not None and side.waiter is not waiter:
            return
        if self._depth and waiter is not None and side.line is None:
            self._given.add(waiter)
        side.waiter = None

    def _collect(self, _: Side | None = None) -> None:
        for side in self._sides:
            if side.waiter is not None and not side.first:
                side.first = len(side.came)
        found: list[object] = [*self._ready.collect()]
        for waiter in found:
            assert isinstance(waiter, Waiter)
            assert waiter in self._waiting or waiter in self._given, "who did not wait is given out"
            self._waiting.discard(waiter)
            self._given.discard(waiter)
        if self._depth:
            for side in self._sides:
                assert side.waiter not in found or side.far not in self._inside, "it receives while it receives"
                side.spent |= side.waiter in found
                side.waiter = None if side.waiter in found else side.waiter
            return
        for side in self._sides:
            if side.line is None:
                continue
            if side.waiter in found:
                self._outcome(side)
            elif side.waiter is not None:
                self._still_waits(side)
        self._given.clear()

    def _still_waits(self, side: Side) -> None:
        more = select.select([self._ready], [], [], 0)[0]
        assert side.late or more or not side.in_socket(), "what came is unread, and nobody will be told"
        try:
            side.line.take()
        except RuntimeError:
            pass
        else:
            raise AssertionError("an exchange has ended, and who waits is not told")
        if more or side.spent or side.broken or side.late:
            return
        if not side.ended:
            assert not side.came or self._has_begun(side), "who waits is not told what has come"
        assert not side.ended or side.wire, "the end has come, and who waits is not told"

    def _has_begun(self, side: Side) -> bool:
        """Whether what came is a part of an answer that will be the expected one, whatever its body."""
        start = side.came.find(b"\r\n\r\n") + 4
        body = side.came[start:].ljust(side.asked, b"?")
        whole = side.came[:start] + body
        return len(whole) > len(side.came) and start > 3 and as_in_python(whole, side.asked) == (206, body, True)

    def _take(self, side: Side) -> None:
        """In the wrong moment: all that ends is taken where it is collected."""
        try:
            side.line.take()
        except RuntimeError:
            with contextlib.suppress(RuntimeError):
                side.line.begun()
            return
        except (OSError, EOFError, ValueError, TypeError, OverflowError, KeyboardInterrupt):
            pass
        assert self._depth or side.spent, "an exchange has ended, and nobody was told"
        side.spent = True

    def _outcome(self, side: Side) -> None:
        side.waiter, self._armed = None, 0
        good, asked, line = GOOD[side.asked], side.asked, side.line
        begun, body = b"", None
        try:
            body = line.take()
            if body is None:
                begun = line.begun()
                assert begun, "an odd answer of nothing"
        except EOFError:
            assert side.ended or side.spent, "an end that is none"
        except RuntimeError:
            assert side.spent, "who waits was told, but nothing has ended"
        except (OSError, ValueError, TypeError, OverflowError, KeyboardInterrupt):
            assert side.broken or side.spent, "an error that is none"
            side.spent = True
        if side.spent or side.broken:
            return
        if body is None:
            heads = good.index(b"\r\n\r\n") + 4
            in_one = isinstance(side.far, Plain) and side.first >= heads
            plain = in_one and good.startswith(side.came) and not (side.ended and side.came != good)
            assert not plain, "the expected answer is not taken for it"
            if begun:
                rest = side.read_rest()
                assert begun + rest == side.came, f"{begun!r} was read, {rest!r} was not, {side.came!r} came"
            side.spent = True
            return
        rest = side.read_rest()
        side.spent = bool(rest)
        assert side.came.endswith(rest), f"{rest!r} was not read, of {side.came!r}"
        consumed = side.came[: len(side.came) - len(rest)]
        assert as_in_python(consumed, asked) == (206 if asked else 201, body, True), "in Python it is another outcome"


def run(data: bytes) -> None:
    """Do what an input says. Raises AssertionError if something is wrong."""
    fuzzed = _Fuzzed(Script(data))
    try:
        fuzzed.run()
    finally:
        fuzzed.close()


gc.collect()
gc.freeze()  # what is there by now is not looked through each time
