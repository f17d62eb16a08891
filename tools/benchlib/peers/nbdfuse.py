"""A peer: nbdkit's curl plugin behind nbdfuse, read-only, with a loop device on its file.

The whole path is the one that this project has (HTTP server, user-space process, FUSE, loop device), so the two numbers
can be put side by side. It signs nothing and checks no lease: the URL has a SAS. nbdkit 1.32 serves one request at a
time on a connection, so nbdfuse is given many. The SAS stands in its command line: it is one of the benchmark's server.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tools.benchlib.peers.start import LIMIT_S, loop_device, need_programs, start, wait_for

__all__ = ["NAME", "nbdfuse_device"]

NAME = "nbdfuse + nbdkit curl"
_CONNECTIONS = 32


@contextlib.contextmanager
def nbdfuse_device(url: str, directory: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A loop device that shows what `url` holds, and the ids of the processes behind it. `directory` is for own use."""
    need_programs("nbdkit", "nbdfuse")
    socket, mount, log = directory / "nbd.sock", directory / "nbd", directory / "nbd.log"
    mount.mkdir(exist_ok=True)
    socket.unlink(missing_ok=True)
    server = ["nbdkit", "--foreground", "--readonly", "--unix", str(socket), "--filter=multi-conn"]
    with contextlib.ExitStack() as stack:
        nbdkit = start(stack, [*server, "curl", url, "multi-conn-mode=unsafe"], log)
        wait_for(socket, nbdkit, log)
        client = ["nbdfuse", "--readonly", "--connections", str(_CONNECTIONS), str(mount / "disk")]
        nbdfuse = start(stack, [*client, f"nbd+unix:///?socket={socket}"], log)
        stack.callback(nbdfuse.wait, LIMIT_S)  # it ends when its mount is gone
        stack.callback(subprocess.run, ["umount", "--lazy", str(mount)], check=False)
        wait_for(mount / "disk", nbdfuse, log)
        device = stack.enter_context(loop_device(mount / "disk", read_only=True))
        yield device, (nbdkit.pid, nbdfuse.pid)
