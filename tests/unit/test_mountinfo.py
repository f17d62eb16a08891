"""The kernel's table of mounts, and what is found in it: mount points of a device, the connection of a FUSE mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blobfuse_dysk.device.kernel import fuse, mountinfo, usage


class Proc:
    """What stands for /proc: the mounts that each process sees."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sees(self, text: str, process: int | str = "self") -> None:
        directory = self.root / str(process)
        directory.mkdir(exist_ok=True)
        (directory / "mountinfo").write_bytes(os.fsencode(text))


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Proc:
    monkeypatch.setattr(mountinfo, "_PROC", str(tmp_path))
    return Proc(tmp_path)


def told(mount: mountinfo.Mount) -> tuple[str, str, str, str]:
    return mount.device, mount.directory, mount.fstype, mount.source


def test_the_fields_behind_any_number_of_optional_ones(proc: Proc) -> None:
    proc.sees(
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "40 22 7:1 /sub /mnt ro,noatime master:2 shared:3 - xfs /dev/loop1p2 ro,attr2\n"
        "41 22 0:40 / /tmp rw - tmpfs none rw\n"
    )
    assert [told(mount) for mount in mountinfo.mounts()] == [
        ("254:0", "/", "ext4", "/dev/vda"),
        ("7:1", "/mnt", "xfs", "/dev/loop1p2"),
        ("0:40", "/tmp", "tmpfs", "none"),
    ]
    assert "/dev/loop1p2 (xfs, 7:1) on /mnt" in repr(mountinfo.mounts()[1])
    assert [(mount.root, mount.read_only) for mount in mountinfo.mounts()] == [
        ("/", False),
        ("/sub", True),
        ("/", False),
    ]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("/a\\040b\\011c", "/a b\tc"),
        ("/a\\012b", "/a\nb"),
        ("/a\\134040", "/a\\040"),
        ("/a\rb", "/a\rb"),
        ("/a\u2028b\x0c", "/a\u2028b\x0c"),
        ("/\udcff", "/\udcff"),
    ],
)
def test_any_name_that_a_directory_can_have(proc: Proc, written: str, name: str) -> None:
    proc.sees(f"1 0 7:3 / {written} rw - ext4 {written} rw\n2 0 7:4 / /z rw - xfs /dev/loop4 rw\n")
    first, second = mountinfo.mounts()
    assert (first.directory, first.source) == (name, name)
    assert told(second) == ("7:4", "/z", "xfs", "/dev/loop4")


def test_a_device_is_found_by_its_number_and_by_its_name(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """btrfs has a device number of its own, so only the name tells what it is on."""
    monkeypatch.setattr(usage, "_nodes", lambda device: {"/dev/loop3": "7:3", "/dev/loop3p1": "259:1"})
    proc.sees(
        "1 0 7:3 / /a\\040b rw - ext4 /dev/root rw\n"
        "2 0 0:44 / /btrfs rw shared:1 - btrfs /dev/loop3p1 rw\n"
        "3 0 7:30 / /other rw - ext4 /dev/loop30 rw\n"
    )
    assert usage.mountpoints("/dev/loop3") == ["/a b", "/btrfs"]


def test_a_process_that_ends_meanwhile_does_not_hide_its_namespace(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes in the namespace of a container the first ends while it is looked at."""
    namespaces = {"self": "mnt:[1]", "10": "mnt:[2]", "11": "mnt:[2]", "12": "mnt:[1]"}
    monkeypatch.setattr(os, "readlink", lambda path: namespaces[path.split("/")[2]])
    monkeypatch.setattr(usage, "_processes", lambda: [10, 11, 12])
    monkeypatch.setattr(usage, "_nodes", lambda device: {"/dev/loop3": "7:3"})
    for process in ("self", 11, 12):
        proc.sees("1 0 7:3 / /inside rw - ext4 /dev/loop3 rw\n", process)
    assert usage.mounted_elsewhere("/dev/loop3") == [usage.Use("mount", "process 11 has it mounted on /inside")]


def test_the_connection_is_that_of_the_uppermost_fuse_mount(proc: Proc) -> None:
    proc.sees(
        "1 0 0:51 / /run/dysk/db/fs rw - fuse.dysk dysk rw\n"
        "2 0 0:52 / /run/dysk/db/fs rw - fuse dysk rw\n"
        "3 0 0:53 / /run/dysk/db/fs rw - tmpfs none rw\n"
        "4 0 0:54 / /run/dysk/db2/fs rw - fuse.dysk dysk rw\n"
    )
    assert fuse.connection("/run/dysk/db/fs") == 52
    assert fuse.connection("/run/dysk/none/fs") is None
