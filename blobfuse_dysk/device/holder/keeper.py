"""Who keeps the descriptors of an attachment beside its holder, for the holder after it. Standard library only.

A holder without systemd has NoKeeper: the attachment ends with it. One that is a service has SystemdKeeper; what is
kept under which name is in device/holder/systemd.py. The life is what the next holder has to know, as JSON in a memfd:

    version, order (of the attaching process), init (the kernel's FUSE_INIT, base64)
    command     how workers are started: {worker: argv, environment}
    former      the command before, while the first worker of `command` may not have been ready; null else
"""

from __future__ import annotations

import base64
import json
import os

from blobfuse_dysk.device.ipc import state

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from blobfuse_dysk.device.holder.reservation import Reservation
    from blobfuse_dysk.device.holder.sdnotify import Notify
    from blobfuse_dysk.device.holder.workers import WorkerProcess
    from blobfuse_dysk.device.ipc.messages import Begin, Program
    from blobfuse_dysk.device.ipc.statefile import Process

__all__ = ["MORE_PARTS", "PARTS", "NoKeeper", "SystemdKeeper", "kept_names", "newest_config", "process_of", "read_life"]

_VERSION = 1  # of the life; a holder that does not know it lets the attachment go
PARTS = ("fuse", "config", "ring", "control", "life")
MORE_PARTS = ("taken",)  # which not every attachment has


class NoKeeper:
    """Nobody: when the holder dies, all that it had is closed."""

    def keep_worker(self, worker: WorkerProcess) -> None:
        """Have the way to this worker kept."""

    def keep_program(self, command: Program, former: Program | None) -> None:
        """Have the next holder know how workers are started."""

    def keep_all(self, parts: dict[str, int]) -> None:
        """Have everything kept but the worker."""

    def replace_config(self, fd: int) -> None:
        """Have this kept in place of the configuration before, if all is kept."""

    def forget(self) -> None:
        """Have everything let go of but the worker: the FUSE connection ends with its last descriptor."""


class SystemdKeeper(NoKeeper):
    """The service manager. `keep_program` comes before `keep_all`: what is kept last says that all is there."""

    def __init__(
        self, notify: Notify, order: Begin, place: Reservation, life_fd: int | None = None, config: str = "config"
    ) -> None:
        """life_fd: of a holder before, who had everything kept. config: under which name that had the configuration."""
        self._notify = notify
        self._order = order
        self._place = place
        self._kept = life_fd is not None
        self._config = config
        self._life_fd = os.memfd_create("dysk-life") if life_fd is None else life_fd

    def keep_worker(self, worker: WorkerProcess) -> None:
        """Have the way to this worker kept; systemd lets go of it when the worker dies."""
        channel, stderr = kept_names(state.identity(worker.pid))
        self._notify.keep(channel, worker.channel.fileno(), watch=True)
        self._notify.keep(stderr, worker.stderr, watch=True)

    def keep_program(self, command: Program, former: Program | None) -> None:
        """Write the life."""
        init = base64.b64encode(self._place.init).decode()
        life = {"version": _VERSION, "command": command, "former": former, "order": self._order, "init": init}
        data = json.dumps(life).encode() + b"\n"  # the first line counts, should we die in the middle
        os.pwrite(self._life_fd, data, 0)
        os.ftruncate(self._life_fd, len(data))

    def keep_all(self, parts: dict[str, int]) -> None:
        """parts: what the next holder needs of each part but the life."""
        for name in (*(more for more in MORE_PARTS if more in parts), *PARTS):
            self._notify.keep(name, self._life_fd if name == "life" else parts[name])
        self._kept = True

    def replace_config(self, fd: int) -> None:
        """Before `keep_all` there is nothing to replace. At any time at least one is kept; see newest_config."""
        if self._kept:
            before, self._config = self._config, f"config-{_number(self._config) + 1}"
            self._notify.keep(self._config, fd)
            self._notify.forget(before)

    def forget(self) -> None:
        """Of what is not kept, nothing is forgotten, and that is no error."""
        self._kept = False
        for name in (*PARTS, *MORE_PARTS):
            self._notify.forget(self._config if name == "config" else name)


def newest_config(names: Iterable[str]) -> str | None:
    """Under which the configuration is kept that counts: config, or config-N, the larger the later."""
    return max((name for name in names if name.partition("-")[0] == "config"), key=_number, default=None)


def _number(name: str) -> int:
    return int(name.partition("-")[2] or 0)


def kept_names(process: Process) -> tuple[str, str]:
    """Under which a worker's channel and standard error are kept."""
    who = f"{process['pid']}-{process['start']}"
    return f"channel-{who}", f"stderr-{who}"


def process_of(name: str) -> Process:
    """Whose descriptor is kept under this name."""
    _, pid, start = name.split("-")
    return {"pid": int(pid), "start": int(start)}


def read_life(fd: int) -> dict[str, Any]:
    """What a holder before wrote. Raises ValueError for what another version did."""
    life: dict[str, Any] = json.loads(os.pread(fd, os.fstat(fd).st_size, 0).partition(b"\n")[0])
    if life["version"] != _VERSION:
        raise ValueError(f"version {life['version']}")
    return life
