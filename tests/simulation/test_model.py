"""The model of the one-writer protocol: what is left out on purpose is found, and of the protocol as it is nothing.

Deeper: tools/model. That the code does what the model does: test_model_replay.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.modellib.holder import Holder
from tools.modellib.sabotage import SABOTAGES
from tools.modellib.scenarios import SCENARIOS
from tools.modellib.scope import Scope
from tools.modellib.search import search
from tools.modellib.settling import Settling
from tools.modellib.trace import told
from tools.modellib.world import World

ROOT = Path(__file__).resolve().parents[2]
SMALL = 15000  # states; most of the small scopes have fewer
LARGE = 100000


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_sabotage_is_found_by_a_trace_as_short_as_ever(name: str) -> None:
    sabotage = SABOTAGES[name]
    scope = sabotage.scope._replace(wrong=sabotage.scope.wrong | {name})
    found = search(World(scope), max_states=LARGE, only=sabotage.breaks).found
    assert found is not None, f"the model does not see any more that {sabotage.means}"
    lines = told(found, scope.nodes)
    assert len(found.trace) == sabotage.steps, "\n".join(lines)
    assert len(lines) == 1 + sabotage.steps


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_protocol_as_it_is_keeps_every_property(name: str) -> None:
    scope = SCENARIOS[name].small
    world = World(scope)
    result = search(world, max_states=SMALL, settles=Settling(world).fails, settle_each=200)
    assert result.found is None, "\n".join(told(result.found, scope.nodes))
    assert result.whole or result.states == SMALL


def test_a_refused_write_that_raises_no_doubt_goes_on_for_ever() -> None:
    scope = Scope(nodes=1, attached=True, versions=2, outside=1, outsiders=frozenset(("break",)), faults=0)
    world = World(scope._replace(wrong=frozenset(("no-doubt",))))
    found = search(world, settles=Settling(world).fails, settle_each=1, only="P7").found
    assert found is not None
    assert found.violation == "P7 something goes on for ever"
    world = World(scope)
    assert search(world, max_states=SMALL, settles=Settling(world).fails, settle_each=20).found is None


def test_one_worker_serves_whenever_the_holder_dies() -> None:
    result = search(Holder())
    assert result.whole
    assert result.found is None


def test_a_worker_told_to_go_on_before_its_channel_is_kept_is_found() -> None:
    found = search(Holder(frozenset(("go-before-kept",)))).found
    assert found is not None
    assert len(found.trace) == 5


def test_a_search_ends_at_its_bound_and_says_so() -> None:
    result = search(World(SCENARIOS["lapse"].small), max_states=1000)
    assert (result.states, result.whole) == (1000, False)


def test_the_command_prints_a_scenario_as_a_row_and_a_sabotage_as_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    command = [sys.executable, "-m", "tools.modellib", "--small"]
    table = subprocess.run(
        [*command, "--scenario", "carry"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert "| carry | 1 | 1 | 1 |" in table
    assert "| the end |" in table
    subprocess.run(
        [*command, "--sabotage", "no-order", "--trace", str(trace)], cwd=ROOT, check=True, capture_output=True
    )
    lines = trace.read_text().splitlines()
    assert lines[0] == "no-order: P2 a write is acknowledged, and the page has an older one"
    assert lines[1] == "  1 node A accepts a write to page 0"
