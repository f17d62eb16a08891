"""Hosts of a test's own on this machine: network namespaces with a host name and directories of their own, and a bridge
that joins them to a server's address.

Only the network and the host name are apart: devices, mounts and processes are this machine's, so the fixtures that
look for leaks see them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from blobfuse_dysk.testing import PageBlobServer
from tests.conftest import need
from tests.e2e.kit import Done, Node
from tests.e2e.loads import call
from tests.leaks import RunDirs

__all__ = ["Host", "Network", "network"]


@dataclass
class Host:
    """One host: its name, its end of the cable, and a node of the kit that lives there."""

    name: str
    namespace: str
    cable: str
    node: Node

    def words(self, *words: str) -> list[str]:
        """A command line that runs there."""
        shell = 'hostname "$0" && exec "$@"'
        return [
            "nsenter",
            f"--net=/run/netns/{self.namespace}",
            "unshare",
            "--uts",
            "sh",
            "-c",
            shell,
            self.name,
            *words,
        ]

    def dyskctl(self, *words: str) -> Done:
        return self.node.run(*self.words(str(Path(sys.executable).parent / "dyskctl"), *words))

    def ok(self, *words: str) -> str:
        """dyskctl, which must succeed; its output."""
        done = self.dyskctl(*words)
        assert (done.code, done.err) == (0, ""), done
        return done.out

    def link(self, state: str) -> None:
        """Take its network `down`, or `up` again: the far end of its cable."""
        call("ip", "link", "set", self.cable, state)


@dataclass
class Network:
    """A bridge with an address for a server."""

    address: str
    prefix: str
    bridge: str

    def host(self, name: str, number: int, dirs: RunDirs, template: Node) -> Host:
        """Join one more host. It has directories of its own below the test's."""
        namespace, cable = f"{self.bridge}{number}", f"{self.bridge}c{number}"
        call("ip", "netns", "add", namespace)
        call("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        call("ip", "link", "set", cable, "master", self.bridge, "up")
        # Not `ip -n`, which makes a mount namespace, too, and cannot in a plain chroot.
        inside = ["nsenter", f"--net=/run/netns/{namespace}", "ip"]
        call(*inside, "address", "add", f"{self.prefix}.{10 + number}/24", "dev", "eth0")
        call(*inside, "link", "set", "eth0", "up")
        call(*inside, "link", "set", "lo", "up")
        own = RunDirs(dirs.root, *(dirs.root / name / part for part in ("run", "config", "log", "dev")))
        for path in (own.run, own.config, own.log, own.dev):
            path.mkdir(parents=True, mode=0o700)
        node = replace(template, dirs=own)
        conf = node.write_credentials()
        with conf.open("a") as file:
            assert isinstance(template.service, PageBlobServer)
            file.write(f"ca_file = {template.service.ca_file}\n")
        return Host(name, namespace, cable, node)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Make a bridge on an unused network of the range that is kept for benchmarks, 198.18.0.0/15 (RFC 2544)."""
    used = call("ip", "-brief", "address")
    prefix = next(prefix for n in range(256) if (prefix := f"198.18.{(os.getpid() + n) % 256}") not in used)
    bridge = f"dy{os.getpid()}"
    made = subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True, text=True, check=False)
    need(made.returncode == 0, f"there is no bridge to be had: {made.stderr.strip()}")
    try:
        call("ip", "address", "add", f"{prefix}.1/24", "dev", bridge)
        call("ip", "link", "set", bridge, "up")
        yield Network(f"{prefix}.1", prefix, bridge)
    finally:
        # The cables by themselves: a namespace lives on, with its end of the cable, while a closed connection in it
        # still tries to send what it had, minutes with the link down. The next host would find its name taken.
        for cable in Path("/sys/class/net").glob(f"{bridge}c*"):
            subprocess.run(["ip", "link", "delete", cable.name], check=True)
        for entry in Path("/run/netns").glob(f"{bridge}*"):
            subprocess.run(["ip", "netns", "delete", entry.name], check=True)
        subprocess.run(["ip", "link", "delete", bridge], check=True)
