"""Holders in a world where anything happens at any time, also that they are killed: see holderworld.py.

At no time do two workers serve, is a descriptor lost or closed twice, or is a worker told to serve that the next holder
would not find. Once nothing more happens from outside, each attachment is well or ended before long.
DYSK_TEST_EXAMPLES=5000 looks longer.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.unit.holderkernel import READY, Process
from tests.unit.holderworld import DEVICE, World

EXAMPLES = int(os.environ.get("DYSK_TEST_EXAMPLES", "60"))
MOST_TURNS = 300

failure = {"type": "DeviceError", "message": "no", "remedy": None}
ids = st.sampled_from(["1", "2"])
programs = st.sampled_from(["good", "good", "serve", "go", "standby", "missing"])
events: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just(READY),
    st.builds(lambda name: {"event": "state", "state": name}, st.sampled_from(["attached", "recovering", "fenced"])),
    st.just({"event": "state", "lost": "a write"}),
    st.just({"event": "released"}),
    st.builds(lambda i, program: {"event": "upgrade", "id": i, "worker": [program], "path": "p"}, ids, programs),
    st.just({"event": "config"}),
    st.builds(lambda i, drained: {"event": "drain", "id": i, "drained": drained}, ids, st.booleans()),
    st.just({"event": "error", "error": failure}),
    st.builds(lambda aborted: {"event": "ended", "aborted": aborted}, st.booleans()),
    st.just({"event": "standing-by"}),
    st.just({"event": "drain"}),
)
rarely = st.integers(0, 7).map(lambda number: number == 7)


class Holders(RuleBasedStateMachine):
    """Each rule is something that happens to the holder, or one turn of its loop."""

    world: World

    @initialize(
        kept=st.sampled_from([True, True, False]),
        requests=st.sampled_from(["resent", "kept", "lost"]),
        timeout=st.sampled_from([None, 30.0]),
        attached=st.sampled_from([True, True, True, False]),
    )
    def begin(self, kept: bool, requests: str, timeout: float | None, attached: bool) -> None:
        """requests: those of a worker that died."""
        self.world = World(kept=kept, can_resend=requests == "resent", keeps=requests == "kept", io_timeout_s=timeout)
        if attached:
            self.settle(attach=True, turns=20)
            assert "committed" in self.world.answers

    def living(self) -> list[Process]:
        return [process for process in self.world.processes.values() if process.alive]

    @rule(times=st.integers(1, 4))
    def turns(self, times: int) -> None:
        for _ in range(times):
            self.world.turn()

    @rule(data=st.data(), times=st.integers(1, 3))
    def a_worker_goes_on(self, data: st.DataObject, times: int) -> None:
        for _ in range(times):
            if workers := self.living():
                data.draw(st.sampled_from(workers), "worker").goes_on()

    @rule(event=events, data=st.data(), rare=rarely)
    def a_worker_says_anything(self, event: dict[str, Any], data: st.DataObject, rare: bool) -> None:
        if (workers := self.living()) and (rare or event["event"] != "ended"):
            worker = data.draw(st.sampled_from(workers), "worker")
            if event["event"] == "ready" and worker.program != "good":
                return  # what says that it serves, and never does, is rightly started again for ever
            worker.says(event, fd=event.get("event") == "config")

    @rule(request_id=ids, program=programs)
    def another_program_is_asked_for(self, request_id: str, program: str) -> None:
        """By the worker that serves, as it does when it is told to."""
        for worker in self.living():
            if worker.ready:
                worker.says({"event": "upgrade", "id": request_id, "worker": [program], "path": "p"})

    @rule(turns=st.integers(1, 8))
    def all_goes_on(self, turns: int) -> None:
        self.settle(attach=True, turns=turns)

    @rule(data=st.data())
    def a_worker_dies(self, data: st.DataObject) -> None:
        if workers := self.living():
            data.draw(st.sampled_from(workers), "worker").alive = False

    @rule(data=st.data())
    def a_worker_is_stuck(self, data: st.DataObject) -> None:
        if workers := self.living():
            data.draw(st.sampled_from(workers), "worker").stuck = True

    @precondition(lambda self: self.world.attacher_alive)
    @rule(order=st.sampled_from([{"op": "commit", "device": DEVICE}, {"op": "abandon"}, {"op": "command"}]))
    def the_attaching_process_says_anything(self, order: dict[str, Any]) -> None:
        self.world.attacher.inbox.append((order, False))

    @precondition(lambda self: self.world.attacher_alive)
    @rule()
    def the_attaching_process_dies(self) -> None:
        self.world.attacher_alive = False

    @precondition(lambda self: "ready" in self.world.answers and not self.world.over)
    @rule(rare=rarely, device=st.sampled_from([DEVICE, None]))
    def the_device_changes(self, rare: bool, device: str | None) -> None:
        if rare:
            self.world.device = device

    @rule(rare=rarely)
    def a_signal(self, rare: bool) -> None:
        self.world.signalled += rare

    @rule(full=st.booleans())
    def run_is_full(self, full: bool) -> None:
        self.world.full = full
        self.world.was_full |= full

    @rule(seconds=st.sampled_from([0.1, 4.0, 9.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(steps=st.integers(0, 12))
    def the_holder_will_be_killed(self, steps: int) -> None:
        if self.world.holder:
            self.world.kill_at = self.world.steps + steps

    @precondition(lambda self: self.world.holder is None and not self.world.over)
    @rule(steps=st.one_of(st.none(), st.integers(0, 12)))
    def another_holder(self, steps: int | None) -> None:
        self.world.kill_at = None if steps is None else self.world.steps + steps
        self.world.next_holder()

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        if hasattr(self, "world"):
            self.world.check_holder()

    def settle(self, *, attach: bool, turns: int) -> bool:
        """Whoever is there does what it has to do. Whether it came to an end within so many turns."""
        world = self.world
        for _ in range(turns):
            if world.over:
                return True
            if world.holder is None:
                world.next_holder()
                continue
            busy = [worker.goes_on() for worker in self.living()]
            if world.asked_to_let_go and world.device:
                world.device, world.asked_to_let_go = None, False
                for worker in self.living():
                    if worker.told:
                        worker.says({"event": "released"})
            if attach and world.attacher_alive and world.answers[-1:] == ["ready"] and not world.attacher.inbox:
                world.device = DEVICE
                world.attacher.inbox.append(({"op": "commit", "device": DEVICE}, False))
            world.check_holder()
            if not world.turn() and not any(busy):
                return True
        return False

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        try:
            world.kill_at, world.full = None, False
            for worker in self.living():
                worker.stuck = False
            if world.attacher_alive and "ready" in world.answers and "committed" not in world.answers:
                world.attacher_alive = False  # whatever it was going to do
            assert self.settle(attach=True, turns=MOST_TURNS), "it never ends"
            if world.attacher_alive and world.holder and world.holder._lifecycle.phase == "prepared":
                world.attacher_alive = False  # what it said was refused, and it says no more
                assert self.settle(attach=False, turns=MOST_TURNS), "it never ends"
            self.judge()
        finally:
            world.patch.undo()

    def judge(self) -> None:
        """All is quiet."""
        world = self.world
        if world.over:
            assert not self.living(), "a process is left"
            return
        holder = world.holder
        assert holder
        life = holder._lifecycle
        if life.phase == "failed":
            assert world.device, "nobody holds it, and it does not end"
            assert not self.living()
            world.device = None
            assert self.settle(attach=False, turns=5)
            assert world.over
            return
        assert life.phase == "attached", life.phase
        (worker,) = self.living()
        assert worker.told
        assert worker.ready
        assert not worker.held, "it stands still"
        assert worker.program == "good"
        assert life.handover.phase in ("idle", "proving")
        assert life.deadline is None
        assert world.state
        assert world.was_full or world.state["worker"]["pid"] == worker.pid


def test_whatever_happens_to_a_holder() -> None:
    run_state_machine_as_test(
        Holders,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),  # to explain takes minutes
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


@pytest.mark.parametrize("first_dies", [True, False])
def test_a_configuration_of_one_that_has_no_disk_yet_is_no_descriptor_lost(first_dies: bool) -> None:
    """A new worker sends one before its turn. Found by the machine above."""
    state = Holders()
    state.begin(kept=True, requests="kept", timeout=None, attached=True)
    (first,) = state.living()
    state.another_program_is_asked_for("1", "good")
    state.turns(1)
    new = next(worker for worker in state.living() if worker is not first)
    first.alive = not first_dies
    new.says({"event": "config"}, fd=True)
    state.turns(1)
    state.all_is_as_it_must_be()
    state.teardown()


@pytest.mark.parametrize("requests", ["resent", "kept", "lost"])
@pytest.mark.parametrize("holder_dies", [False, True])
def test_a_worker_dies_with_its_requests(requests: str, holder_dies: bool) -> None:
    """Alone, or with the holder. The next one gets them wherever they are, or all I/O fails."""
    state = Holders()
    state.begin(kept=True, requests=requests, timeout=None, attached=True)
    for _ in range(2):
        for worker in state.living():
            worker.alive = False
        if holder_dies:
            state.the_holder_will_be_killed(0)
        state.settle(attach=True, turns=20)
    over, holder = state.world.over, state.world.holder
    state.teardown()
    assert over is (requests == "lost")
    assert over or (holder and holder._lifecycle.phase == "attached")
