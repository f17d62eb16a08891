"""Growing a file system at its mount: when it is done, and that a failure keeps nobody from mounting."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.mount import grow
from blobfuse_dysk.mount.grow import grow_file_system, growing_with, grows_unmounted

MIB = 1 << 20


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


def test_one_that_is_mounted_already_is_not_checked_as_if_it_were_not(
    steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grow, "_has_capability", lambda: False)
    monkeypatch.setattr(grow, "mountpoints", lambda device: ["/srv/first"])
    with growing_with("/dev/loop7", "/mnt", "ext4"):
        steps.append("mount")
    assert steps == ["mount", "grow ext4 mounted"]


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


def image(directory: Path, size: int, grown: int) -> str:
    """An ext4 in a file that became larger since."""
    path = directory / "image"
    path.touch()
    os.truncate(path, size)
    subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
    os.truncate(path, grown)
    return str(path)


def is_sound(path: str) -> bool:
    return subprocess.run(["e2fsck", "-f", "-n", path], capture_output=True).returncode == 0


def test_an_ext4_becomes_as_large_as_its_device_and_stays_sound(tmp_path: Path) -> None:
    path = image(tmp_path, 64 * MIB, 300 * MIB)
    assert grow_file_system(path, None, "ext4")
    assert grow._ext_size(path) == 300 * MIB
    assert is_sound(path)
    assert not grow_file_system(path, None, "ext4")


def test_one_that_has_the_size_already_is_not_even_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image(tmp_path, 64 * MIB, 64 * MIB + 4096)

    def run_tool(words: list[str]) -> subprocess.CompletedProcess[str]:
        raise AssertionError(words)

    monkeypatch.setattr(grow, "run_tool", run_tool)
    assert not grow_file_system(path, None, "ext4")


def test_what_is_damaged_is_left_as_it_is(tmp_path: Path) -> None:
    path = image(tmp_path, 64 * MIB, 128 * MIB)
    with Path(path).open("r+b") as file:
        file.seek(64 << 10)
        file.write(os.urandom(256 << 10))  # group descriptors and inode tables
    before = Path(path).read_bytes()[: 1 << 10]
    with pytest.raises(DeviceError, match="does not correct by itself") as caught:
        grow_file_system(path, None, "ext4")
    assert "e2fsck -f" in (caught.value.remedy or "")
    assert Path(path).read_bytes()[: 1 << 10] == before
    assert grow._ext_size(path) == 64 * MIB


def test_what_cannot_be_read_does_not_grow_and_is_mounted_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "gone")
    with pytest.raises(DeviceError, match="gone cannot be read: No such file or directory"):
        grow_file_system(path, None, "ext4")
    with growing_with(path, "/mnt", "ext4"):
        pass
    assert "gone cannot be read" in caplog.text


def test_a_mounted_ext4_without_the_capability_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image(tmp_path, 64 * MIB, 128 * MIB)
    monkeypatch.setattr(grow, "_has_capability", lambda: False)
    with pytest.raises(DeviceError, match="CAP_SYS_RESOURCE") as caught:
        grow_file_system(path, "/mnt", "ext4")
    assert "-o grow" in (caught.value.remedy or "")
    assert grow._ext_size(path) == 64 * MIB


def test_what_is_no_ext4_is_told_in_the_words_of_the_tool(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(MIB))
    with pytest.raises(DeviceError, match=r"e2fsck on .* failed: .*magic number"):
        grow_file_system(str(path), None, "ext4")
    assert path.read_bytes() == bytes(MIB)


def test_a_device_that_is_in_use_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image(tmp_path, 64 * MIB, 128 * MIB)

    def run_tool(words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 8, f"{path} is in use.\n", "e2fsck: Cannot continue, aborting.\n\n\n")

    monkeypatch.setattr(grow, "run_tool", run_tool)
    with pytest.raises(DeviceError, match=r"failed: .*image is in use$"):
        grow_file_system(path, None, "ext4")
