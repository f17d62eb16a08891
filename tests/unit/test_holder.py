"""What a holder makes of what it hears: when another worker is started, when I/O fails, when it all ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from blobfuse_dysk.device.holder.keeper import read_life
from tests.unit.holders import (
    COMMAND,
    Channel,
    Machine,
    Worker,
    asked_to_replace,
    commits,
    dies,
    first_holder,
    later,
    machine,
    says,
    served,
    serves,
    stands_by,
    the_worker,
)

__all__ = ["machine"]

NO_DISK = {"type": "NotFoundError", "message": "no such disk", "remedy": None}


def test_who_served_left_requests_that_the_next_asks_for(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    first = the_worker(holder)
    second = dies(machine, holder)
    assert second is not first
    assert (second.sent[-1]["op"], second.sent[-1]["resend"]) == ("start", True)
    assert second.sent[-1]["resume"]["restarts"] == 1
    third = dies(machine, holder)  # that never served; the requests are still those of the first
    assert third.sent[-1]["resend"]
    serves(machine, holder)
    fourth = dies(machine, holder)
    assert fourth.sent[-1]["resend"]


def test_nothing_is_asked_for_twice(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    dies(machine, holder)
    serves(machine, holder)
    served(holder, yes=False)
    assert not dies(machine, holder).sent[-1]["resend"]


def test_requests_are_lost_where_the_kernel_cannot_send_them_again(machine: Machine, tmp_path: Path) -> None:
    machine.resends = False
    holder = first_holder(machine, tmp_path)
    place = holder._has.place
    place.fuse_fd = os.dup(machine.life)
    assert dies(machine, holder) is None
    assert machine.state["state"] == "failed"
    assert place.fuse_fd == -1, "I/O would wait for ever"
    assert machine.let_go == ["/dev/loop0"]
    assert not {name for name in machine.kept if "-" not in name}, "systemd still has the FUSE connection"
    assert not holder._done()
    machine.device = None
    assert holder._done()


def test_a_worker_that_never_served_took_no_request(machine: Machine, tmp_path: Path) -> None:
    machine.resends = False
    holder = first_holder(machine, tmp_path)
    served(holder, yes=False)
    assert not dies(machine, holder).sent[-1]["resend"]


def test_a_drained_worker_left_none(machine: Machine, tmp_path: Path) -> None:
    machine.resends = False
    holder = first_holder(machine, tmp_path)
    says(machine, holder, event="upgrade", id="1", worker=["new"], path="")
    stands_by(holder)
    old = the_worker(holder)
    says(machine, holder, event="drain", id="1", drained=True)
    assert not old.alive
    new = dies(machine, holder)
    assert (new.sent[-1]["op"], new.sent[-1]["resend"]) == ("go", False)
    assert machine.state["worker"]["pid"] == new.pid
    serves(machine, holder)
    assert machine.state["upgrades"]["1"] == {"done": True, "error": None}
    assert machine.state["restarts"] == 0


def test_the_one_that_took_over_is_heard_as_the_worker(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    new = asked_to_replace(machine, holder)
    stands_by(holder)
    says(machine, holder, event="drain", id="1", drained=True)
    dies(machine, holder)
    assert (holder._has.worker, holder._has.new) == (new, None)


def test_a_new_worker_that_dies_beside_the_old_one(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    new = asked_to_replace(machine, holder)
    new.worker.alive = False
    holder._hear_new(new, {new.pidfd})
    assert holder._has.new is None
    assert "the new worker could not start" in machine.state["upgrades"]["1"]["error"]["message"]
    assert the_worker(holder).alive
    assert asked_to_replace(machine, holder) is not new


def test_a_new_worker_that_gives_up_is_ended(machine: Machine, tmp_path: Path) -> None:
    """What it wrote to its standard error is logged."""
    holder = first_holder(machine, tmp_path)
    new = asked_to_replace(machine, holder)
    new.read_stderr = lambda: ["no memory"]
    machine.events.append({"event": "error", "error": {"type": "DeviceError", "message": "protocol 9", "remedy": None}})
    holder._hear_new(new, {new.stderr, new.channel.fileno()})
    assert "worker: no memory" in machine.lines
    assert machine.state["upgrades"]["1"]["error"]["message"] == "protocol 9"
    assert not new.worker.alive
    assert holder._has.new is None


def test_a_new_worker_that_hangs_up_is_judged_by_its_death(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    new = asked_to_replace(machine, holder)
    holder._hear_new(new, {new.channel.fileno()})
    assert not new.listening
    assert not machine.state["upgrades"]["1"]["done"]


def test_a_worker_that_ended_well_is_not_replaced(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    machine.device = None
    says(machine, holder, event="released")
    assert the_worker(holder).orders[-1] == "end"
    says(machine, holder, event="ended", aborted=False)
    assert dies(machine, holder) is None
    assert holder._done()
    assert len(machine.workers) == 1


def test_what_a_dead_worker_said_last_is_heard(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    worker = cast(Any, holder._has.worker)
    worker.listening = True
    machine.events.extend([{"event": "state", "lost": "a write"}, {"event": "ended", "aborted": False}])
    assert dies(machine, holder) is None
    assert machine.state["lost"] == "a write"
    assert len(machine.workers) == 1


def test_a_loss_is_kept_for_the_workers_after(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    says(machine, holder, event="state", lost="a write")
    assert (machine.state["state"], machine.state["lost"]) == ("attached", "a write")
    assert dies(machine, holder).sent[-1]["resume"]["lost"] == "a write"


def test_between_two_workers_state_json_names_none(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    the_worker(holder).alive = False
    assert holder._has.worker
    holder._on_worker_death(holder._has.worker)
    assert machine.state["worker"] is None
    assert machine.state["state"] == "recovering"


def test_no_worker_is_started_once_all_io_fails(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, io_timeout_s=30.0)
    dies(machine, holder)
    later(holder, 31)
    assert machine.state["state"] == "failed"
    assert dies(machine, holder) is None
    assert holder._lifecycle.deadline is None
    assert len(machine.workers) == 2, "the one that did not get done within io-timeout is the last"


def test_nothing_is_kept_of_an_attachment_that_may_still_be_taken_back(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, attached=False)
    serves(machine, holder)
    assert dies(machine, holder)
    assert machine.kept == set()


def test_a_worker_that_dies_while_it_ends_is_replaced_and_the_next_ends(machine: Machine, tmp_path: Path) -> None:
    """What it had not written yet is written by that one."""
    holder = first_holder(machine, tmp_path)
    machine.device = None
    says(machine, holder, event="released")
    second = dies(machine, holder)
    assert second.orders == ["start"]
    serves(machine, holder)
    assert second.orders == ["start", "end"]
    assert not holder._done()


def test_a_connection_that_was_aborted(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    says(machine, holder, event="ended", aborted=True)
    assert dies(machine, holder) is None
    assert machine.state["state"] == "failed"


def test_a_handle_that_is_released_while_the_device_has_the_file_ends_nothing(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    says(machine, holder, event="released")
    assert "end" not in the_worker(holder).orders


def test_a_handle_that_is_released_before_the_commit_ends_nothing(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, attached=False)
    machine.device = None
    serves(machine, holder)
    says(machine, holder, event="released")
    assert the_worker(holder).orders == ["start"]


def test_a_release_that_nobody_heard_of(machine: Machine, tmp_path: Path) -> None:
    """It may have been lost with the worker."""
    holder = first_holder(machine, tmp_path)
    machine.device = None
    dies(machine, holder)
    serves(machine, holder)
    assert the_worker(holder).orders[-1] == "end"


def test_io_fails_when_no_worker_could_be_had_in_time(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, io_timeout_s=30.0)
    later(holder, 1000)
    assert machine.state["state"] != "failed"
    dies(machine, holder)
    later(holder, 29)
    assert machine.state["state"] == "recovering"
    later(holder, 31)
    assert machine.state["state"] == "failed"
    assert not the_worker(holder).alive


def test_a_worker_that_serves_sees_to_io_timeout_itself(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, io_timeout_s=30.0)
    dies(machine, holder)
    serves(machine, holder)
    later(holder, 1000)
    assert machine.state["state"] == "recovering"
    says(machine, holder, event="state", state="attached")
    assert holder._lifecycle._down_since is None


def test_deaths_in_a_row_are_counted_from_the_first(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, io_timeout_s=30.0)
    dies(machine, holder)
    since = holder._lifecycle._down_since
    dies(machine, holder)
    assert holder._lifecycle._down_since == since


def test_a_worker_that_dies_before_it_was_ever_ready(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, attached=False)
    machine.device = None
    assert dies(machine, holder) is None
    assert "could not start" in str(holder._lifecycle.error)
    assert holder._done()


def test_what_the_worker_says_of_a_failed_attach_is_what_is_reported(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, attached=False)
    says(machine, holder, event="error", error=NO_DISK)
    dies(machine, holder)
    assert holder._lifecycle.error == NO_DISK


def test_a_device_that_lost_its_file_is_not_committed(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, attached=False)
    serves(machine, holder)
    machine.device = None
    assert "lost its file" in str(commits(holder))
    assert not holder._lifecycle.committed
    assert machine.kept == set()


def test_a_commit_that_cannot_be_written_down_is_none(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, attached=False)
    serves(machine, holder)
    machine.full = True
    assert "No space" in str(commits(holder))
    assert not holder._lifecycle.committed
    assert machine.kept == set()
    assert holder._has.state.fields["device"] is None


def test_a_commit_while_no_worker_lives(machine: Machine, tmp_path: Path) -> None:
    """The next holder has all it needs to start one."""
    holder = first_holder(machine, tmp_path, attached=False)
    serves(machine, holder)
    the_worker(holder).alive = False
    assert holder._has.worker
    holder._on_worker_death(holder._has.worker)
    assert holder._has.worker is None
    assert commits(holder) == {"event": "committed"}
    assert machine.kept == {"fuse", "config", "ring", "control", "life"}
    assert read_life(machine.life)["command"] == COMMAND


@pytest.mark.parametrize("how", ["abandons", "dies"])
def test_the_attaching_process_gives_up(machine: Machine, tmp_path: Path, how: str) -> None:
    holder = first_holder(machine, tmp_path, attached=False)
    serves(machine, holder)
    attacher = cast(Any, Channel(Worker(-1)))
    holder._has.attacher = attacher
    if how == "abandons":
        machine.events.append({"op": "abandon"})
    holder._on_attacher(attacher)
    assert the_worker(holder).orders == ["start", "end"]
    assert machine.let_go == [None]
    assert (holder._has.attacher is None) is (how == "dies")
    later(holder, 1000)
    assert not the_worker(holder).alive, "it would be waited for, for ever"
    assert dies(machine, holder) is None


def test_after_the_commit_the_attaching_process_may_go(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, attached=False)
    serves(machine, holder)
    attacher = cast(Any, Channel(Worker(-1)))
    holder._has.attacher = attacher
    machine.events.append({"op": "commit", "device": "/dev/loop0"})
    holder._on_attacher(attacher)
    assert attacher.worker.sent == [{"event": "committed"}]
    assert machine.state["state"] == "attached"
    holder._on_attacher(attacher)
    assert holder._has.attacher is None
    assert the_worker(holder).orders == ["start"]
    assert machine.let_go == []


def test_told_to_stop(machine: Machine, tmp_path: Path) -> None:
    """A device that is in use is never cut off."""
    holder = first_holder(machine, tmp_path)
    holder._feed("signal", machine.device is not None)
    assert the_worker(holder).orders == ["start", "flush"]
    assert machine.let_go == ["/dev/loop0"]
    machine.device = None
    holder._feed("signal", machine.device is not None)
    assert the_worker(holder).orders[-1] == "end"


def test_a_worker_that_is_to_end_is_not_replaced(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    machine.device = None
    says(machine, holder, event="released")
    says(machine, holder, event="upgrade", id="1", worker=["new"], path="")
    assert machine.state["upgrades"]["1"]["done"]
    assert len(machine.workers) == 1


def test_a_worker_that_said_that_it_ended_and_stays(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    says(machine, holder, event="ended", aborted=False)
    later(holder, 1)
    assert the_worker(holder).alive
    later(holder, 10)
    assert not the_worker(holder).alive


def test_a_message_that_does_not_fit_changes_nothing(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path)
    machine.events.append({"event": "ended"})
    assert holder._has.worker
    holder._on_worker(holder._has.worker)
    assert "a message of the worker is refused: ended: aborted is missing" in machine.lines
    assert holder._lifecycle.phase == "attached"


def test_a_wait_may_be_longer_than_the_kernel_takes(machine: Machine, tmp_path: Path) -> None:
    holder = first_holder(machine, tmp_path, io_timeout_s=1e9)
    dies(machine, holder)
    patience_ms = holder._patience_ms()
    assert patience_ms
    assert 1000 < patience_ms < 1 << 31


def test_what_was_heard_of_partitions_before_the_commit_is_followed_after_it(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once. The device was set up by then, and its partitions may have come when its links were made already."""
    holder, followed = first_holder(machine, tmp_path, attached=False), list[str]()
    monkeypatch.setattr(holder._has.place, "follow_partitions", lambda device, disk: followed.append(device))
    serves(machine, holder)
    holder._heard = True
    holder._follow_partitions()
    assert followed == []
    commits(holder)
    holder._follow_partitions()
    holder._follow_partitions()
    assert followed == ["/dev/loop0"]
