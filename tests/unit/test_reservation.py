"""Whose a name and a disk are on this node."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from blobfuse_dysk.device.holder.reservation import Reservation
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.statefile import StateFile
from blobfuse_dysk.device.kernel import fuse
from blobfuse_dysk.errors import AttachedError
from tests.unit.states import a_state

ONE = "https://one"


class Places:
    """Attachments of one node, as far as their names."""

    def __init__(self, run: Path) -> None:
        self.run = str(run)

    def take(
        self, name: str, *, read_only: bool = False, alive: bool = True, endpoint: str = "https://e"
    ) -> Reservation:
        place = Reservation(self.run, self.run, name)
        holder = state.identity(os.getpid()) if alive else {"pid": 1, "start": 1}
        place._take_name(a_state(endpoint=endpoint, read_only=read_only, holder=holder, device=None))
        return place


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setattr(fuse, "unmount", lambda path: None)
    return Places(tmp_path)


@pytest.mark.parametrize(("first", "second"), [(False, False), (False, True), (True, False)])
def test_a_disk_that_one_of_two_may_write_is_attached_once(places: Places, first: bool, second: bool) -> None:
    places.take("one", read_only=first)
    with pytest.raises(AttachedError, match="attached here already, as one"):
        places.take("two", read_only=second)
    assert state.names(places.run) == ["one"]


def test_readers_may_be_many(places: Places) -> None:
    places.take("one", read_only=True)
    places.take("two", read_only=True)


def test_the_same_name_at_another_service_is_another_disk(places: Places) -> None:
    places.take("one")
    places.take("two", endpoint="https://another")


def test_a_dead_attachment_keeps_its_name_and_not_its_disk(places: Places) -> None:
    places.take("one", alive=False)
    places.take("two")
    with pytest.raises(AttachedError, match="the name one is taken by a/b/c"):
        places.take("one", endpoint=ONE)


def test_who_was_refused_takes_nothing_away(places: Places) -> None:
    places.take("one")
    refused = Reservation(places.run, places.run, "one")
    with pytest.raises(AttachedError):
        refused._take_name(a_state(endpoint=ONE))
    refused.clear(a_state(endpoint=ONE))
    assert state.read(places.run, "one")


def test_a_state_that_nobody_can_read_is_in_nobodys_way(places: Places) -> None:
    places.take("one")
    (Path(places.run) / "one" / "state.json").write_text("{")
    places.take("two")


def test_a_directory_that_was_begun_and_never_finished_is_taken_over(places: Places) -> None:
    (Path(places.run) / "one").mkdir()
    places.take("one")
    with pytest.raises(AttachedError, match="the name one is taken by a/b/c"):
        places.take("one", endpoint=ONE)
    assert state.read(places.run, "one")


def test_looking_and_taking_are_one_step(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    real = state.write

    def excluded(run: str, name: str, fields: StateFile) -> None:
        real(run, name, fields)
        assert subprocess.run(["flock", "--nonblock", f"{places.run}/.lock", "true"]).returncode == 1

    monkeypatch.setattr(state, "write", excluded)
    places.take("one")


def test_an_attachment_ends_though_somebody_was_stopped_with_the_lock(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has waited for long enough, and nobody takes the name before the directory is gone."""
    monkeypatch.setattr(state, "LOCK_S", 0.05)
    place = places.take("one")
    with state.lock(places.run):
        place.clear(a_state())
    assert state.names(places.run) == []


def test_a_connection_that_is_let_go_of_is_closed(places: Places) -> None:
    place = places.take("one")
    kernel, place.fuse_fd = os.pipe()
    place.clear(a_state())
    assert place.fuse_fd == -1
    assert os.read(kernel, 1) == b"", "the kernel would wait for an answer, for ever"
    os.close(kernel)
    assert state.names(places.run) == []
    place.clear(a_state())
