"""tools/demo, as a person runs it, but with directories of the test's own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import need_mount_helpers
from tests.leaks import RunDirs

DEMO = Path(__file__).resolve().parents[2] / "tools" / "demo.py"


def demo(dirs: RunDirs, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo; it needs /sbin/mount.dysk."""
    need_mount_helpers()
    command = [sys.executable, str(DEMO), "--directory", str(dirs.root / "demo"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_goes_through_a_disk_s_whole_life(run_dirs: RunDirs) -> None:
    done = demo(run_dirs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same, SHA-256" in done.stdout
    assert "What to type next" in done.stdout
    assert not (run_dirs.root / "demo").exists()


def test_keep_leaves_it_mounted_and_cleanup_removes_it(run_dirs: RunDirs) -> None:
    kept = demo(run_dirs, "--keep")
    data = run_dirs.root / "demo" / "data"
    try:
        assert kept.returncode == 0, kept.stdout + kept.stderr
        assert os.path.ismount(data)
        (data / "more").write_text("of it")
        again = demo(run_dirs)
        assert again.returncode == 1
        assert f"tools/demo --cleanup --directory {data.parent}\n" in again.stderr
        assert f"tools/demo --cleanup --directory {data.parent}\n" in kept.stdout
    finally:
        cleaned = demo(run_dirs, "--cleanup")
    assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    assert not data.parent.exists()
    assert demo(run_dirs, "--cleanup").returncode == 0


def test_cleanup_while_it_is_used_says_what_to_do_and_does_not_harm(run_dirs: RunDirs) -> None:
    demo(run_dirs, "--keep")
    data = run_dirs.root / "demo" / "data"
    with (data / "open").open("w"):
        busy = demo(run_dirs, "--cleanup")
        assert busy.returncode == 1 and f"fuser -vm {data}" in busy.stderr
        assert os.path.ismount(data)
    assert demo(run_dirs, "--cleanup").returncode == 0


def test_cleanup_without_the_service(run_dirs: RunDirs) -> None:
    """Azurite has ended, and what was written last has nowhere to go: nobody waits for it."""
    demo(run_dirs, "--keep")
    root = run_dirs.root / "demo"
    (root / "data" / "unwritten").write_bytes(os.urandom(1 << 20))
    os.killpg(json.loads((root / "state.json").read_text())["pid"], signal.SIGKILL)
    cleaned = demo(run_dirs, "--cleanup")
    assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    assert not root.exists()


@pytest.mark.parametrize("step", ["$ dyskctl create", "$ mount", "writing", "$ umount"])
def test_an_interrupt_takes_everything_back(run_dirs: RunDirs, step: str) -> None:
    """As Ctrl-C does it: to all processes of the terminal. mount(8) ends at once, mount.dysk when it has cleared up."""
    need_mount_helpers()
    command = [sys.executable, str(DEMO), "--directory", str(run_dirs.root / "demo")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if step in line:
                break
        time.sleep(random.uniform(0, 0.4))  # somewhere in that step, or in the next
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 130, rest
    assert "removed all that the demo made" in rest
    assert not (run_dirs.root / "demo").exists()
