"""Holders that are killed at any step: who serves, who sees its channel end, and what the next holder makes of it.

The product's own holder (device/holder/systemd.py) runs over a machine of values (holders.py). A holder is killed
before each of its steps, the next one before each of its, and so on, breadth first.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk.device.holder.holder import Holder
from tests.unit.holders import Killed, Machine, first_holder, machine, next_holder, settle, stands_by, the_worker

__all__ = ["machine"]

MOST_KILLS = 3


def the_worker_dies(machine: Machine, holder: Holder) -> None:
    the_worker(holder).alive = False
    settle(machine, holder)


def an_upgrade(machine: Machine, holder: Holder) -> None:
    holder._feed("upgrade", {"id": "1", "worker": ["new"], "path": ""})
    stands_by(holder)
    holder._feed("drained", "1", True)
    settle(machine, holder)


def an_upgrade_whose_worker_dies(machine: Machine, holder: Holder) -> None:
    an_upgrade(machine, holder)
    the_worker_dies(machine, holder)


@pytest.mark.parametrize("happens", [the_worker_dies, an_upgrade, an_upgrade_whose_worker_dies])
@pytest.mark.parametrize("together", [False, True], ids=["alone", "with its worker"])
@pytest.mark.parametrize("full", [False, True], ids=["room in /run", "a full /run"])
def test_holders_killed_at_any_step(machine: Machine, tmp_path: Path, happens: Any, together: bool, full: bool) -> None:
    """Up to MOST_KILLS of them, one after the other.

    together: the worker of a holder dies with it. full: state.json stays as it was at the commit.
    """
    machine.full_after_commit = full
    plans: deque[tuple[int, ...]] = deque([()])
    tried = 0
    while plans:
        plan = plans.popleft()
        tried += 1
        steps = live(machine, tmp_path, happens, plan, together)
        if len(plan) < MOST_KILLS:
            plans.extend((*plan, step) for step in range(steps))
    assert tried > 100


def live(machine: Machine, directory: Path, happens: Any, plan: tuple[int, ...], together: bool) -> int:
    """Let holder after holder be killed at the step of the plan; return how many steps the last, which lives, took."""
    machine.workers, machine.kept, machine.state = {}, set(), {}
    machine.full = False
    holder = first_holder(machine, directory)
    machine.full = machine.full_after_commit
    machine.steps, machine.killed_at = 0, plan[0] if plan else None
    for number in range(len(plan) + 1):
        try:
            if number == 0:
                happens(machine, holder)
            else:
                machine.killed_at = plan[number] if number < len(plan) else None
                holder = next_holder(machine)
                settle(machine, holder)
            assert number == len(plan), "the plan has more steps than there are"
        except Killed:
            named = machine.state["worker"]
            if together and named:
                machine.workers[named["pid"]].alive = False
            machine.holder_dies()
    machine.check()
    serving = [worker for worker in machine.workers.values() if worker.alive and worker.told]
    assert [worker.pid for worker in serving] == [the_worker(holder).pid], plan
    assert machine.full or machine.state["worker"]["pid"] == serving[0].pid, plan
    machine_keeps = {name for name in machine.kept if name.startswith("channel-")}
    dead = {name for name in machine_keeps if not machine.workers[int(name.split("-")[1])].alive}
    assert machine_keeps - dead == {f"channel-{serving[0].pid}-1"}, plan
    return machine.steps
