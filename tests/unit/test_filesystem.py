"""mkfs and blkid: how they are asked, and what their answers mean. What is formatted is in test_mount_steps.py."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest

from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.mount import filesystem


class Tools:
    """Answers for the tools; asked: each command line, the program without its directory."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.answer = (0, "", "")

    def run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append([arguments[0].rpartition("/")[2], *arguments[1:]])
        return subprocess.CompletedProcess(arguments, *self.answer)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    fake = Tools()
    monkeypatch.setattr(filesystem, "run_tool", fake.run)
    monkeypatch.setattr(filesystem, "find_tool", lambda name, remedy=None: f"/usr/sbin/{name}")
    return fake


@pytest.mark.parametrize(("fstype", "options"), [("ext4", []), ("xfs", ["-K"]), ("btrfs", ["-L", "data"])])
def test_mkfs_is_not_forced(tools: Tools, fstype: str, options: list[str]) -> None:
    """What finds a file system all the same (mkfs.xfs and mkfs.btrfs look) may refuse."""
    filesystem.make_file_system(fstype, "/dev/loop3", options)
    assert tools.asked == [[f"mkfs.{fstype}", "-q", *options, "/dev/loop3"]]


def test_mkfs_that_fails_is_a_failure_in_its_own_words(tools: Tools) -> None:
    tools.answer = (1, "", "mke2fs 1.47.0 (5-Feb-2023)\nmkfs.ext4: it is full.\n")
    with pytest.raises(DeviceError, match=r"mkfs.ext4 on /dev/loop3 failed: it is full$"):
        filesystem.make_file_system("ext4", "/dev/loop3", [])


def test_blkid_looks_at_the_device_and_not_into_its_cache(tools: Tools) -> None:
    tools.answer = (0, "DEVNAME=/dev/loop3\nUUID=1\nTYPE=ext4\nLABEL=a=b\n", "")
    found = filesystem.probe("/dev/loop3")
    assert (found["TYPE"], found["LABEL"]) == ("ext4", "a=b")
    (asked,) = tools.asked
    assert "-p" in asked and asked[-1] == "/dev/loop3"


def test_what_blkid_does_not_find_is_not_what_it_cannot_tell(tools: Tools) -> None:
    tools.answer = (2, "", "")
    assert filesystem.probe("/dev/loop3") == {}
    tools.answer = (8, "", "")
    with pytest.raises(DeviceError, match="more than one file system"):
        filesystem.probe("/dev/loop3")
    for code in (1, 4, 16, -9):
        tools.answer = (code, "TYPE=ext4\n", "error: cannot open")
        with pytest.raises(DeviceError, match="blkid on /dev/loop3 failed"):
            filesystem.probe("/dev/loop3")
