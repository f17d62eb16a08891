"""The system's tools and tables that mounting needs: how they are asked, and what their answers mean."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.mount import tools as mounttools


def test_a_tool_that_is_missing_is_named_with_where_it_was_looked_for() -> None:
    with pytest.raises(DeviceError) as caught:
        mounttools.find_tool("mkfs.nosuchfs")
    assert str(caught.value) == "mkfs.nosuchfs is not installed"
    assert caught.value.remedy and "/usr/sbin" in caught.value.remedy


@pytest.fixture
def mountinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What stands for /proc/self/mountinfo."""
    monkeypatch.setattr("blobfuse_dysk.device.kernel.mountinfo._PROC", str(tmp_path))
    table = tmp_path / "self" / "mountinfo"
    table.parent.mkdir()
    return table


def test_the_uppermost_mount_of_a_directory_counts(mountinfo: Path) -> None:
    mountinfo.write_text(
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "40 22 7:1 /sub /mnt/with\\040blank ro,noatime master:2 shared:3 - xfs /dev/loop1p2 ro,attr2\n"
        "41 22 0:40 / /mnt/with\\040blank rw - tmpfs none rw\n"
    )
    found = mounttools.top_mount("/mnt/with blank")
    assert found and found.source == "none"
    assert mounttools.top_mount("/elsewhere") is None


@pytest.mark.parametrize(
    ("source", "device"),
    [
        ("/dev/loop3", "/dev/loop3"),
        ("/dev/loop3p1", "/dev/loop3"),
        ("/dev/loop12p10", "/dev/loop12"),
        ("none", "none"),
        ("/dev/sdp1", "/dev/sdp1"),
        ("/dev/loop3p", "/dev/loop3p"),
    ],
)
def test_the_device_that_a_partition_is_on(source: str, device: str) -> None:
    assert mounttools.whole_device(source) == device


def test_a_mount_is_found_by_its_directory_or_its_device_and_the_last_goes_first(mountinfo: Path) -> None:
    mountinfo.write_text(
        "22 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "40 22 7:1 / /mnt rw - xfs /dev/loop1 rw\n"
        "41 22 7:1 / /srv rw - xfs /dev/loop1 rw\n"
        "42 40 7:2 / /mnt rw - ext4 /dev/loop2 rw\n"
    )
    for found in (mounttools.find_mounted("/mnt"), mounttools.top_mount("/mnt")):
        assert found and (found.source, found.directory) == ("/dev/loop2", "/mnt")
    found = mounttools.find_mounted("/dev/loop1")
    assert found and found.directory == "/srv"
    assert mounttools.find_mounted("/dev/loop9") is None


def test_a_tool_does_not_outlive_who_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    def interrupted(tool: subprocess.Popen[str]) -> tuple[str, str]:
        started.append(tool)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mounttools.run_tool(["/bin/sleep", "600"])
    (tool,) = started
    try:
        assert tool.poll() is not None
    finally:
        tool.kill()
        tool.wait()
        for pipe in (tool.stdout, tool.stderr):
            assert pipe
            pipe.close()
