"""The peer in the same run: nbdkit's curl plugin behind nbdfuse, read-only, with a loop device on its file.

The whole path is the one that this project has (HTTP server, user-space process, FUSE, loop device), so the two numbers
can be put side by side. nbdkit 1.32 serves one request at a time on a connection, so nbdfuse is given many.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["nbdfuse_device"]

_CONNECTIONS = 32
_LIMIT_S = 10.0


@contextlib.contextmanager
def nbdfuse_device(url: str, directory: Path) -> Iterator[tuple[str, list[int]]]:
    """A loop device that shows what `url` holds, and the ids of the processes behind it. `directory` is for own use."""
    socket, mount = directory / "nbd.sock", directory / "nbd"
    mount.mkdir()
    server = ["nbdkit", "--foreground", "--readonly", "--unix", str(socket), "--filter=multi-conn"]
    with contextlib.ExitStack() as stack:
        nbdkit = _start(stack, [*server, "curl", url, "multi-conn-mode=unsafe"])
        _wait_for(socket, nbdkit)
        client = ["nbdfuse", "--readonly", "--connections", str(_CONNECTIONS), str(mount / "disk")]
        nbdfuse = _start(stack, [*client, f"nbd+unix:///?socket={socket}"])
        stack.callback(nbdfuse.wait, _LIMIT_S)  # it ends when its mount is gone
        stack.callback(subprocess.run, ["umount", "--lazy", str(mount)], check=False)
        _wait_for(mount / "disk", nbdfuse)
        command = ["losetup", "--find", "--show", "--read-only", "--direct-io=on", str(mount / "disk")]
        device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        stack.callback(subprocess.run, ["losetup", "--detach", device], check=False)
        yield device, [nbdkit.pid, nbdfuse.pid]


def _start(stack: contextlib.ExitStack, command: list[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    stack.callback(process.wait, _LIMIT_S)
    stack.callback(process.terminate)
    return process


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{path} did not appear")
        time.sleep(0.02)
