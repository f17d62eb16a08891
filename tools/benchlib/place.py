"""Where the benchmark attaches: directories of its own, one service, and the processes that belong to them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from blobfuse_dysk.disk import format_size
from blobfuse_dysk.testing import PageBlobServer
from tools.benchlib import leftovers
from tools.benchlib.meter import Meter
from tools.benchlib.processes import TEMPLATE, processes_of, pss_bytes

__all__ = ["Place", "Service", "open_place", "place_of"]

_CONTAINER = "bench"
_DYSKCTL = Path(sys.executable).parent / "dyskctl"


class Service(Protocol):
    """What the project's own server and Azurite have in common."""

    @property
    def endpoint(self) -> str: ...
    @property
    def connection_string(self) -> str: ...
    @property
    def account(self) -> str: ...
    @property
    def key(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Place:
    """A service, and the environment that makes dyskctl use it and this benchmark's own directories."""

    service: Service
    root: Path
    environment: dict[str, str]
    dyskctl: Path = _DYSKCTL

    @property
    def server(self) -> PageBlobServer:
        """The service, where it is the project's own; TypeError otherwise."""
        if not isinstance(self.service, PageBlobServer):
            raise TypeError(f"{self.service.endpoint} is no server of this project")
        return self.service

    def make_disk(self, name: str, size: int) -> str:
        """Make an empty disk of `size` bytes; returns what dyskctl calls it."""
        disk = f"{self.service.account}/{_CONTAINER}/{name}"
        if isinstance(self.service, PageBlobServer):
            self.service.create(_CONTAINER, name, size)
        else:
            self.run("create", disk, "--size", format_size(size))
        return disk

    def remove_disk(self, name: str) -> None:
        """Give the memory of a disk back; the project's own server only."""
        self.server.remove(_CONTAINER, name)

    def url(self, name: str, *, write: bool = False) -> str:
        """The disk's URL with a SAS for reading, and for writing if asked, for a peer that knows nothing of keys."""
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas

        sas = generate_blob_sas(
            self.service.account,
            _CONTAINER,
            name,
            account_key=self.service.key,
            permission=BlobSasPermissions(read=True, write=write),
            expiry=datetime.now(UTC) + timedelta(days=30),
        )
        return f"{self.service.endpoint}/{_CONTAINER}/{name}?{sas}"

    def blob_client(self, name: str) -> Any:
        """A client of the Azure SDK for the disk."""
        from azure.storage.blob import BlobClient

        return BlobClient.from_connection_string(self.service.connection_string, _CONTAINER, name)

    def run(self, *arguments: str) -> str:
        """Run dyskctl and return what it printed; CalledProcessError if it fails."""
        command = [str(self.dyskctl), *arguments]
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
        )
        return done.stdout.decode().strip()

    @contextlib.contextmanager
    def attached(self, disk: str, *options: str, throw_away: bool = False) -> Iterator[str]:
        """The disk's device. Detached at the end; by force after an error, or if what is unwritten may be lost."""
        name = disk.rpartition("/")[2]
        device = self.run("attach", disk, "--name", name, *options)
        try:
            yield device
        except BaseException:
            with contextlib.suppress(subprocess.CalledProcessError):
                self.run("detach", name, "--force", "--lose-data")
            raise
        self.run("detach", name, *(["--force", "--lose-data"] if throw_away else []))

    def meter(self, device: str = "") -> Meter:
        """Of the workers that run now, of the server if it counts, and of a device if one is named."""
        counts = self.service if isinstance(self.service, PageBlobServer) else None
        return Meter(tuple(self.processes("worker")), counts, device)

    def processes(self, kind: str = "") -> list[int]:
        """The holders, workers and monitors that run now, or those with `kind` in their command line."""
        found = processes_of(self.root, kind)
        templates = processes_of(self.root, TEMPLATE) if not kind else []
        return [pid for pid in found if pid not in templates]

    def memory(self) -> int:
        """Bytes (PSS) of all that is there for what is attached, the template that has forked it included."""
        return pss_bytes(processes_of(self.root))


@contextlib.contextmanager
def open_place(latency_ms: float, **options: Any) -> Iterator[Place]:
    """A place with a server of this service time, started for it; further options are those of PageBlobServer."""
    with PageBlobServer(latency_ms=latency_ms, **options) as server, place_of(server) as place:
        yield place


@contextlib.contextmanager
def place_of(service: Service, dyskctl: Path = _DYSKCTL) -> Iterator[Place]:
    """Directories of their own under /run; afterwards nothing that was attached or mounted in them is left."""
    with tempfile.TemporaryDirectory(prefix=leftovers.PREFIX, dir=leftovers.PARENT) as directory:
        root = Path(directory)
        root.chmod(0o711)  # the user postgres has to come through
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AZURE_")},
            "AZURE_STORAGE_CONNECTION_STRING": service.connection_string,
            **leftovers.variables(root),
        }
        if isinstance(service, PageBlobServer) and service.ca_file:  # a connection string has no place for it
            del environment["AZURE_STORAGE_CONNECTION_STRING"]
            credentials = root / "config" / f"{service.account}.conf"
            credentials.parent.mkdir(mode=0o700)
            lines = (f"account_key = {service.key}", f"endpoint = {service.endpoint}", f"ca_file = {service.ca_file}")
            credentials.touch(mode=0o600)
            credentials.write_text("".join(f"{line}\n" for line in lines))
        with leftovers.claimed(root):
            try:
                yield Place(service, root, environment, dyskctl)
            finally:
                leftovers.take_down(root)
