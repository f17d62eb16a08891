"""The driver as it runs in a cluster: controller and node as processes of their own, on a page blob server of theirs.

For the tests, and for tools/csi-up. Everything lies in one directory and is taken down at the end, whatever was left
attached or mounted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc

from blobfuse_dysk.testing import PageBlobServer
from tests.kubernetes.client import Client
from tests.leaks import RunDirs, find_leaks, remove_leaks

__all__ = ["CONTAINER", "NODE", "Driver", "Service", "Stack", "stack", "stack_on"]

CONTAINER = "volumes"
NODE = "node-1"
_START_S = 30.0
_END_S = 40.0  # longer than the server's own limit


class Service(Protocol):
    """A blob service, whichever it is."""

    @property
    def endpoint(self) -> str: ...

    account: str
    key: str


@dataclass
class Driver:
    """One process of dysk-csi."""

    socket: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def endpoint(self) -> str:
        return f"unix://{self.socket}"

    def client(self) -> Client:
        return Client(grpc.insecure_channel(self.endpoint))

    def end(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(_END_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(_END_S)


class Stack:
    """A service, and drivers on it. secrets: what a Secret for its account holds. server: for its faults."""

    def __init__(self, dirs: RunDirs, server: Service, container: str) -> None:
        self.dirs = dirs
        self.container = container
        self.account = server.account
        self._service = server
        self.drivers: list[Driver] = []
        self.secrets = {"accountname": server.account, "accountkey": server.key, "endpoint": server.endpoint}
        self.parameters = {"account": server.account, "container": container}
        conf = dirs.config / f"{server.account}.conf"
        conf.write_text(f"account_key = {server.key}\nendpoint = {server.endpoint}\n")
        conf.chmod(0o600)

    @property
    def server(self) -> PageBlobServer:
        """The page blob server, where it is one."""
        assert isinstance(self._service, PageBlobServer)
        return self._service

    def start(self, mode: str, *more: str, node: str = NODE) -> Driver:
        """Start dysk-csi, and wait until it answers."""
        name = f"{mode}-{len(self.drivers)}"
        socket, log = self.dirs.root / f"{name}.sock", self.dirs.root / f"{name}.log"
        return self.start_on(socket, mode, *more, node=node, log=log)

    def start_on(self, socket: Path, mode: str, *more: str, node: str = NODE, log: Path | None = None) -> Driver:
        log = log or socket.with_suffix(".log")
        command = [sys.executable, "-m", "blobfuse_dysk.kubernetes.csi.main", "--mode", mode, "--endpoint"]
        with log.open("ab") as out:
            process = subprocess.Popen(
                [*command, f"unix://{socket}", *more],
                env={**os.environ, **self.dirs.environment, "DYSK_NODE": node},
                stdout=out,
                stderr=out,
                cwd="/",
                start_new_session=True,
            )
        driver = Driver(socket, process, log)
        self.drivers.append(driver)
        with contextlib.closing(driver.client()) as client:
            try:
                client.wait(_START_S)
            except TimeoutError:
                driver.kill()
                raise RuntimeError(f"dysk-csi did not start: {log.read_text()[-2000:]}") from None
        return driver

    def controller(self) -> Driver:
        return self.start("controller", "--container", f"{self.account}/{self.container}")

    def end(self) -> None:
        for driver in reversed(self.drivers):
            if driver.process.poll() is None:
                try:
                    driver.end()
                except subprocess.TimeoutExpired:
                    driver.kill()


@contextlib.contextmanager
def stack(**server: Any) -> Iterator[Stack]:
    """A stack on a server of its own. server: options of PageBlobServer."""
    with PageBlobServer(**server) as running, stack_on(running) as made:
        yield made


@contextlib.contextmanager
def stack_on(service: Service, *, container: str = CONTAINER) -> Iterator[Stack]:
    """A stack without drivers, in directories of its own."""
    root = Path(tempfile.mkdtemp(prefix="dyskc-", dir="/run" if os.geteuid() == 0 else None))
    dev = Path("/dev", root.name) if os.geteuid() == 0 else root / "dev"
    dirs = RunDirs(root, root / "run", root / "config", root / "log", dev)
    for directory in (dirs.run, dirs.config, dirs.log, dirs.dev):
        directory.mkdir(mode=0o700)
    try:
        made = Stack(dirs, service, container)
        try:
            yield made
        finally:
            made.end()
            _take_down(dirs)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(dev, ignore_errors=True)


def _take_down(dirs: RunDirs) -> None:
    deadline = time.monotonic() + 5.0
    while find_leaks(dirs) and time.monotonic() < deadline:
        time.sleep(0.05)
    remove_leaks(dirs)
