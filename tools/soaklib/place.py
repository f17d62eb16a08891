"""Where the soak runs: a page blob server, two nodes with directories of their own, and the ways to kill them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import blobfuse_dysk
from blobfuse_dysk import AttachOptions, DyskError, live
from blobfuse_dysk.testing import PageBlobServer

__all__ = ["Hang", "Node", "Place", "apart", "open_place"]

CONTAINER = "soak"
T = TypeVar("T")


class Hang(Exception):
    """Something did not end in time."""


@dataclass(frozen=True, slots=True)
class Node:
    """One of the two "machines": a name and directories, which is all that tells them apart for the product."""

    name: str
    root: Path
    dev: Path

    def enter(self) -> None:
        """Be this node from now on."""
        variables = {"RUN": self.root / "run", "CONFIG": self.root / "config", "LOG": self.root / "log"}
        for what, path in {**variables, "DEV": self.dev}.items():
            os.environ[f"DYSK_{what}_DIR"] = str(path)
        os.environ["DYSK_NODE"] = self.name

    def attach(self, disk: str, **options: Any) -> str:
        """Attach; returns the device."""
        self.enter()
        device: str = blobfuse_dysk.attach(disk, AttachOptions(**options)).device
        return device

    def detach(self, name: str, *, force: bool = False) -> None:
        self.enter()
        blobfuse_dysk.detach(name, force=force, lose_data=force, timeout_s=60)

    def upgrade(self, name: str) -> None:
        """Replace the worker; returns when the new one serves."""
        self.enter()
        live.upgrade(name)

    def state(self, name: str) -> dict[str, Any]:
        """state.json of an attachment; empty if there is none."""
        with contextlib.suppress(OSError):
            found: dict[str, Any] = json.loads((self.root / "run" / name / "state.json").read_text())
            return found
        return {}

    def processes(self, name: str) -> list[int]:
        """Holder and worker, those that live."""
        found = self.state(name)
        return [found[kind]["pid"] for kind in ("holder", "worker") if found.get(kind)]

    def crash(self, name: str) -> None:
        """Kill holder and worker at once, as the end of the machine does."""
        self.stop(name)
        pids = self.processes(name)  # read again: the holder is stopped now and starts nobody any more
        for pid in reversed(pids):
            _signal(pid, signal.SIGKILL)
        for pid in pids:
            _await_end(pid)

    def stop(self, name: str) -> None:
        """SIGSTOP both: the machine hangs."""
        for _ in range(2):  # the holder first; a worker that it started in between is known the second time
            for pid in self.processes(name):
                _signal(pid, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT both."""
        for pid in self.processes(name):
            _signal(pid, signal.SIGCONT)

    def kill(self, name: str, kind: str) -> int:
        """SIGKILL the holder or the worker; returns its id, 0 if there is none just now."""
        found = self.state(name).get(kind)
        if found:
            _signal(found["pid"], signal.SIGKILL)
        return int(found["pid"]) if found else 0


@dataclass(frozen=True, slots=True)
class Place:
    """nodes: [the first, the second]. directory: for journals and everything else of a round; evidence if it fails."""

    server: PageBlobServer
    root: Path
    nodes: list[Node]
    well: bool = False  # the service has no faults, so that what is seen comes of the kills

    def make_disk(self, name: str, size: int) -> str:
        self.server.create(CONTAINER, name, size)
        return f"{self.server.account}/{CONTAINER}/{name}"

    def calm(self) -> None:
        """No faults, nothing held, counts from zero."""
        self.server.clear_faults()
        self.server.release()
        self.server.reset_stats()

    def clear(self) -> list[str]:
        """Take down what a round left; returns what there was."""
        left = []
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[4].startswith(f"{self.root}/m"):
                left.append(line.split()[4])
                subprocess.run(["umount", "-l", left[-1]], check=False)
        for node in self.nodes:
            run = node.root / "run"
            for entry in [entry for entry in run.iterdir() if entry.is_dir()] if run.exists() else []:
                left.append(f"{node.name}: {entry.name}")
                node.resume(entry.name)
                with contextlib.suppress(DyskError):
                    node.detach(entry.name, force=True)
        return left


@contextlib.contextmanager
def open_place(*, well: bool = False) -> Iterator[Place]:
    """A server and two nodes under /run, gone afterwards. The environment of this process is changed for good."""
    with tempfile.TemporaryDirectory(prefix="dysk-soak-", dir="/run") as directory, PageBlobServer() as server:
        root = Path(directory)
        for name in [name for name in os.environ if name.startswith(("AZURE_STORAGE_", "DYSK_"))]:
            del os.environ[name]
        os.environ["AZURE_STORAGE_CONNECTION_STRING"] = server.connection_string
        nodes = [Node(name, root / name, Path(f"/dev/{root.name}-{name}")) for name in ("a", "b")]
        for node in nodes:
            node.root.mkdir()
        place = Place(server, root, nodes, well)
        try:
            yield place
        finally:
            place.clear()
            for node in nodes:
                shutil.rmtree(node.dev, ignore_errors=True)


def apart(work: Callable[[], T], limit_s: float, what: str) -> T:
    """Run `work` in a child process and return its result, or raise its OSError; Hang after limit_s seconds.

    For what touches a device: it may hang, and the soak itself must not.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        try:
            try:
                result: tuple[bool, Any] = (True, work())
            except BaseException as error:
                result = (False, error)
            with os.fdopen(write_end, "wb") as pipe:
                pickle.dump(result, pipe)
        finally:
            os._exit(0)
    os.close(write_end)
    data = b""
    deadline = time.monotonic() + limit_s
    with os.fdopen(read_end, "rb", buffering=0) as pipe:
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            part = pipe.read(1 << 20)
            if not part:
                break
            data += part
        else:
            raise Hang(f"{what} did not end within {limit_s:g} s")
    os.waitpid(pid, 0)
    good, value = pickle.loads(data)
    if not good:
        raise value
    done: T = value
    return done


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _await_end(pid: int, limit_s: float = 10.0) -> None:
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended = poll.poll(limit_s * 1000)
        os.close(pidfd)
        if not ended:
            raise Hang(f"process {pid} was killed and did not end within {limit_s:g} s")
