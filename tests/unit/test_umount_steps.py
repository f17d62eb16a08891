"""Unmounting step by step: it returns when what was written is durable, unless the disk is still in use."""

from __future__ import annotations

import pytest

from blobfuse_dysk.mount import helper as helpers
from blobfuse_dysk.mount.options import UmountRequest
from tests.unit.mount_fakes import DEVICE, Machine, machine

__all__ = ["machine"]

NAME = "data"


@pytest.mark.parametrize("source", [DEVICE, f"{DEVICE}p1"])
@pytest.mark.parametrize("by_device", [False, True])
def test_it_returns_when_the_disk_is_durable_and_released(machine: Machine, source: str, by_device: bool) -> None:
    """The end is watched from before the umount: it may be over before anybody asks."""
    machine.have()
    machine.put(source)
    assert helpers.umount(UmountRequest(source if by_device else str(machine.directory), flags=("-r",))) == 0
    assert machine.calls == [
        ("watch", NAME),
        ("umount", "-i", "-r", str(machine.directory)),
        ("wait", NAME),
    ]


def test_the_last_mount_on_a_directory_goes_first(machine: Machine) -> None:
    machine.put("tmpfs", "tmpfs")
    machine.have()
    machine.put(DEVICE)
    assert helpers.umount(UmountRequest(str(machine.directory))) == 0
    assert machine.calls[-1] == ("wait", NAME)
    assert [each.source for each in machine.mounts] == ["tmpfs"]


def test_a_umount_that_fails_is_said_and_waits_for_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.have()
    machine.put(DEVICE)
    machine.fails["umount"] = 32
    assert helpers.umount(UmountRequest(str(machine.directory))) == 32
    assert machine.named("wait") == []
    assert capsys.readouterr().err == "it says no", "the words of umount(8), and none of ours"


@pytest.mark.parametrize("where", ["here", "partition", "elsewhere"])
def test_a_disk_that_is_still_mounted_stays_attached(
    machine: Machine, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.have()
    if where != "elsewhere":
        machine.put(DEVICE if where == "here" else f"{DEVICE}p2", directory="/another")
    else:
        machine.elsewhere = ["process 7 has it mounted on /another"]
    machine.put(DEVICE)
    assert helpers.umount(UmountRequest(str(machine.directory))) == 0
    assert machine.named("wait") == []
    assert f"{NAME} stays attached" in capsys.readouterr().err


def test_a_lazy_umount_waits_for_nothing(machine: Machine) -> None:
    machine.have()
    machine.put(DEVICE)
    assert helpers.umount(UmountRequest(str(machine.directory), lazy=True)) == 0
    assert machine.named("watch", "wait") == []


def test_what_is_not_ours_is_handed_on(machine: Machine) -> None:
    machine.put("/dev/sda1")
    assert helpers.umount(UmountRequest(str(machine.directory))) == 0
    assert machine.calls == [("umount", "-i", str(machine.directory))]
