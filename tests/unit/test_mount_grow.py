"""Growing a file system at its mount: when it is done, and that a failure keeps nobody from mounting."""

from __future__ import annotations

import subprocess

import pytest

from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.mount import grow
from blobfuse_dysk.mount.grow import grow_file_system, growing_with, grows_unmounted


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done in which order; the file systems themselves are not there."""
    done: list[str] = []

    def grow_it(device: str, mount_point: str | None, fstype: str) -> bool:
        done.append(f"grow {fstype} {'mounted' if mount_point else 'unmounted'}")
        return True

    monkeypatch.setattr(grow, "grow_file_system", grow_it)
    return done


@pytest.mark.parametrize(
    ("fstype", "capable", "order"),
    [
        ("ext4", True, ["mount", "grow ext4 mounted"]),
        ("ext4", False, ["grow ext4 unmounted", "mount"]),
        ("xfs", False, ["mount", "grow xfs mounted"]),
        ("btrfs", True, ["mount", "grow btrfs mounted"]),
    ],
)
def test_it_grows_mounted_where_it_can_and_before_where_it_cannot(
    fstype: str, capable: bool, order: list[str], steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grow, "_has_capability", lambda: capable)
    assert grows_unmounted(fstype) == (order[0] != "mount")
    with growing_with("/dev/loop7", "/mnt", fstype):
        steps.append("mount")
    assert steps == order


@pytest.mark.parametrize("fstype", ["ext4", "vfat"])
def test_what_does_not_grow_is_mounted_with_a_warning(
    fstype: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if fstype == "ext4":

        def fail(device: str, mount_point: str | None, fstype: str) -> bool:
            raise DeviceError("e2fsck is not installed", remedy="install e2fsprogs")

        monkeypatch.setattr(grow, "grow_file_system", fail)
    mounted = []
    with growing_with("/dev/null", "/mnt", fstype):
        mounted.append(fstype)
    assert mounted == [fstype]
    (told,) = caplog.messages
    assert (
        told
        == {
            "ext4": "e2fsck is not installed: install e2fsprogs",
            "vfat": "vfat does not grow here: those that do: ext2, ext3, ext4, xfs, btrfs",
        }[fstype]
    )


def test_a_mount_that_fails_is_not_grown(steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grow, "_has_capability", lambda: True)
    with pytest.raises(DeviceError), growing_with("/dev/loop7", "/mnt", "ext4"):
        raise DeviceError("wrong fs type")
    assert steps == []


def test_the_words_of_a_tool_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "xfs_growfs 6.1.0\nxfs_growfs: [EXPERIMENTAL] no space\nUsage: xfs_growfs"

    def run_tool(words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 1, "", said)

    monkeypatch.setattr(grow, "run_tool", run_tool)
    monkeypatch.setattr(grow, "find_tool", lambda name, remedy: name)
    with pytest.raises(DeviceError) as caught:
        grow_file_system("/dev/loop7", "/", "xfs")
    assert caught.value.line().endswith("the xfs on /dev/loop7 larger: [EXPERIMENTAL] no space: see dmesg")
