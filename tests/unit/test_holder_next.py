"""What the next holder makes of what its predecessor left: it is taken up whole, or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, cast

import pytest

from blobfuse_dysk.device.holder import program, systemd
from blobfuse_dysk.device.holder.keeper import newest_config, read_life
from blobfuse_dysk.device.ipc import state
from tests.unit.holders import (
    COMMAND,
    Killed,
    Machine,
    asked_to_replace,
    dies,
    first_holder,
    later,
    machine,
    next_holder,
    says,
    serves,
    settle,
    stands_by,
    the_worker,
)

__all__ = ["machine"]


def test_a_configuration_is_for_later_workers_of_later_holders_too(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    holder._has.crew._config_fd = os.dup(machine.life)
    later_one = os.dup(machine.life)
    machine.fds = [later_one]
    says(machine, holder, event="config")
    assert holder._has.crew._config_fd == later_one
    assert {name for name in machine.kept if name.startswith("config")} == {"config-1"}
    os.close(later_one)


def test_a_configuration_that_would_change_what_roots_programs_see_is_refused(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = first_holder(machine, tmp_path)
    before = holder._has.crew._config_fd
    monkeypatch.setattr(program, "has_same_variables", lambda before, after: False)
    refused = os.dup(machine.life)
    machine.fds = [refused]
    machine.events.append({"event": "config"})
    assert holder._has.worker
    holder._on_worker(holder._has.worker)
    assert "is refused" in machine.lines[-1]
    assert holder._has.crew._config_fd == before
    assert {name for name in machine.kept if name.startswith("config")} == {"config"}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(refused)


@pytest.mark.parametrize("step", [0, 1])
def test_a_holder_is_killed_while_it_replaces_the_configuration(machine: Machine, tmp_path: Path, step: int) -> None:
    """There is always one, or the next holder would give the attachment up; the later one counts."""
    holder = first_holder(machine, tmp_path)
    holder._has.crew._config_fd = os.dup(machine.life)
    machine.fds = [os.dup(machine.life)]
    later_one = machine.fds[0]
    machine.steps, machine.killed_at = 0, step
    with pytest.raises(Killed):
        says(machine, holder, event="config")
    os.close(later_one)
    machine.holder_dies()
    next_holder(machine)
    kept = {name for name in machine.kept if name.startswith("config")}
    assert kept == ({"config-1"} if step else {"config"})


def test_a_later_configuration_has_a_larger_number() -> None:
    assert newest_config(["ring", "config-9", "config", "config-10"]) == "config-10"
    assert newest_config(["config", "life"]) == "config"
    assert newest_config(["life"]) is None


def test_the_next_holder_without_room_for_its_state(machine: Machine, tmp_path: Path) -> None:
    """It is no reason to give up what is attached."""
    first_holder(machine, tmp_path)
    machine.holder_dies()
    machine.full = True
    holder = next_holder(machine)
    settle(machine, holder)
    assert the_worker(holder).alive
    assert len(machine.workers) == 1
    assert holder._has.state.fields["state"] == "attached"


@pytest.mark.parametrize("served", [True, False])
def test_the_next_holder_on_a_kernel_that_cannot_send_again(machine: Machine, tmp_path: Path, served: bool) -> None:
    """It does not know whether the dead worker had requests."""
    machine.resends = False
    holder = first_holder(machine, tmp_path)
    if not served:
        the_worker(holder).alive = False
    machine.holder_dies()
    follower = next_holder(machine)
    if served:
        assert the_worker(follower).alive
        assert the_worker(follower).sent[-2]["resend"] is False
    else:
        assert not the_worker(follower).alive
        assert dies(machine, follower) is None
        assert machine.state["state"] == "failed"


def test_the_next_holder_counts_io_timeout_when_both_died(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, io_timeout_s=30.0)
    the_worker(holder).alive = False
    machine.holder_dies()
    follower = next_holder(machine)
    later(follower, 31)
    assert machine.state["state"] == "failed"


def test_the_next_holder_of_a_device_that_was_let_go_meanwhile(machine: Machine, tmp_path: Path) -> None:
    first_holder(machine, tmp_path)
    machine.holder_dies()
    machine.device = None
    fds = dict.fromkeys(machine.kept, machine.life)
    follower = systemd._follow(cast(Any, machine), fds, read_life(machine.life), cast(Any, machine.state))
    follower._begin()
    assert the_worker(follower).orders[-1] == "end"


def test_the_next_holder_says_that_a_replacement_did_not_happen(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    says(machine, holder, event="upgrade", id="1", worker=["new"], path="")
    machine.holder_dies()
    next_holder(machine)
    answer = machine.state["upgrades"]["1"]
    assert answer["done"]
    assert "the holder died meanwhile" in answer["error"]["message"]


@pytest.mark.parametrize("together", [True, False])
def test_a_program_that_cannot_start_is_not_started_again_by_the_next_holder(
    machine: Machine, tmp_path: Path, together: bool
) -> None:
    """The holder dies between `go` and `ready`, and the new worker with it, or after it: the old program goes on."""
    holder = first_holder(machine, tmp_path)
    asked_to_replace(machine, holder)
    stands_by(holder)
    says(machine, holder, event="drain", id="1", drained=True)
    new = dies(machine, holder)
    assert new.orders == ["standby", "go"]
    if together:
        new.alive = False
    machine.holder_dies()
    follower = next_holder(machine)
    if not together:
        assert the_worker(follower) is new
        dies(machine, follower)
    assert machine.commands[-1] == COMMAND
    assert read_life(machine.life)["command"] == COMMAND
    assert read_life(machine.life)["former"] is None


def test_a_program_that_serves_is_that_of_the_next_holder(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    asked_to_replace(machine, holder)
    stands_by(holder)
    says(machine, holder, event="drain", id="1", drained=True)
    dies(machine, holder)
    assert read_life(machine.life)["former"] == COMMAND
    serves(machine, holder)
    machine.holder_dies()
    dies(machine, next_holder(machine))
    assert machine.commands[-1]["worker"] == ["new"]


def test_the_life_is_kept_last(machine: Machine, tmp_path: Path) -> None:
    """It says to the next holder that all the rest is there."""
    holder = first_holder(machine, tmp_path, attached=False)
    serves(machine, holder)
    for step in range(20):
        machine.kept, machine.steps, machine.killed_at = set(), 0, step
        with contextlib.suppress(Killed):
            holder._has.keeper.keep_all({"fuse": 1, "config": 1, "ring": 1, "control": 1})
        assert ("life" in machine.kept) is (len(machine.kept) == 5)


def test_the_next_holder_has_requests_of_a_dead_worker_sent_again(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    the_worker(holder).alive = False
    machine.holder_dies()
    machine.state["holder"] = {"pid": 1, "start": 1}
    follower = next_holder(machine)
    assert machine.state["holder"]["pid"] == os.getpid(), "everybody would take the attachment for dead"
    order = the_worker(follower).sent[0]
    assert (order["op"], order["resend"]) == ("start", True)
    assert order["resume"]["device"] == "/dev/loop0"
    assert order["resume"]["io_timeout_s"] is None
    assert machine.state["restarts"] == 1
    assert dies(machine, follower).sent[-1]["resend"], "they are still those of the first"


def test_a_worker_that_was_taken_up_may_have_requests_when_it_dies(machine: Machine, tmp_path: Path) -> None:
    """It served under the holder before; that it says so once more is not waited for."""
    first_holder(machine, tmp_path)
    machine.holder_dies()
    follower = next_holder(machine)
    order = dies(machine, follower).sent[0]
    assert (order["op"], order["resend"]) == ("start", True)


def test_an_attachment_is_not_taken_up_in_part(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "read", lambda run, name: {"worker": None})
    fds = dict.fromkeys(("fuse", "config", "control", "life"), machine.life)
    assert systemd.later_holder(cast(Any, machine), "run", "data", fds) is None
    assert machine.workers == {}


def test_an_attachment_that_was_ended_meanwhile_is_not_taken_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "read", lambda run, name: None)
    fds = dict.fromkeys(("fuse", "config", "ring", "control", "life"), machine.life)
    assert systemd.later_holder(cast(Any, machine), "run", "data", fds) is None
    assert machine.workers == {}


def test_a_life_is_the_first_line_and_of_a_known_version(machine: Machine) -> None:
    os.pwrite(machine.life, b'{"version": 1, "init": "new"}\n of the one before, that was longer"}\n', 0)
    assert read_life(machine.life) == {"version": 1, "init": "new"}
    os.pwrite(machine.life, b'{"version": 2}\n', 0)
    with pytest.raises(ValueError, match="version 2"):
        read_life(machine.life)
