"""The real attach, fence and release do what the model does, step by step, in traces drawn at random.

A trace that fails is printed in sentences, with what differs at its end.
"""

from __future__ import annotations

import math
from random import Random

import pytest
import trio
from trio.testing import MockClock

from tests.simulation.modelreplay import Replay, patient
from tests.simulation.modeltraces import NOT_DONE, all_kinds, directed, walk
from tests.suspension import Suspend
from tools.modellib.layout import FOREVER
from tools.modellib.sabotage import SABOTAGES
from tools.modellib.scope import Scope
from tools.modellib.search import Step

BASE = Scope(versions=3, faults=2, time=False, rounds=3, raises=4, late=8)
TIME = BASE._replace(time=True)
SCOPES = {
    "alone": BASE._replace(nodes=1, faults=3),
    "workers": BASE._replace(nodes=1, kills=2),
    "plain": BASE._replace(failures=True),
    "break": BASE._replace(force=frozenset((1,)), failures=True),
    "users id": BASE._replace(kills=1, shared_id=True, failures=True),
    "infinite": BASE._replace(terms=(FOREVER, FOREVER), failures=True),
    "users id, infinite": BASE._replace(shared_id=True, terms=(FOREVER, FOREVER), kills=1),
    "lapses": TIME._replace(nodes=1, faults=2, attached=True, terms=(1,)),
    "lapses of workers": TIME._replace(nodes=1, kills=2, attached=True, terms=(2,)),
    "lapses, plain": TIME._replace(attached=True, terms=(1, 2), failures=True),
    "lapses, break": TIME._replace(attached=True, terms=(2, 1), force=frozenset((1,)), failures=True),
    "lapses, users id": TIME._replace(attached=True, shared_id=True, kills=1, terms=(2, 1)),
    "users id, terms": TIME._replace(
        attached=True, shared_id=True, versions=0, detach=False, faults=1, lossy=frozenset(("acquire",)), terms=(2, 1)
    ),
    "adopt": TIME._replace(attached=True, kills=2, adopt=True, terms=(1, 2)),
    "outsiders": TIME._replace(nodes=1, attached=True, outside=1, outsiders=frozenset(("break", "write", "copy"))),
    "suspended": TIME._replace(nodes=1, attached=True, suspends=2, terms=(1,)),
    "infinite, lapses": TIME._replace(nodes=1, terms=(FOREVER,), failures=True),
}
WALKS, STATES = 8, 4000


@pytest.fixture(autouse=True)
def no_end_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long things take is the model's to say."""
    patient(monkeypatch)


async def replayed(scope: Scope, trace: list[tuple[Step, bytes]], clock: MockClock, suspend: Suspend) -> None:
    clock.autojump_threshold = math.inf
    async with trio.open_nursery() as nursery:
        replay = Replay(scope, nursery, clock, suspend)
        try:
            await replay.run(trace)
        finally:
            replay.end()
            clock.autojump_threshold = 0  # what is being given up takes its time
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", SCOPES)
@pytest.mark.parametrize("seed", range(WALKS))
async def test_the_code_does_what_the_model_does(name: str, seed: int, mock_clock: MockClock, suspend: Suspend) -> None:
    scope = SCOPES[name]
    await replayed(scope, walk(scope, Random(seed)), mock_clock, suspend)


@pytest.mark.parametrize("name", SCOPES)
async def test_the_code_does_each_kind_of_step_as_the_model_does(
    name: str, mock_clock: MockClock, suspend: Suspend
) -> None:
    scope = SCOPES[name]
    for trace in all_kinds(scope, STATES):
        await replayed(scope, trace, mock_clock, suspend)


@pytest.mark.parametrize("name", [name for name in SABOTAGES if name not in NOT_DONE])
async def test_the_code_keeps_the_rule_where_the_sabotaged_model_breaks_it(
    name: str, mock_clock: MockClock, suspend: Suspend
) -> None:
    scope, trace = directed(name)
    await replayed(scope, trace, mock_clock, suspend)
