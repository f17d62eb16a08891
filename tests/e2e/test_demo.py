"""tools/demo, as a person runs it, but with directories of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
        assert "tools/demo --cleanup" in again.stderr
    finally:
        cleaned = demo(run_dirs, "--cleanup")
    assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    assert not data.parent.exists()
    assert demo(run_dirs, "--cleanup").returncode == 0
