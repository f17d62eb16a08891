"""Where the benchmark attaches: directories of its own, one server, and the processes that belong to them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blobfuse_dysk.testing import PageBlobServer

__all__ = ["Place", "open_place"]

_CONTAINER = "bench"
_DYSKCTL = str(Path(sys.executable).parent / "dyskctl")


@dataclass(frozen=True, slots=True)
class Place:
    """A server, and the environment that makes dyskctl use it and this benchmark's own directories."""

    server: PageBlobServer
    root: Path
    environment: dict[str, str]

    def make_disk(self, name: str, size: int) -> str:
        """Make an empty disk of `size` bytes; returns what dyskctl calls it."""
        self.server.create(_CONTAINER, name, size)
        return f"{self.server.account}/{_CONTAINER}/{name}"

    def url(self, name: str) -> str:
        """The disk's URL with a SAS for reading, for a peer that knows nothing of Azure."""
        from datetime import UTC, datetime, timedelta

        from azure.storage.blob import BlobSasPermissions, generate_blob_sas

        sas = generate_blob_sas(
            self.server.account,
            _CONTAINER,
            name,
            account_key=self.server.key,
            permission=BlobSasPermissions(read=True),
            expiry=datetime.now(UTC) + timedelta(days=1),
        )
        return f"{self.server.endpoint}/{_CONTAINER}/{name}?{sas}"

    def run(self, *arguments: str) -> str:
        """Run dyskctl and return what it printed; CalledProcessError if it fails."""
        command = [_DYSKCTL, *arguments]
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
        )
        return done.stdout.decode().strip()

    def processes(self, kind: str = "") -> list[int]:
        """The holders and workers that run now, or those with `kind` in their command line."""
        needle = os.fsencode(self.root)
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                command = (entry / "cmdline").read_bytes()
                if needle in (entry / "environ").read_bytes() and b"blobfuse_dysk" in command:
                    found.append((int(entry.name), command))
        return sorted(pid for pid, command in found if kind.encode() in command)


@contextlib.contextmanager
def open_place(latency_ms: float) -> Iterator[Place]:
    """A server with this service time, and directories of their own under /run, gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="dysk-bench-", dir="/run") as directory,
        PageBlobServer(latency_ms=latency_ms) as server,
    ):
        root = Path(directory)
        environment = {
            **os.environ,
            "AZURE_STORAGE_CONNECTION_STRING": server.connection_string,
            "DYSK_RUN_DIR": str(root / "run"),
            "DYSK_CONFIG_DIR": str(root / "config"),
            "DYSK_LOG_DIR": str(root / "log"),
            "DYSK_DEV_DIR": f"/dev/{root.name}",
        }
        place = Place(server, root, environment)
        try:
            yield place
        finally:
            for name in [entry.name for entry in (root / "run").glob("*")]:
                with contextlib.suppress(subprocess.CalledProcessError):
                    place.run("detach", name, "--force")
            with contextlib.suppress(OSError):
                Path(f"/dev/{root.name}").rmdir()
