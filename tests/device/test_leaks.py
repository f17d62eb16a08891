"""The leak check that guards every device test: it finds what is left, takes it down, and looks at nothing else."""

from __future__ import annotations

import subprocess

from tests.leaks import RunDirs, find_leaks, remove_leaks
from tests.polling import eventually


def test_a_loop_device_its_mount_and_a_process_are_found_and_removed(run_dirs: RunDirs) -> None:
    image = run_dirs.root / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True)
    loop = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True).stdout.strip()
    point = run_dirs.root / "a mount point"
    point.mkdir()
    subprocess.run(["mount", loop, point], check=True)
    sleeper = subprocess.Popen(["sleep", "600"])
    # Popen returns when exec closes descriptors, a moment before /proc shows the new command line and environment.
    eventually(lambda: bool(find_leaks(run_dirs).processes))

    found = find_leaks(run_dirs)
    assert found.loops == {loop: str(image)}
    assert found.mounts == [str(point)]
    assert found.processes == {sleeper.pid: "sleep 600"}

    remove_leaks(run_dirs)
    sleeper.wait(5)
    assert not find_leaks(run_dirs)


def test_a_process_of_somebody_else_is_not_a_leak(run_dirs: RunDirs) -> None:
    stranger = subprocess.Popen(["sleep", "600"], env={"PATH": "/usr/bin:/bin"})
    try:
        assert not find_leaks(run_dirs)
    finally:
        stranger.kill()
        stranger.wait(5)
