"""device/ipc/state.py: the lock of /run/dysk, and the directory itself."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.errors import DeviceError


def test_the_lock_excludes(tmp_path: Path) -> None:
    with state.lock(str(tmp_path)):
        for kind in ("--exclusive", "--shared"):
            taken = subprocess.run(["flock", kind, "--nonblock", str(tmp_path / ".lock"), "true"])
            assert taken.returncode == 1
    assert subprocess.run(["flock", "--nonblock", str(tmp_path / ".lock"), "true"]).returncode == 0
    assert state.names(str(tmp_path)) == []


def test_nobody_but_root_can_hold_the_lock(tmp_path: Path) -> None:
    """The directory can be opened, and so locked, by every user; attach and shutdown waited for them for ever."""
    mask = os.umask(0)
    try:
        with state.lock(str(tmp_path)):
            assert stat.S_IMODE((tmp_path / ".lock").stat().st_mode) == 0o600
    finally:
        os.umask(mask)
    with locked_by_another(tmp_path), state.lock(str(tmp_path)):
        pass


def locked_by_another(path: Path) -> subprocess.Popen[bytes]:
    """A process that has a directory locked until it is let go."""
    process = subprocess.Popen(
        ["flock", str(path), "sh", "-c", "echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline() == b"\n"
    return process


def test_a_lock_that_is_not_given_back_is_an_error_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "LOCK_S", 0.05)
    run = str(tmp_path)
    with state.lock(run), pytest.raises(DeviceError, match=r"locked for 0\.05 s") as caught, state.lock(run):
        raise AssertionError("two have it")
    assert "fuser" in str(caught.value.remedy)


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), state.lock(str(tmp_path)):
        raise AssertionError("it was followed")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o000])
def test_the_run_directory_has_one_mode(tmp_path: Path, mask: int) -> None:
    """It had the mode that the umask of whoever came first left: a service's, or a shell's."""
    run = tmp_path / "run" / "dysk"
    before = os.umask(mask)
    try:
        state.make_run(str(run))
        state.make_run(str(run))
    finally:
        os.umask(before)
    assert stat.S_IMODE(run.stat().st_mode) == 0o755
