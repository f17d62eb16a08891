"""The plain lane: a read or a write that goes through the layers in two steps, where nothing has to be waited for.

Theory. Most requests have nothing to wait for but the service's answer, and that is the expected one. A coroutine in
each layer, and a task around them, is more than that takes. Such a call is a `Passage`. It goes through a lane, which a
layer offers for itself and all below it (`Store.plain_read`, `Store.plain_write`):

    begin    down through the layers, each of which says whether it has anything to wait for or to do by itself; the
             lowest sends the request; then up again, where each layer takes note of a call in progress
    ends     the expected answer is there: what each layer does after such a call, the lowest first
    rests    anything else came of it: what each layer's coroutine does from the point where it awaits the one below

So nothing is decided here that the coroutines decide otherwise: a layer that has the least doubt says NO, and the call
is made in the usual way; and what is not the expected answer becomes the rest of the coroutines, which a task runs. A
layer without a lane (None, as Store has it) is one that always says NO.

    begin --NO--> nothing happened                begin --DONE--> the call has succeeded
    begin --UNDER_WAY--> ends, then owner.ended                  whatever is expected
                     \\--> rests, then owner.take_over            all else, in a task that the owner starts

Invariants
1. `begin` has no await, and changes nothing on the way down: a NO of any layer leaves nothing to be undone. Once the
   lowest has sent, nothing can say NO, and what layers do on the way up cannot fail.
2. So all that happens between a layer's check and the sending is one step, as a layer's last check and its call of the
   next layer are in a coroutine; and what a layer notes before it awaits in a coroutine is noted in that step.
3. A passage under way ends once: by `succeed` or `hand_over`. Both are called by the lowest layer, never within begin:
   what comes to an end in there is left as `rest`, for `launch`.
4. `ends` have no await and run in one step, with the owner's `ended`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from blobfuse_dysk.store.contract import Buffer

__all__ = ["DONE", "NO", "UNDER_WAY", "Begin", "Lane", "Owner", "Passage", "Rest", "begin_of", "launch"]

NO: Final = 0
UNDER_WAY: Final = 1
DONE: Final = 2

Rest: TypeAlias = Coroutine[Any, Any, Any]
"""What is left of a call in some layer; returns what the call returns."""


class Owner(Protocol):
    """Who makes a call, and what becomes of it if begin said UNDER_WAY: one of these, once. Neither raises."""

    def ended(self, passage: Passage) -> None:
        """The call has succeeded; `passage.result` is what a read returns."""

    def take_over(self, passage: Passage, rest: Rest) -> None:
        """Have `rest`, which is what is left of the call, run by a task."""


class Passage:
    """One call. Each layer keeps what it has to know of it in a slot of its own.

    data: of a write, as in Store.write; None for a read. started, ended: trio's time. tag: the owner's.
    """

    __slots__ = (
        "call",
        "data",
        "ended",
        "epoch",
        "lane",
        "length",
        "offset",
        "owner",
        "rest",
        "result",
        "started",
        "tag",
        "ticket",
    )
    call: Any  # Retry
    ticket: Any  # Order
    epoch: int  # PageBlob
    ended: float

    def __init__(
        self, lane: Lane, owner: Owner, tag: Any, offset: int, length: int, data: Buffer | None, started: float
    ) -> None:
        self.lane = lane
        self.owner = owner
        self.tag = tag
        self.offset = offset
        self.length = length
        self.data = data
        self.started = started
        self.rest: Rest | None = None
        self.result: Buffer | None = None

    def succeed(self, result: Buffer, now: float) -> None:
        """The expected answer came. result: the data of a read."""
        self.result = result
        self.ended = now
        for end in self.lane.ends:
            end(self)
        self.owner.ended(self)

    def hand_over(self, rest: Rest) -> None:
        """Something else came. rest: what the lowest layer's coroutine would do now."""
        for layer in self.lane.rests:
            rest = layer(self, rest)
        self.owner.take_over(self, rest)


Begin: TypeAlias = Callable[[Passage], int]


class Lane:
    """A layer's, and of all below it. begin: NO, UNDER_WAY or DONE. ends, rests: the lowest layer's first."""

    __slots__ = ("begin", "ends", "rests")

    def __init__(
        self,
        begin: Begin,
        ends: tuple[Callable[[Passage], None], ...] = (),
        rests: tuple[Callable[[Passage, Rest], Rest], ...] = (),
    ) -> None:
        self.begin = begin
        self.ends = ends
        self.rests = rests

    def under(
        self,
        begin: Begin,
        end: Callable[[Passage], None] | None = None,
        rest: Callable[[Passage, Rest], Rest] | None = None,
    ) -> Lane:
        """The lane of a layer above. end, rest: None where it does nothing after the call."""
        return Lane(begin, (*self.ends, end) if end else self.ends, (*self.rests, rest) if rest else self.rests)


def begin_of(lane: Lane | None) -> Begin:
    """What begins in a lane; says NO if there is none."""
    return lane.begin if lane else _no


def _no(_: Passage) -> int:
    return NO


def launch(passage: Passage) -> int:
    """Begin a call; what `begin` says."""
    began = passage.lane.begin(passage)
    if began == UNDER_WAY and passage.rest is not None:
        rest, passage.rest = passage.rest, None
        passage.hand_over(rest)
    return began
