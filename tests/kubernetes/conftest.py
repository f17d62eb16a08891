"""Fixtures of the Kubernetes tests."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.testing import PageBlobServer
from tests.kubernetes.client import Client
from tests.kubernetes.nodes import Plugin, Pod
from tests.kubernetes.stack import Stack, stack
from tests.leaks import RunDirs

MIB = 1 << 20
_numbers = itertools.count(1)


class Cluster:
    """A server, a node plugin, and volumes on it."""

    def __init__(self, dirs: RunDirs, server: PageBlobServer, container: str, plugin: Plugin) -> None:
        self.dirs = dirs
        self.server = server
        self.container = container
        self.plugin = plugin

    @property
    def secrets(self) -> dict[str, str]:
        server = self.server
        return {"accountname": server.account, "accountkey": server.key, "endpoint": server.endpoint}

    def disk(self, blob: str = "data", size: int = 64 * MIB) -> str:
        """Make an empty disk; return its volume id."""
        self.server.create(self.container, blob, size)
        return f"{self.server.account}/{self.container}/{blob}"

    def volume(self, blob: str = "data", size: int = 64 * MIB, **how: Any) -> Pod:
        """A volume of a new disk."""
        return Pod(self.plugin, self.dirs.root / blob, self.disk(blob, size), self.secrets, **how)

    def blob(self, blob: str = "data") -> dict[str, Any]:
        return self.server.blob(self.container, blob)

    def attachments(self) -> list[str]:
        return state.names(str(self.dirs.run))

    def state(self) -> dict[str, Any]:
        """state.json of the only attachment."""
        (name,) = self.attachments()
        found = state.read(str(self.dirs.run), name)
        assert found
        return dict(found)

    def logs(self) -> str:
        """All that was written to a log or a file of this node."""
        files = [path for path in self.dirs.root.rglob("*") if path.is_file() and "/fs/" not in str(path)]
        return "\n".join(path.read_text(errors="replace") for path in files)


@pytest.fixture
def cluster(server: PageBlobServer, run_dirs: RunDirs, container: str) -> Iterator[Cluster]:
    """A node plugin that runs; what a failing test leaves is taken down, what a passing one leaves is a failure."""
    plugin = Plugin(run_dirs)
    found = Cluster(run_dirs, server, container, plugin)
    try:
        plugin.start()
        yield found
        left = found.attachments()
        assert not left, f"the test left {left} attached"
    finally:
        plugin.stop()
        take_down(run_dirs)


@pytest.fixture(scope="module")
def drivers() -> Iterator[Stack]:
    """A server and directories for the tests of a file, without a driver yet."""
    with stack() as made:
        yield made


@pytest.fixture(scope="module")
def controller(drivers: Stack) -> Iterator[Client]:
    """A client of a controller for the tests of a file; names keep them apart."""
    client = drivers.controller().client()
    yield client
    client.close()


@pytest.fixture
def name() -> str:
    """The name of a volume or a snapshot that no other test has."""
    return f"pvc-{next(_numbers)}"


@pytest.fixture
def names() -> Callable[[], str]:
    """More of them."""
    return lambda: f"pvc-{next(_numbers)}"


def take_down(dirs: RunDirs) -> None:
    """Unmount all below the test's directories and end its attachments."""
    for mount in reversed(mounts_below(dirs.root)):
        if not mount.endswith("/fs"):
            subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
    for name in state.names(str(dirs.run)):
        with contextlib.suppress(DyskError):
            attachment.detach(name, force=True, lose_data=True)
    for path in (*dirs.run.glob(".mkfs-*"), *dirs.run.glob(".*.mkfs*")):
        path.unlink()


def mounts_below(root: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{root}/")]


Make = Callable[..., Pod]
