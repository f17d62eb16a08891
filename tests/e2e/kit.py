"""What tests of the commands share: a node with its own directories, a service, and the commands as users run them."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from tests.conftest import entries, need_mount_helpers
from tests.leaks import RunDirs

__all__ = ["Account", "Done", "Node", "faulty_node", "node", "partition_table", "service_node", "until"]

BIN = Path(sys.executable).parent
LIMIT_S = 90.0


class Account(Protocol):
    """What both services have."""

    @property
    def endpoint(self) -> str: ...
    @property
    def account(self) -> str: ...
    @property
    def key(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


@dataclass
class Node:
    """A node: directories of its own, a container of its own in the service, a mount point."""

    dirs: RunDirs
    service: Account
    container: str
    mountpoint: Path
    environment: dict[str, str] = field(default_factory=dict)

    def disk(self, name: str = "data") -> str:
        """The short name of a disk in the node's container."""
        return f"{self.service.account}/{self.container}/{name}"

    def write_credentials(self, text: str | None = None, mode: int = 0o600) -> Path:
        """Write ACCOUNT.conf; the account's key and endpoint if no text is given."""
        path = self.dirs.config / f"{self.service.account}.conf"
        path.write_text(text or f"account_key = {self.service.key}\nendpoint = {self.service.endpoint}\n")
        path.chmod(mode)
        return path

    def run(self, *words: str, stdin: str | None = None) -> Done:
        """Run a command to its end, in the node's environment."""
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=self._variables()
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command in the node's environment."""
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._variables())

    def dyskctl(self, *words: str, stdin: str | None = None) -> Done:
        return self.run(str(BIN / "dyskctl"), *words, stdin=stdin)

    def ok(self, *words: str, stdin: str | None = None) -> str:
        """dyskctl, which must succeed and say nothing on standard error; its output."""
        done = self.dyskctl(*words, stdin=stdin)
        assert (done.code, done.err) == (0, ""), done
        return done.out

    def create(self, name: str = "data", size: str = "512MiB") -> str:
        """Make a disk; returns its short name."""
        self.ok("create", self.disk(name), "--size", size)
        return self.disk(name)

    def mount(self, disk: str, options: str = "", *flags: str) -> Done:
        """mount(8), as a user types it."""
        words = [*flags, *(["-o", options] if options else [])]
        return self.run("mount", "-t", "dysk", *words, disk, str(self.mountpoint))

    def umount(self, *words: str) -> Done:
        return self.run("umount", *(words or (str(self.mountpoint),)))

    def is_mounted(self) -> bool:
        return any(line.split()[4] == str(self.mountpoint) for line in mountinfo())

    def nothing_left(self) -> bool:
        """No attachment: no state, no device, no mount (the fixture of the directories looks for processes too)."""
        left = [*entries(self.dirs.run), *self.dirs.dev.iterdir(), *self._loop_devices()]
        return not left and not self.is_mounted()

    def _loop_devices(self) -> list[str]:
        """Loop devices with a file of this node behind them; others have theirs."""
        found = []
        for entry in Path("/sys/block").glob("loop*"):
            with contextlib.suppress(OSError):
                if (entry / "loop" / "backing_file").read_text().startswith(f"{self.dirs.run}/"):
                    found.append(entry.name)
        return found

    def _variables(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AZURE_")}
        return {**clean, **self.dirs.environment, **self.environment}


def mountinfo() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def until(condition: Callable[[], object], what: str, limit_s: float = 20.0) -> None:
    """Wait until the condition holds; fail after limit_s seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {limit_s:g} s: {what}")
        time.sleep(0.02)


def partition_table(*partitions: tuple[int, int]) -> bytes:
    """A master boot record with Linux partitions, each (first sector, number of sectors): 512 bytes.

    Source: https://uefi.org/specs/UEFI/2.10/05_GUID_Partition_Table_Format.html#legacy-master-boot-record-mbr
    """
    table = b"".join(struct.pack("<B3sB3sII", 0, b"", 0x83, b"", start, length) for start, length in partitions)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def make_node(dirs: RunDirs, service: Account, container: str) -> Iterator[Node]:
    """A node with credentials for the account in place. At the end its mounts and attachments are taken down."""
    need_mount_helpers()
    mountpoint = dirs.root / "m"
    mountpoint.mkdir()
    node = Node(dirs, service, container, mountpoint)
    node.write_credentials()
    yield node
    while node.is_mounted():
        assert node.run("umount", str(mountpoint)).code == 0
    for path in entries(dirs.run):
        node.dyskctl("detach", path.name)


@pytest.fixture
def node(shared_server: Account, run_dirs: RunDirs, container: str) -> Iterator[Node]:
    """A node that uses the project's own server (started before the node's variables are set, so not part of it)."""
    yield from make_node(run_dirs, shared_server, container)


@pytest.fixture
def faulty_node(server: Account, run_dirs: RunDirs, container: str) -> Iterator[Node]:
    """A node with a server of its own, whose faults are the test's."""
    yield from make_node(run_dirs, server, container)


@pytest.fixture
def service_node(service: Account, run_dirs: RunDirs, container: str) -> Iterator[Node]:
    """A node, once for each service."""
    yield from make_node(run_dirs, service, container)
