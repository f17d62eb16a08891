"""A bind mount in one step: what is looked at is what is shown."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobfuse_dysk.device.kernel.bind import bind
from blobfuse_dysk.errors import DeviceError
from tests.conftest import need


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file system, and an empty directory."""
    need(os.geteuid() == 0, "mounting takes root")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", source], check=True)
    yield source, target
    for path in (target, source):
        subprocess.run(["umount", "-q", path], check=False)


def test_it_is_shown_as_it_is_and_read_only_if_that_is_asked_for(places: tuple[Path, Path]) -> None:
    source, target = places
    bind(str(source), str(target), read_only=False, is_it=lambda status: True)
    (target / "file").write_text("there")
    assert (source / "file").read_text() == "there"
    subprocess.run(["umount", target], check=True)
    bind(str(source), str(target), read_only=True, is_it=lambda status: True)
    with pytest.raises(OSError, match="Read-only"):
        (target / "other").touch()
    (source / "other").touch()


def test_what_is_not_what_was_meant_is_not_shown(places: tuple[Path, Path]) -> None:
    source, target = places
    meant = source.stat().st_dev
    bind(str(source), str(target), read_only=False, is_it=lambda status: status.st_dev == meant)
    subprocess.run(["umount", target, source], check=True)
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(DeviceError, match="is not what it was"):
        bind(str(source), str(target), read_only=False, is_it=lambda status: status.st_dev == meant)
    assert not os.path.ismount(target)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_device_is_shown_on_a_file_and_what_is_not_there_is_an_error(places: tuple[Path, Path]) -> None:
    source, target = places
    file = target / "device"
    file.touch()
    bind("/dev/null", str(file), read_only=False, is_it=lambda status: status.st_rdev == os.makedev(1, 3))
    assert file.is_char_device()
    subprocess.run(["umount", file], check=True)
    for paths in ((str(source / "none"), str(target)), (str(source), str(target / "none"))):
        with pytest.raises(FileNotFoundError):
            bind(*paths, read_only=False, is_it=lambda status: True)
