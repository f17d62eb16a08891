"""Starts the workers of one attachment, and hands them what they need. Standard library only, as the holder."""

from __future__ import annotations

import base64
import os

from blobfuse_dysk.device.holder.child import WorkerProcess
from blobfuse_dysk.device.ipc import message

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from typing import Any

    from blobfuse_dysk.device.holder.reservation import Reservation

__all__ = ["Crew"]


class Crew:
    """What all workers of an attachment get: FUSE connection, control socket, configuration, dirty ring."""

    def __init__(self, name: str, log: str, place: Reservation, config_fd: int, ring_fd: int | None = None) -> None:
        """log: the directory. config_fd: a memfd with secrets, never read here. ring_fd: None for a new, empty ring."""
        self._name = name
        self._log = log
        self._place = place
        self._config_fd = config_fd
        # Filled by workers, and never read here: see store/parts/ring.py.
        self._ring_fd = os.memfd_create("dysk-ring") if ring_fd is None else ring_fd

    def replace_config(self, fd: int) -> None:
        """Later workers get this configuration. The descriptor is ours from now on."""
        os.close(self._config_fd)
        self._config_fd = fd

    def start(self, command: dict[str, Any]) -> WorkerProcess:
        """Start a process of {worker: argv, environment}. Until it is briefed it ends when we do. Raises OSError."""
        return WorkerProcess(command["worker"], command["environment"])

    def start_standby(self, resume: dict[str, Any], command: dict[str, Any]) -> WorkerProcess:
        """Start one that is to stand by. Raises OSError."""
        worker = self.start(command)
        self.brief(worker, resume, standby=True)
        return worker

    def brief(
        self, worker: WorkerProcess, resume: dict[str, Any] | None, *, resend: bool = False, standby: bool = False
    ) -> None:
        """Tell it to serve, or to stand by until it is told to.

        resume: the state of the attachment, for a worker after the first. resend: requests died with the one before.
        To one that was told already it may be said again, and changes nothing.
        """
        assert self._place.control
        briefing = {
            "op": "standby" if standby else "start",
            "protocol": message.PROTOCOL,
            "name": self._name,
            "log": self._log,
            "init": base64.b64encode(self._place.init).decode(),
            "resume": resume,
            "resend": resend,
        }
        fds = (self._config_fd, self._place.fuse_fd, self._place.control.fileno(), self._ring_fd)
        message.send(worker.channel, briefing, fds, wait=False)  # if it is dead, its pidfd says so
