"""mkfs and blkid: how they are asked, and what their answers mean. What is formatted is in test_mount_steps.py."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.mount import filesystem

MIB = 1 << 20


class Tools:
    """Answers for the tools; asked: each command line, the program without its directory."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.answer = (0, "", "")

    def run(self, arguments: Sequence[str], held: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
        self.asked.append([arguments[0].rpartition("/")[2], *arguments[1:]])
        return subprocess.CompletedProcess(arguments, *self.answer)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    fake = Tools()
    monkeypatch.setattr(filesystem, "run_tool", fake.run)
    monkeypatch.setattr(filesystem, "find_tool", lambda name, remedy=None: f"/usr/sbin/{name}")
    return fake


@pytest.mark.parametrize(
    ("fstype", "tool", "options"),
    [
        ("ext4", "mkfs.ext4 -q -b -4096", []),
        ("ext3", "mkfs.ext3 -q -b -4096", []),
        ("ext2", "mkfs.ext2 -q -b -4096", ["-m", "0"]),
        ("ext4", "mkfs.ext4 -q", ["-b", "1024"]),
        ("ext4", "mkfs.ext4 -q", ["-b2048"]),
        ("ext4", "mkfs.ext4 -q", ["-T", "small"]),
        ("xfs", "mkfs.xfs -q", ["-K"]),
        ("btrfs", "mkfs.btrfs -q", ["-L", "data"]),
        ("vfat", "mkfs.vfat -I", []),
        ("exfat", "mkfs.exfat", []),
        ("ntfs", "mkfs.ntfs -q -Q", []),
        ("ntfs3", "mkfs.ntfs -q -Q", []),
        ("f2fs", "mkfs.f2fs -q", []),
    ],
)
def test_mkfs_is_not_forced(tools: Tools, tmp_path: Path, fstype: str, tool: str, options: list[str]) -> None:
    """What finds a file system all the same (mkfs.xfs and mkfs.btrfs look) may refuse."""
    device = disk(tmp_path, 8 * MIB)
    filesystem.make_file_system(fstype, device, options)
    assert tools.asked == [[*tool.split(), *options, device]]


def test_a_journal_counts_for_more_than_blocks_that_any_sector_size_takes(tools: Tools, tmp_path: Path) -> None:
    device = disk(tmp_path, 8 * MIB - 512)
    filesystem.make_file_system("ext4", device, [])
    assert tools.asked == [["mkfs.ext4", "-q", device]]


def disk(directory: Path, size: int) -> str:
    """A file of that size, blank."""
    path = directory / "disk"
    path.touch()
    os.truncate(path, size)
    return str(path)


def test_the_line_that_is_quoted_is_the_one_that_says_what_failed(tools: Tools, tmp_path: Path) -> None:
    """As mke2fs prints on 64 KiB; the first line is there with 1 MiB, too, where it succeeds."""
    why = "ext2fs_write_inode_full: Illegal inode number while writing reserved inodes"
    tools.answer = (1, "", f"\nFilesystem too small for a journal\n{why}\n")
    device = disk(tmp_path, 64 << 10)
    with pytest.raises(DeviceError, match=f"mkfs.ext4 on {device} failed: {why}") as caught:
        filesystem.make_file_system("ext4", device, [])
    assert caught.value.remedy == "is the disk large enough for ext4?"


@pytest.mark.parametrize(("size", "lacks"), [("1M", True), ("2M", False)])
def test_an_ext4_without_a_journal_is_seen(tmp_path: Path, size: str, lacks: bool) -> None:
    image = tmp_path / "disk"
    subprocess.run(["truncate", "-s", size, str(image)], check=True)
    assert not filesystem.lacks_journal("ext4", str(image)), "it is none"
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
    assert filesystem.lacks_journal("ext4", str(image)) is lacks
    assert not filesystem.lacks_journal("ext2", str(image))


def test_real_blkid_tells_two_signatures_and_each_of_them(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    subprocess.run(["truncate", "-s", "320M", str(image)], check=True)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", str(image)], check=True)
    with image.open("rb") as file:  # what mkfs.xfs wipes
        kept = file.read(4096)[1024:2048]
    subprocess.run(["/usr/sbin/mkfs.xfs", "-q", "-f", str(image)], check=True, capture_output=True)
    with image.open("r+b") as file:
        file.seek(1024)
        file.write(kept)
    assert filesystem.probe(str(image)) is None
    for kind in ("ext4", "xfs"):
        found = filesystem.probe(str(image), kind)
        assert found and found["TYPE"] == kind
    assert filesystem.probe(str(image), "btrfs") == {}


def test_mkfs_that_fails_is_a_failure_in_its_own_words(tools: Tools, tmp_path: Path) -> None:
    tools.answer = (1, "", "mke2fs 1.47.0 (5-Feb-2023)\nmkfs.ext4: it is full.\n")
    device = disk(tmp_path, MIB)
    with pytest.raises(DeviceError, match=f"mkfs.ext4 on {device} failed: it is full$"):
        filesystem.make_file_system("ext4", device, [])


def test_blkid_looks_at_the_device_and_not_into_its_cache(tools: Tools) -> None:
    tools.answer = (0, "DEVNAME=/dev/loop3\nUUID=1\nTYPE=ext4\nLABEL=a=b\n", "")
    found = filesystem.probe("/dev/loop3")
    assert found is not None
    assert (found["TYPE"], found["LABEL"]) == ("ext4", "a=b")
    filesystem.probe("/dev/loop3", "ext4")
    for asked in tools.asked:
        assert "-p" in asked and asked[-1] == "/dev/loop3"
    assert ["-n" in asked for asked in tools.asked] == [False, True]


def test_what_blkid_does_not_find_is_not_what_it_cannot_tell(tools: Tools, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"unknown")
    tools.answer = (2, "", "")
    assert filesystem.probe(str(disk)) == {}
    tools.answer = (8, "", "")
    assert filesystem.probe("/dev/loop3") is None
    for code in (1, 4, 16, -9):
        tools.answer = (code, "TYPE=ext4\n", "error: cannot open")
        with pytest.raises(DeviceError, match="blkid on /dev/loop3 failed"):
            filesystem.probe("/dev/loop3")


@pytest.mark.parametrize(
    "look", [filesystem.probe, filesystem.content, lambda path: filesystem.lacks_journal("ext4", path)]
)
def test_what_cannot_be_read_is_an_error_and_not_a_disk_with_nothing_known_on_it(
    look: Callable[[str], object], tmp_path: Path
) -> None:
    """Real blkid exits with the same 2 for what it cannot open or read as for what it does not know."""
    with pytest.raises(DeviceError, match=r"disk cannot be read: No such file or directory$") as caught:
        look(str(tmp_path / "disk"))
    assert caught.value.remedy


def test_blkid_is_asked_again_of_what_has_been_read_since(tools: Tools, tmp_path: Path) -> None:
    """A read of its own may have failed, and only that one: what was read then is in the page cache."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"something")
    answers = iter([(2, "", ""), (0, "TYPE=xfs\n", "")])

    def run(arguments: Sequence[str], held: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
        tools.answer = next(answers)
        return tools.run(arguments, held)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesystem, "run_tool", run)
        assert filesystem.probe(str(disk)) == {"TYPE": "xfs"}


@pytest.mark.parametrize("bad", [128 << 10, (7 << 20) + 512])
def test_what_cannot_be_read_behind_the_first_bytes_is_an_error_as_well(
    bad: int, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives what is before a bad sector, and the error to who reads on."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * (8 << 20))
    pread = os.pread

    def read(fd: int, length: int, offset: int) -> bytes:
        if offset <= bad < offset + length:
            if offset == bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            length = bad - offset
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", read)
    tools.answer = (2, "", "")
    with pytest.raises(DeviceError, match="cannot be read: Input/output error"):
        filesystem.probe(str(disk))
