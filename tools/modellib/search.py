"""Breadth first through all states, so that the first violation found has a trace as short as any."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import NamedTuple, Protocol

__all__ = ["Found", "Result", "Step", "System", "covering", "search"]

Step = tuple[object, ...]


class System(Protocol):
    """What can be searched: states are hashable, moves are (step, state, violation or "")."""

    def first(self) -> bytes: ...

    def moves(self, state: bytes) -> list[tuple[Step, bytes, str]]: ...


class Found(NamedTuple):
    """A violation, and how it comes about: (step, state after it), from the first state on."""

    violation: str
    first: bytes
    trace: list[tuple[Step, bytes]]


class Result(NamedTuple):
    """states, transitions: how much was looked at. depth: so long traces are all. whole: there are no more."""

    states: int
    transitions: int
    depth: int
    whole: bool
    seconds: float
    found: Found | None


def search(
    system: System,
    *,
    max_states: int = 1000000,
    only: str = "",
    settles: Callable[[bytes], str] | None = None,
    settle_each: int = 50,
) -> Result:
    """Look at up to max_states states; stop at the first violation that begins with `only`.

    settles: is asked about every settle_each-th state; returns the violation, or "".
    """
    began = time.monotonic()
    first = system.first()
    states: list[bytes] = [first]
    known: dict[bytes, None] = {first: None}
    parents = array("L", [0])
    transitions = depth = index = 0
    level_ends = 1
    whole = True
    while index < len(states):
        if index == level_ends:
            if whole:
                depth += 1
            level_ends = len(states)
        state = states[index]
        if settles is not None and index % settle_each == 0:
            violation = settles(state)
            if violation:
                found = Found(violation, first, _trace(system, states, parents, index))
                return Result(len(states), transitions, depth, False, time.monotonic() - began, found)
        for step, after, violation in system.moves(state):
            transitions += 1
            if violation and violation.startswith(only):
                trace = [*_trace(system, states, parents, index), (step, after)]
                found = Found(violation, first, trace)
                return Result(len(states), transitions, depth, False, time.monotonic() - began, found)
            if after not in known:
                if len(states) >= max_states:
                    whole = False
                    continue
                known[after] = None
                states.append(after)
                parents.append(index)
        index += 1
    return Result(len(states), transitions, depth, whole, time.monotonic() - began, None)


def covering(
    system: System, key: Callable[[Step, bytes, bytes], object], *, max_states: int
) -> list[list[tuple[Step, bytes]]]:
    """Traces, as short as any, to one step of each key(step, state before, state after) among so many states."""
    states, parents = [system.first()], array("L", [0])
    known, keys, traces = {states[0]}, set(), []
    index = 0
    while index < len(states):
        state = states[index]
        for step, after, _ in system.moves(state):
            what = key(step, state, after)
            if what not in keys:
                keys.add(what)
                traces.append([*_trace(system, states, parents, index), (step, after)])
            if after not in known and len(states) < max_states:
                known.add(after)
                states.append(after)
                parents.append(index)
        index += 1
    return traces


def _trace(system: System, states: list[bytes], parents: array[int], index: int) -> list[tuple[Step, bytes]]:
    """The steps from the first state to states[index]: made again, since keeping them would cost too much."""
    path = []
    while index:
        path.append(index)
        index = parents[index]
    trace, state = [], states[0]
    for target in reversed(path):
        for step, after, _ in system.moves(state):
            if after == states[target]:
                trace.append((step, after))
                state = after
                break
    return trace
