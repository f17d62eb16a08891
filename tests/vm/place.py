"""What every scenario works with: the server on this machine, the package, a machine with the package installed."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from blobfuse_dysk.testing import PageBlobServer
from tests.vm.images import Images, make_images
from tests.vm.machine import Image, Machine, VmError

__all__ = ["ACCOUNT", "DISK", "LASTING", "MIB", "ROOT", "Failed", "Place", "require"]

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "vmtest"
CONTAINER, BLOB = "disks", "data"
DISK = f"{ACCOUNT}/{CONTAINER}/{BLOB}"
KEY = "dGVzdHMgb2YgdmlydHVhbCBtYWNoaW5lcywgbm90IGEgc2VjcmV0IQ=="
MIB = 1 << 20
LASTING = ("base", "node")  # machines that one scenario leaves to the next
FSTAB = f"{DISK} /data dysk _netdev,nofail,fstype=ext4 0 0"
# What the journal may not hold, of anybody, about what is ours.
_OURS = re.compile(r"dysk|\bdata\.mount|loop\d|\bfuse\b|EXT4-fs (error|warning)", re.IGNORECASE)


class Failed(Exception):
    """A scenario found what must not be."""


def require(condition: object, what: str) -> None:
    """Raise Failed unless it holds; an assertion that optimisation does not remove."""
    if not condition:
        raise Failed(what)


@dataclass
class Place:
    """counts: for the summary, what -> how often."""

    image: Image
    work: Path
    given_package: Path | None  # built already
    given_tree: Path | None  # of the Kubernetes drivers, built already
    server: PageBlobServer
    say: Callable[[str], None]
    cuts: int  # how often the power scenario cuts it
    kills: int  # how often the scenario worker kills one
    counts: dict[str, int] = field(default_factory=dict)
    machines: list[Machine] = field(default_factory=list)

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def machine(self, name: str, like: Machine | None = None) -> Machine:
        """A machine that is off. like: one that is off, whose disk is the beginning of this one's."""
        made = Machine(self.image, self.work, name, like)
        self.machines.append(made)
        return made

    def new_disk(self, size: int = 256 * MIB) -> None:
        """The disk, blank, and free."""
        with contextlib.suppress(ValueError):
            self.server.remove(CONTAINER, BLOB)
        self.server.create(CONTAINER, BLOB, size)

    def lease(self) -> str:
        """The state of the disk's lease at the service: available, leased, expired, ..."""
        found: str = self.server.blob(CONTAINER, BLOB)["lease"]["state"]
        return found

    def payload(self, package: Path) -> Path:
        """The package as a machine's second drive: an archive without a file system."""
        path = self.work / "payload.tar"
        subprocess.run(["tar", "-C", package.parent, "-cf", path, package.name], check=True)
        return path

    @cached_property
    def package(self) -> Path:
        """The Debian package."""
        if self.given_package:
            return self.given_package
        self.say("building the package")
        out = self.work / "package"
        subprocess.run([ROOT / "packaging" / "deb" / "build", out], check=True, stdout=subprocess.DEVNULL)
        return next(out.glob("blobfuse-dysk_*.deb"))

    @cached_property
    def base(self) -> Machine:
        """A machine with the package installed, which never runs again: others begin as it."""
        self.say("installing the package in a machine")
        base = self.machine("base")
        base.start(self.payload(self.package))
        base.await_boot()
        self.install(base)
        base.shut_down()
        return base

    @cached_property
    def node(self) -> Machine:
        """The machine of the scenarios that want one, with the package; off."""
        return self.machine("node", self.base)

    def install(self, machine: Machine) -> None:
        """The package, a credential and the line in /etc/fstab. The machine runs, with the payload."""
        machine.ask("mkdir -p /root/package && tar -C /root/package -xf /dev/vdb")
        machine.ask("dpkg -i /root/package/*.deb", timeout_s=300)
        conf = f"account_key = {KEY}\nendpoint = http://10.0.2.2:{self.server.port}/{ACCOUNT}\nallow_http = yes\n"
        machine.ask(
            f"umask 077; printf '{conf}' >/etc/dysk/{ACCOUNT}.conf; mkdir -p /data; echo '{FSTAB}' >>/etc/fstab"
        )

    @cached_property
    def images(self) -> Images:
        """Those of the Kubernetes drivers."""
        tree = self.given_tree
        if tree is None:
            self.say("building the tree of the Kubernetes drivers")
            tree = self.work / "tree"
            build = ROOT / "packaging" / "container" / "build"
            subprocess.run([build, "--tree", tree], check=True, stdout=subprocess.DEVNULL)
        return make_images(tree, self.work)

    def boot(self, machine: Machine, *, state: str = "running", payload: Path | None = None) -> None:
        """Power on, and wait until everything is up. payload: see Machine.start."""
        machine.start(payload)
        found = machine.await_boot()
        if found != state:
            failed = machine.ask("systemctl --failed --no-legend; journalctl -b -p warning --no-pager | tail -n 40")
            raise Failed(f"{machine.name} is {found}, not {state}:\n{failed}")

    def journal_is_clean(self, machine: Machine, boot: str = "0") -> None:
        """No warning and no error about anything of ours in one boot's journal, its shutdown included."""
        lines = machine.ask(f"journalctl --no-pager -o short-monotonic -b {boot} -p warning").splitlines()
        lines += machine.ask(
            f"journalctl --no-pager -b {boot} | grep -E 'Failed (un)?mount|Dependency failed'; true"
        ).splitlines()
        found = [line for line in lines if _OURS.search(line)]
        require(not found, "the journal has:\n" + "\n".join(found))

    def is_mounted(self, machine: Machine) -> bool:
        return machine.code("findmnt -n -t ext4 /data") == 0

    def await_(self, what: str, ready: Callable[[], Any], limit_s: float) -> Any:
        """Poll until it holds."""
        deadline = time.monotonic() + limit_s
        while not (found := ready()):
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not within {limit_s:.0f} s")
            time.sleep(0.3)
        return found

    def close(self) -> None:
        for machine in self.machines:
            try:
                machine.close()
            except (VmError, OSError) as error:
                self.say(f"{machine.name}: {error}")
