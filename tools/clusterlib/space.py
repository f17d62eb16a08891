"""A space: namespaces of its own (mounts, processes, network, host name, IPC) for a node or the control plane.

To kill its first process is to lose power: the kernel ends all others and frees mounts and interfaces. What no
namespace holds is left to cgroups.py and leftovers.py (loop devices).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.clusterlib import init
from tools.clusterlib.places import LOGS, RUN, ClusterError

_NAMESPACES = ("-m", "-n", "-p", "-u", "-i")
# What a space has of its own until it ends: sockets and process ids, and the names that csi-dysk gives to devices. The
# rest of /dev is the machine's.
VOLATILE = ("/run", "/dev/dysk")
_INIT = b"clusterlib/init.py"  # of whatever tree: a machine has one cluster
_DEADLINE_S = 30.0


@dataclass(frozen=True)
class Space:
    """A space by its name; it runs when its pid file names a living process of ours."""

    name: str

    @property
    def pid_file(self) -> Path:
        return RUN / f"{self.name}.pid"

    @property
    def pid(self) -> int | None:
        """Its first process as the machine sees it, or None if it does not run."""
        try:
            pid = int(self.pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return pid if _INIT in words else None  # a number that was given out again is somebody else

    def start(
        self,
        binds: Mapping[Path, str],
        forward_to: tuple[str, int] | None = None,
        listener: socket.socket | None = None,
    ) -> int:
        """Makes the space and returns its first process.

        `binds` maps folders to where the space sees them. A `listener` of the machine is forwarded to `forward_to`, an
        address inside.
        """
        self.pid_file.unlink(missing_ok=True)
        for source, target in binds.items():
            source.mkdir(parents=True, exist_ok=True)
            Path(target).mkdir(parents=True, exist_ok=True)
        for folder in VOLATILE:
            Path(folder).mkdir(exist_ok=True)
        orders = {
            "name": self.name,
            "pid_file": str(self.pid_file),
            "volatile": VOLATILE,
            "binds": [(str(source), target) for source, target in binds.items()],
            "listen_fd": listener.fileno() if listener else None,
            "forward_to": forward_to,
        }
        unshare = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--propagation", "private", "--"]
        process = self._popen([*unshare, sys.executable, init.__file__, json.dumps(orders)], "init", listener)
        deadline = time.monotonic() + _DEADLINE_S
        while (pid := self.pid) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"the namespaces of {self.name} were not made: see {LOGS}/{self.name}-init.log")
            time.sleep(0.05)
        return pid

    def enter(self, *command: str | Path) -> list[str]:
        """The words that run `command` inside."""
        if (pid := self.pid) is None:
            raise ClusterError(f"{self.name} does not run: start the cluster with: tools/cluster up")
        return ["nsenter", "-t", str(pid), *_NAMESPACES, "--", *map(str, command)]

    def spawn(self, service: str, command: Sequence[str | Path]) -> None:
        """Starts a service inside; its output goes to a log of its name, its process id beside the space's."""
        process = self._popen(self.enter(*command), service)
        self._service_file(service).write_text(f"{process.pid}\n")

    def service_pids(self, service: str) -> list[int]:
        """The processes that were entered for a service, none if it ended."""
        try:
            entered = int(self._service_file(service).read_text())
            return [int(pid) for pid in Path(f"/proc/{entered}/task/{entered}/children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def stop(self, service: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends a service that spawn() started, and waits for its end."""
        for pid in self.service_pids(service):
            os.kill(pid, how)
        deadline = time.monotonic() + _DEADLINE_S
        while self.service_pids(service):
            if time.monotonic() > deadline:
                raise ClusterError(f"{service} of {self.name} does not end: see {LOGS}/{self.name}-{service}.log")
            time.sleep(0.05)
        self._service_file(service).unlink(missing_ok=True)

    def kill(self) -> None:
        """Ends the space and everything in it at once, as a loss of power."""
        if (pid := self.pid) is None:
            return
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _DEADLINE_S
        while self.pid is not None:
            if time.monotonic() > deadline:
                raise ClusterError(f"process {pid} of {self.name} does not end: what holds it is in /proc/{pid}/stack")
            time.sleep(0.05)
        for file in RUN.glob(f"{self.name}*.pid"):
            file.unlink()

    def _service_file(self, service: str) -> Path:
        return RUN / f"{self.name}-{service}.pid"

    def _popen(
        self, command: Sequence[str], service: str, listener: socket.socket | None = None
    ) -> subprocess.Popen[bytes]:
        LOGS.mkdir(parents=True, exist_ok=True)
        with (LOGS / f"{self.name}-{service}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(listener.fileno(),) if listener else (),
            )
