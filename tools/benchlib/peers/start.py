"""Starting a peer's programs: which are there, that they end with the benchmark, and when they are ready."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LIMIT_S", "MissingPeerError", "loop_device", "need_programs", "start", "wait_for"]

LIMIT_S = 20.0


class MissingPeerError(Exception):
    """A peer is not here: its reason, and how to get it."""

    def __init__(self, reason: str, remedy: str = "tools/setup --bench installs it") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def need_programs(*names: str) -> None:
    """Raise MissingPeerError unless all are on the PATH."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise MissingPeerError(f"{' and '.join(missing)} not installed")


def start(stack: contextlib.ExitStack, command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program, ended with the stack, and by the kernel if this process is killed. Its output goes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    stack.callback(_end, process)
    return process


def wait_for(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when `path` exists; RuntimeError with the end of the log if the program ends, or takes too long."""
    deadline = time.monotonic() + LIMIT_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{path.name} did not appear: {log.read_text(errors='replace').strip()[-300:]}")
        time.sleep(0.02)


@contextlib.contextmanager
def loop_device(path: Path, *, read_only: bool = False) -> Iterator[str]:
    """A loop device on a file, with direct I/O, as this project puts one on its own."""
    command = ["losetup", "--find", "--show", "--direct-io=on", *(["--read-only"] if read_only else []), str(path)]
    device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, then make it."""
    process.terminate()
    try:
        process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
