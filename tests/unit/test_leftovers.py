"""What is advised to be taken away: only what is dead, and nobody's."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from blobfuse_dysk.cli.doctor.findings import ok
from blobfuse_dysk.cli.doctor.leftovers import leftovers as check
from blobfuse_dysk.device.attacher import leftovers
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.kernel import usage
from tests.unit.states import a_state


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an attachment `data`, and loop devices: of it, of a dead one, of a mounted and of a living one."""
    run = tmp_path / "run"
    (run / "data").mkdir(parents=True)
    state.write(str(run), "data", a_state())
    devices = {"data": "/dev/loop0", "dead": "/dev/loop1", "mounted": "/dev/loop2", "alive": "/dev/loop3"}
    monkeypatch.setattr(leftovers, "_loop_devices", lambda run: list(devices.items()))
    monkeypatch.setattr(leftovers, "is_dead", lambda device: device in ("/dev/loop1", "/dev/loop2"))
    monkeypatch.setattr(leftovers, "users", lambda device: [1] if device == "/dev/loop2" else [])
    monkeypatch.setenv("DYSK_RUN_DIR", str(run))
    monkeypatch.setenv("DYSK_DEV_DIR", str(tmp_path / "dev"))
    return tmp_path


def test_a_device_without_an_attachment_is_let_go_of_only_if_it_is_dead_and_nobodys(machine: Path) -> None:
    found = leftovers.leftovers(str(machine / "run"), str(machine / "dev"))
    assert found == [("/dev/loop1 has a file of dead, which is gone, behind it", "losetup -d /dev/loop1")]


def test_disks_of_others_are_named_without_any_advice(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container that shares /dev with the host, and not /run."""
    monkeypatch.setattr(leftovers, "is_dead", lambda device: False)
    others = "/dev/loop1, /dev/loop2, /dev/loop3: disks that the host or another container has attached"
    assert check() == ok("leftovers", f"none; {others}")


@pytest.mark.parametrize(("number", "dead"), [(errno.EIO, True), (errno.EACCES, False), (errno.ENOENT, False)])
def test_only_an_io_error_is_a_death(number: int, dead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "O_DIRECT", 0)  # which /dev/zero does not take
    monkeypatch.setattr(os, "preadv", refuse)
    assert usage.is_dead("/dev/zero") is dead


def test_a_device_that_does_not_answer_may_live(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(usage, "_ANSWER_S", 0.05)
    monkeypatch.setattr(os, "O_DIRECT", 0)
    monkeypatch.setattr(os, "preadv", lambda *arguments: answer.wait(30))
    assert not usage.is_dead("/dev/zero")
    answer.set()
