"""The tables of a holder's machines, and what comes of events at times when nobody expects them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from blobfuse_dysk.device.holder.handover import Handover
from blobfuse_dysk.device.holder.lifecycle import Lifecycle
from blobfuse_dysk.device.holder.machine import Machine, Worker
from blobfuse_dysk.device.ipc.messages import Program
from tests.unit.states import a_state

COMMAND: Program = {"worker": ["old"], "environment": {}}
ALL = {
    Lifecycle: {"starting", "prepared", "attached", "ending", "withdrawn", "ended", "failed"},
    Handover: {"idle", "loading", "draining", "switching", "starting", "proving"},
}


@pytest.mark.parametrize("machine", ALL)
def test_each_event_has_an_outcome_in_each_phase(machine: type[Machine]) -> None:
    used = set()
    for event, outcomes in machine.TABLE.items():
        assert outcomes.keys() == ALL[machine], event
        for outcome in set(outcomes.values()) - {".", "-"}:
            method = getattr(machine, f"_{outcome}")
            assert list(inspect.signature(method).parameters)[:2] == ["self", "now"], outcome
            used.add(outcome)
    assert used


@pytest.mark.parametrize("machine", ALL)
def test_what_others_can_do_at_any_time_is_never_an_error_of_ours(machine: type[Machine]) -> None:
    """What a process says, that it dies, that time passes. Only answers to our own actions come at their time."""
    ours = {
        Lifecycle: {"made", "not_made", "taken_up", "written", "not_written", "started", "not_started", "device"},
        Handover: {"standby", "no_standby", "standing_by", "gave_up", "new_died"},  # there is such a process, or not
    }
    for event, outcomes in machine.TABLE.items():
        assert ("-" in outcomes.values()) is (event in ours[machine]), event


class Life:
    """A lifecycle and the fields of state.json; what it does is kept."""

    def __init__(self, *, io_timeout_s: float | None = None) -> None:
        self.fields: Any = a_state(state="starting", device=None, io_timeout_s=io_timeout_s)
        self.now = 100.0
        self.machine = Lifecycle(self.fields, Worker(1, self.now, first=True), Handover(COMMAND, {}))
        self.done: list[tuple[Any, ...]] = []
        self.tell("made", True)

    def tell(self, *event: Any) -> list[tuple[Any, ...]]:
        actions = self.machine.step(event, self.now)
        for action in actions:
            if action[0] in ("save", "note"):
                self.fields.update(action[1])
        return actions

    def prepared(self) -> Life:
        self.tell("ready", {"size": 512}, False)
        return self

    def attached(self) -> Life:
        self.prepared()
        assert self.tell("commit", "/dev/loop0", "/dev/loop0") == [("commit", "/dev/loop0")]
        self.fields |= {"state": "attached", "device": "/dev/loop0"}
        self.tell("written", "/dev/loop0")
        return self

    def failed_with_a_worker(self) -> Life:
        """By io-timeout. It is killed, and what it said before is heard yet."""
        self.attached()
        self.tell("died", "killed")
        self.tell("time")
        self.tell("started", 2)
        self.now += 31
        self.tell("time")
        assert self.machine.phase == "failed"
        return self

    def failed(self) -> Life:
        self.attached()
        self.tell("ended", True)
        self.tell("died", "exit status 0")
        assert self.machine.phase == "failed"
        return self


def names(actions: list[tuple[Any, ...]]) -> list[str]:
    return [action[0] for action in actions]


def test_a_commit_is_kept_before_it_is_answered() -> None:
    life = Life().prepared()
    life.tell("commit", "/dev/loop0", "/dev/loop0")
    assert names(life.tell("written", "/dev/loop0")) == ["log", "keep_worker", "keep_program", "keep_all", "answer"]


def test_a_commit_that_is_said_twice_is_answered_twice() -> None:
    life = Life().attached()
    assert life.tell("commit", "/dev/loop0", "/dev/loop0") == [("answer", {"event": "committed"})]
    ((_, answer),) = life.tell("commit", "/dev/loop1", "/dev/loop1")
    assert answer["event"] == "error"


@pytest.mark.parametrize("why", ["the worker ended", "all I/O fails", "it was given up"])
def test_a_commit_that_comes_too_late_is_none(why: str) -> None:
    """The attaching process hears of it, and its user; else he would take a disk for attached that is not there."""
    life = Life().prepared()
    if why == "it was given up":
        life.tell("signal", False)
    else:
        life.tell("ended", True)
    if why == "all I/O fails":
        life.tell("died", "exit status 0")
        assert life.machine.phase == "failed"
    ((action, answer),) = life.tell("commit", "/dev/loop0", "/dev/loop0")
    assert (action, answer["event"]) == ("answer", "error")
    assert "was set up for an attachment that ends" in answer["error"]["message"]
    assert not life.machine.committed


def test_a_worker_that_was_well_when_it_was_killed_does_not_say_that_all_is_well() -> None:
    """What it said last may be heard after all I/O was made to fail; what it lost counts."""
    life = Life(io_timeout_s=30).failed_with_a_worker()
    assert life.fields["state"] == "failed"
    reason = life.fields["detail"]
    life.tell("state", {"state": "attached", "detail": None, "lost": "a write"})
    assert (life.fields["state"], life.fields["detail"]) == ("failed", reason)
    assert life.fields["lost"] == "a write"


def test_a_disk_that_failed_stays_failed_when_its_worker_dies() -> None:
    """The next worker could write again; what the page cache took for written would be missing for good."""
    life = Life().attached()
    life.tell("state", {"state": "failed", "detail": "a write was lost"})
    life.tell("died", "killed")
    assert (life.fields["state"], life.fields["detail"]) == ("failed", "a write was lost")
    assert (life.fields["worker"], life.fields["restarts"]) == (None, 1)


def replaced(life: Life) -> None:
    """Somebody asks for another program; its worker is 2."""
    life.tell("upgrade", {"id": "1", "worker": ["new"], "path": ""})
    life.tell("standby", 2)


@pytest.mark.parametrize("drained", [True, False])
def test_a_successor_asks_for_what_its_predecessor_left_unanswered(drained: bool) -> None:
    life = Life().attached()
    replaced(life)
    life.tell("standing_by")
    assert life.tell("drained", "1", drained) == [("kill",)]
    assert life.tell("died", "killed")[-1] == ("go", not drained)


@pytest.mark.parametrize("standing_by", [True, False])
def test_what_a_worker_had_that_dies_before_it_is_drained_is_sent_again(standing_by: bool) -> None:
    life = Life().attached()
    replaced(life)
    if standing_by:
        life.tell("standing_by")
    life.tell("died", "killed")
    life.tell("time")
    assert life.tell("started", 3)[-1] == ("brief", True, True)


@pytest.mark.parametrize("phase", ["failed", "failed with a worker", "ended"])
def test_nobody_is_replaced_when_none_will_serve_any_more(phase: str) -> None:
    life = Life(io_timeout_s=30)
    if phase == "ended":
        life.attached().tell("ended", False)
    elif phase == "failed":
        life.failed()
    else:
        life.failed_with_a_worker()
    assert names(life.tell("upgrade", {"id": "1", "worker": ["new"], "path": ""})) == ["log", "save"]
    assert "right now" in life.fields["upgrades"]["1"]["error"]["message"]


def test_a_worker_that_says_again_and_again_that_it_ended_is_killed_in_time() -> None:
    life = Life().attached()
    life.tell("ended", False)
    deadline = life.machine.deadline
    life.now += 4
    life.tell("ended", False)
    assert life.machine.deadline == deadline
    life.now += 2
    assert names(life.tell("time")) == ["log", "kill"]


def test_who_gives_up_again_and_again_waits_no_longer_for_that() -> None:
    life = Life().prepared()
    life.tell("given_up", False)
    deadline = life.machine.deadline
    life.now += 10
    life.tell("given_up", True)
    assert life.machine.deadline == deadline


def test_an_attach_that_was_withdrawn_is_not_announced() -> None:
    """The attaching process would set a device up for nothing."""
    life = Life()
    life.tell("signal", False)
    assert life.tell("ready", {"size": 512}, False) == [("unlink",), ("tell", {"op": "end"})]


def test_a_worker_that_takes_up_is_named_before_it_is_told_and_kept_before_it_is_named() -> None:
    life = Life().attached()
    assert "start" not in names(life.tell("died", "killed"))
    assert life.tell("time") == [("start", COMMAND)]
    assert names(life.tell("started", 2)) == ["keep_worker", "keep_program", "name_worker", "brief"]
