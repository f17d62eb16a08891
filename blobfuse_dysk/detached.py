"""Tasks that are run by what they wait for, as long as nothing out of the ordinary happens.

trio takes some microseconds to have a task wait and go on: an object for the wait, a place in the queue, a round of its
scheduler. A request to a disk waits twice, for the kernel's request and for the service's answer, each time for one
thing only, and whoever has that thing could as well go on with the task's coroutine at once. trio allows that: a
coroutine can be detached from its scheduler, run by somebody else, and be attached again
(trio.lowlevel.temporarily_detach_coroutine_object). A task of this kind is a task of trio like any other, with its
nursery, its cancel scopes and its contexts. Between two waits it is in one of two modes:

    attached   trio runs it, and all of trio can be used
    detached   `go_on` runs it, in the step of the task that called that, and nothing of trio may be used that knows
               which task is running: no await of trio's, no cancel scope, no nursery opened. What only wakes, starts or
               tells the time may be: Event.set, start_soon, current_time. `await attach()` leads back to the first mode

    attached --wait--> waiting --go_on--> detached --wait--> waiting           a whole request, as a rule
                       waiting --wake, cancellation--> attached                by trio's scheduler
                                          detached --attach--> attached        costs one round of the scheduler

Invariants
1. One coroutine at a time is run by `go_on`, and `running()` is its task; None says that trio runs what runs. What a
   detached task has go on is run as soon as that one has paused, in the order of the calls (`_next`). `_next` is empty
   whenever trio goes on with another task.
2. Whatever a layer does when a request is not plain begins with `await attach()`: each place that waits, or has a
   cancel scope. It does nothing where the task is attached, so no layer has to know who calls it.
3. A detached task gives control back by `wait` or `attach` only. Anything else (an await of trio's without attach, the
   end of the task, an exception) would leave trio's books wrong, so it ends this process (invariant.py), as other
   broken invariants do: the next worker goes on with all that was accepted.
4. A waiting task goes on once: the first of `go_on`, `wake` and trio's cancellation, at which `on_cancel` is called so
   that nobody keeps it, makes it no longer waiting, and the others do nothing. (trio's advice not to answer
   Abort.SUCCEEDED is for coroutines that would not know what trio sends them; `wait` does.)
5. A task that is cancelled while it is detached, or is in `_next` with what it was given, attaches itself at its next
   wait, where the cancellation strikes.

Source: https://trio.readthedocs.io/en/stable/reference-lowlevel.html, "Handing off live coroutine objects".
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import outcome
from trio.lowlevel import (
    Abort,
    current_task,
    reattach_detached_coroutine_object,
    reschedule,
    temporarily_detach_coroutine_object,
)

from blobfuse_dysk.invariant import broken

__all__ = ["Detached", "attach", "run_next", "running"]

_running: Detached | None = None
_next: deque[tuple[Detached, object]] = deque()


class Detached:
    """The running task, which makes one of these for itself, when it is attached, before its first wait."""

    __slots__ = ("_cancelled", "_on_cancel", "_send", "_task", "_waits")

    def __init__(self) -> None:
        self._task = current_task()
        self._send: Callable[[Any], object] = self._task.coro.send
        self._on_cancel: Callable[[], object] = _nothing
        self._cancelled = False
        self._waits = False

    @types.coroutine
    def wait(self, on_cancel: Callable[[], object]) -> Generator[Any, Any, Any]:
        """Wait for `go_on` or `wake`; return what that one gives. To be called by this task.

        on_cancel: sees to it that neither is called any more; in the step in which trio cancels the wait.
        """
        if self._cancelled:
            yield from self.attach().__await__()
        self._on_cancel = on_cancel
        self._waits = True
        if _running is not None:
            given = yield _WAITS
        else:
            given = yield from self._leave().__await__()
        kind = type(given)
        return given.unwrap() if kind is outcome.Value or kind is outcome.Error else given

    def go_on(self, given: object) -> None:
        """Run the task, which waits, until it waits again, or attaches itself. Does nothing if it was cancelled.

        Called by a detached task it returns at once: see invariant 1.
        """
        if _running is not None:
            self.go_on_next(given)
        elif self._waits:
            self._waits = False
            self._step(given)
            run_next()

    def go_on_next(self, given: object) -> None:
        """`go_on` in the next `run_next`, for who wakes several: none of them runs until all are no longer waiting."""
        if self._waits:
            self._waits = False
            _next.append((self, given))

    def _step(self, given: object) -> None:
        global _running
        _running = self
        try:
            paused = self._send(given)
        except BaseException as error:
            broken(f"a detached task ended: {error!r}")
        finally:
            _running = None
        if paused is not _WAITS:
            broken(f"a detached task awaits {paused!r}")

    def wake(self, given: outcome.Outcome[Any]) -> None:
        """Have trio run the task, which waits, in its next round: attached. Does nothing if it was cancelled."""
        if self._waits:
            self._waits = False
            reschedule(self._task, given)

    async def attach(self) -> None:
        """See `attach`."""
        self._cancelled = False
        await reattach_detached_coroutine_object(self._task, _WAITS)

    async def _leave(self) -> object:
        return await temporarily_detach_coroutine_object(self._cancel)

    def _cancel(self, _: object) -> Abort:
        if _running is self or any(task is self for task, _ in _next):
            self._cancelled = True
            return Abort.FAILED
        self._waits = False
        self._on_cancel()
        return Abort.SUCCEEDED


def run_next() -> None:
    """Have go on who is to; nothing if a detached task runs: then they follow it anyway."""
    if _running is None:
        while _next:
            task, given = _next.popleft()
            task._step(given)


def running() -> Detached | None:
    """The task that runs detached; None if trio runs what runs."""
    return _running


async def attach() -> None:
    """From here on trio runs the calling task; what follows may use all of it. Does nothing if that is so already."""
    if _running is not None:
        await _running.attach()


class _Waits:
    """What a detached task yields."""


_WAITS = _Waits()


def _nothing() -> None:
    pass
