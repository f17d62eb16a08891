"""The real attach, fence and release do what the model does, step by step, in traces drawn at random.

A trace that fails is printed in sentences, with what differs at its end.
"""

from __future__ import annotations

import math
from random import Random

import pytest
import trio
from trio.testing import MockClock

from tests.unit.modelreplay import Replay, all_kinds, walk
from tools.modellib.layout import FOREVER
from tools.modellib.scope import Scope
from tools.modellib.search import Step

BASE = Scope(versions=3, faults=2, time=False, rounds=3)
SCOPES = {
    "alone": BASE._replace(nodes=1, faults=3),
    "workers": BASE._replace(nodes=1, kills=2),
    "plain": BASE._replace(failures=True),
    "break": BASE._replace(force=frozenset((1,)), failures=True),
    "users id": BASE._replace(kills=1, shared_id=True, failures=True),
    "infinite": BASE._replace(terms=(FOREVER, FOREVER), failures=True),
    "users id, infinite": BASE._replace(shared_id=True, terms=(FOREVER, FOREVER), kills=1),
}
WALKS, STATES = 8, 6000


async def replayed(scope: Scope, trace: list[tuple[Step, bytes]], clock: MockClock) -> None:
    clock.autojump_threshold = math.inf
    async with trio.open_nursery() as nursery:
        try:
            await Replay(scope, nursery, clock).run(trace)
        finally:
            clock.autojump_threshold = 0  # what is being given up takes its time
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", SCOPES)
@pytest.mark.parametrize("seed", range(WALKS))
async def test_the_code_does_what_the_model_does(name: str, seed: int, mock_clock: MockClock) -> None:
    scope = SCOPES[name]
    await replayed(scope, walk(scope, Random(seed)), mock_clock)


@pytest.mark.parametrize("name", SCOPES)
async def test_the_code_does_each_kind_of_step_as_the_model_does(name: str, mock_clock: MockClock) -> None:
    scope = SCOPES[name]
    for trace in all_kinds(scope, STATES):
        await replayed(scope, trace, mock_clock)
