"""Process 1 of a space: makes the mounts, then reaps orphans, and forwards what comes to an inherited socket.

Runs as a script of its own under unshare(1) with new mount, PID, network, host name and IPC namespaces, and takes its
orders as one JSON object in its first argument. When it is killed, the kernel ends every process of the space, and the
mounts and interfaces go with the namespaces.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

# What the kubelet sets for the whole machine. It finds its values there and writes nothing; the machine keeps its own.
_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _prepare(orders: dict[str, Any]) -> None:
    """Everything that the space sees of its own: /proc, /run, its folders, its host name, its loopback."""
    _leave_disks()
    _mount("--make-rshared", "/")  # the kubelet's and a driver's mounts are to be seen in containers, and the reverse
    _mount("-t", "proc", "proc", "/proc")
    for folder in orders["volatile"]:
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
    for source, target in orders["binds"]:
        _mount("--bind", source, target)
        # Out of the peer group of the source's file system: what is mounted below one is not to appear below the other.
        _mount("--make-private", target)
        _mount("--make-shared", target)
    for name, value in _SYSCTLS.items():
        stand_in = Path("/run/sysctl") / name
        stand_in.parent.mkdir(parents=True, exist_ok=True)
        stand_in.write_text(value + "\n")
        _mount("--bind", str(stand_in), f"/proc/sys/{name}")
    socket.sethostname(orders["name"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")


def _leave_disks() -> None:
    """Unmounts here what is mounted on the machine of FUSE and loop devices: a copy would keep their owners waiting."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        fields, _, kind = line.partition(" - ")
        fstype, source = kind.split()[:2]
        if fstype.startswith("fuse.") or source.startswith("/dev/loop"):
            where = fields.split()[4].encode().decode("unicode_escape")
            subprocess.run(["umount", "--lazy", where], check=True)


def _reap() -> None:
    """Takes the exit status of every orphan that ended, so that none stays a zombie."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # the other side is told by the end of its stream
    finally:
        writer.close()


async def _serve(orders: dict[str, Any]) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, _reap)
    if orders["listen_fd"] is not None:
        host, port = orders["forward_to"]

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                far_reader, far_writer = await asyncio.open_connection(host, port)
            except OSError:
                writer.close()  # nobody serves there yet: the caller sees its connection end
                return
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

        await asyncio.start_server(forward, sock=socket.socket(fileno=orders["listen_fd"]))
    await asyncio.Event().wait()


def main() -> None:
    """Prepares the space, writes its process id as the machine sees it, and stays."""
    orders: dict[str, Any] = json.loads(sys.argv[1])
    outside = Path("/proc/self").readlink().name  # the machine's /proc is still mounted here
    _prepare(orders)
    ready = Path(orders["pid_file"])
    (new := ready.with_suffix(".new")).write_text(outside + "\n")
    new.rename(ready)
    asyncio.run(_serve(orders))


if __name__ == "__main__":
    main()
