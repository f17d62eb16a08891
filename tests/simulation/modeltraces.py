"""Traces of the model that can be done to the real code: drawn at random, to each kind of step, and directed.

A directed trace follows the shortest violation of a sabotaged model as far as the protocol as it is goes along, and
then lets everything come to an end: there the code must do what the model does, not what the sabotage would.
"""

from __future__ import annotations

from random import Random

from tools.modellib import layout
from tools.modellib.layout import FOREVER, Request, node_base
from tools.modellib.sabotage import SABOTAGES
from tools.modellib.scope import Scope
from tools.modellib.search import Step, covering, search
from tools.modellib.world import Move, World

__all__ = ["NOT_DONE", "all_kinds", "directed", "walk"]

Trace = list[tuple[Step, bytes]]
EAGER = ("send", "raise", "renew", "worker")  # the store does these at once
CALM = ("serve", "answer", "late", "tick")  # what lets everything come to an end
CALM_STEPS, FEW_STEPS = 30, 4  # after a directed trace; to see what the code concludes from a step
ROUNDS, RAISES, LATE = 3, 4, 8  # looks and raises that model and code count alike; room for all requests that are late
NOT_DONE = {
    "no-wait-for-last-moment": "last moments are of whole seconds, from the blob's last change on",
    "map-early": "lists of pages",
    "freed-early": "lists of pages",
}
"""Sabotages whose traces are not done to the real code, and why."""


class Doable(World):
    """The model's moves that can be done to the real code; what the store does at once comes at once."""

    def moves(self, state: bytes) -> list[Move]:
        moves = [move for move in super().moves(state) if not self._cannot(move[0], state)]
        return [move for move in moves if self._is_eager(move[0])] or moves

    def _is_eager(self, step: Step) -> bool:
        return step[0] in EAGER and not (step[0] == "worker" and self.scope.adopt)

    def _cannot(self, step: Step, state: bytes) -> bool:
        """Whether the real code cannot be brought to do this here: a cancelled attach takes back."""
        if step[0] == "tick":
            return step[1] != -1 and self.scope.nodes > 1  # the nodes have one clock
        if step[0] == "renew" and not self.scope.time:
            return bool(state[node_base(int(str(step[1]))) + layout.LEFT])
        return step[0] == "kill" and state[node_base(int(str(step[1]))) + layout.PHASE] < layout.LIVE


class Bounded(Doable):
    """Ends where the model's bounds are not the code's: it looks more often, raises on, and more of it is late.

    Also where an endless lease is held: the code asks now and then whether it still is.
    """

    def moves(self, state: bytes) -> list[Move]:
        if state[self.network.end - layout.SLOT]:
            return []
        for base in self.bases:
            due = state[base + layout.DUE] and state[base + layout.LEFT] and not state[base + layout.RAISE]
            if state[base + layout.ROUNDS] >= self.scope.rounds or (due and not self.live.may_raise(state, base)):
                return []
            if self.scope.time and state[base + layout.PHASE] == layout.LIVE and state[base + layout.HELD] == FOREVER:
                return []
        return super().moves(state)


def walk(scope: Scope, random: Random, most: int = 60) -> Trace:
    """A trace drawn at random."""
    world = Bounded(scope)
    state = world.first()
    trace: Trace = []
    while len(trace) < most and (moves := world.moves(state)):
        step, state, violation = random.choice(moves)
        assert not violation, violation
        trace.append((step, state))
    return trace


def all_kinds(scope: Scope, max_states: int) -> list[Trace]:
    """Traces to each kind of step: what happens, to which request, with which outcome, in which phase, to what end."""

    def kind(step: Step, before: bytes, after: bytes) -> object:
        if step[0] in ("tick", "outsider"):
            phases = tuple((before[base], before[base + layout.LEFT]) for base in world.bases)
            return step[0], before[layout.LEASE], after[layout.LEASE], phases
        if step[0] == "late":
            request = step[1]
            assert isinstance(request, Request)
            base = node_base(request.node)
            return "late", request.kind, request.cond, before[base], before[layout.LEASE], after[layout.LEASE]
        base = node_base(int(str(step[1])))
        call = base + int(str(step[2])) if step[0] in ("serve", "answer", "lose") else base + layout.CALL
        facts = (layout.DUE, layout.TAKEN, layout.AGAIN)
        told = tuple(after[base + at] for at in facts)
        tag = layout.tag(before[layout.NUMBER]) == before[base + layout.TAG]
        return step[0], before[base], after[base], before[call], before[call + 1], after[call], tag, told

    world = Bounded(scope)
    return [trace + _calm(world, trace[-1][1], FEW_STEPS) for trace in covering(world, kind, max_states=max_states)]


def directed(name: str) -> tuple[Scope, Trace]:
    """The scope and the trace of a sabotage, in the protocol as it is."""
    sabotage = SABOTAGES[name]
    wrong = Doable(sabotage.scope._replace(wrong=sabotage.scope.wrong | {name}))
    found = search(wrong, only=sabotage.breaks, max_states=100000).found
    assert found is not None, f"no trace that can be done shows that {sabotage.means}"
    scope = sabotage.scope._replace(wrong=frozenset(), overwrite=False, rounds=ROUNDS, raises=RAISES, late=LATE)
    world = Bounded(scope)
    state = world.first()
    trace: Trace = []
    for step, _ in found.trace:
        while moves := world.moves(state):
            same = next((move for move in moves if _same(move[0], step)), None)
            move = same or next((move for move in moves if move[0][0] in EAGER), None)
            if move is None:
                break
            state = move[1]
            trace.append((move[0], state))
            if same:
                break
    return scope, trace + _calm(world, state, CALM_STEPS)


def _calm(world: World, state: bytes, most: int) -> Trace:
    """How everything comes to an end from here, or the beginning of that: nothing more is lost or begun."""
    trace: Trace = []
    while len(trace) < most:
        calm = [move for move in world.moves(state) if move[0][0] in (*EAGER, *CALM)]
        if not calm:
            break
        step, state, _ = min(calm, key=lambda move: (*EAGER, *CALM).index(str(move[0][0])))
        trace.append((step, state))
    return trace


def _same(step: Step, other: Step) -> bool:
    """Whether a step of one model is that of the other, which need not agree on what is known of ETags."""
    one, two = step[-1], other[-1]
    if isinstance(one, Request) and isinstance(two, Request):
        return one._replace(cond=0) == two._replace(cond=0)
    return step == other
