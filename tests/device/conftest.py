"""Fixtures for tests that attach devices for real: a disk on a server, and an attachment of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.attachment import Attachment
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.statefile import Lease
from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing import PageBlobServer
from tests.conftest import entries
from tests.leaks import RunDirs, find_leaks

MIB = 1 << 20


def flush(device: str) -> None:
    """Have what the page cache has of this device on the disk; of this one only, as others may be away."""
    fd = os.open(device, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def wait_for(condition: Callable[[], object], what: str, limit_s: float = 20.0) -> None:
    """Poll for a condition; fail the test if it does not come true."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {limit_s:g} s"
        time.sleep(0.01)


class Node:
    """This machine with directories of the test's own, and disks on a server of the test's own."""

    def __init__(self, dirs: RunDirs, server: PageBlobServer, container: str) -> None:
        self.dirs = dirs
        self.server = server
        self.container = container

    def create(self, blob: str = "data", size: int = 64 * MIB) -> str:
        """Make an empty disk; return its address."""
        self.server.create(self.container, blob, size)
        return f"{self.server.account}/{self.container}/{blob}"

    def attach(self, disk: str, **options: Any) -> Attachment:
        return attachment.attach(disk, AttachOptions(**options))

    def state(self, name: str) -> dict[str, Any]:
        """state.json of an attachment that exists."""
        found = state.read(str(self.dirs.run), name)
        assert found is not None
        return dict(found)

    def lease(self, target: str) -> Lease:
        """The lease of an attachment that has one."""
        lease = attachment.get(target).lease
        assert lease is not None
        return lease

    def blob(self, blob: str = "data") -> dict[str, Any]:
        """What the server knows of a disk."""
        return self.server.blob(self.container, blob)

    def log(self, name: str) -> str:
        path = self.dirs.log / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def assert_nothing_left(self, blob: str = "data") -> None:
        """No directory, no device name, no lease."""
        assert entries(self.dirs.run) == []
        assert list(self.dirs.dev.iterdir()) == []
        assert self.blob(blob)["lease"]["state"] == "available"

    def wait_gone(self) -> None:
        """Wait for the end of all attachments, begun ones included, which somebody else caused."""

        def gone() -> bool:
            commands = find_leaks(self.dirs).processes.values()
            return not any("--name" in command for command in commands) and not any(entries(self.dirs.run))

        wait_for(gone, "the end of the attachments")

    def detach_all(self) -> None:
        for name in state.names(str(self.dirs.run)):
            with contextlib.suppress(DyskError):
                attachment.detach(name, force=True, lose_data=True)


@pytest.fixture
def node(run_dirs: RunDirs, server: PageBlobServer, container: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """Attachments that a failing test leaves are detached by force; one that a passing test leaves is a failure."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.connection_string)
    node = Node(run_dirs, server, container)
    yield node
    left = state.names(str(run_dirs.run))
    node.detach_all()
    assert not left, f"the test left {left} attached"


def wait_end(timeout_s: float | None = None) -> None:
    """Wait for the end of the attachment `data`, which is let go of already, or was by then; raises how it was."""
    with attachment.end_of("data", timeout_s) as wait:
        wait()


def fill(path: str | Path, seed: int, size: int) -> bytes:
    """Write `size` bytes that depend on the seed to the start of a device; return them."""
    data = b"".join((seed * 1_000_003 + n).to_bytes(8, "little") for n in range(size // 8))
    with Path(path).open("r+b", buffering=0) as device:
        device.write(data)
    return data
