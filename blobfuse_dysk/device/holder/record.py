"""What a holder writes into state.json. Standard library only, as the holder."""

from __future__ import annotations

import os

from blobfuse_dysk.device.ipc import message, state
from blobfuse_dysk.device.ipc.log import WARNING, Log

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Record"]


class Record:
    """The state of one attachment, in memory and, as far as /run has room, in state.json. The holder's alone.

    fields: name, state, detail (why it is in that state), device, holder and worker ({pid, start}), connection (number
    of the FUSE connection), restarts, protocol (see message.py), worker_version, upgrades (see handover.py), lease,
    lost (why the first write that was refused was), size, blob_size, vhd, and what the attaching process gave: disk,
    endpoint, read_only, sector_size, cache, io_timeout_s, since.
    """

    def __init__(
        self, run: str, name: str, first: dict[str, Any], log: Log, earlier: dict[str, Any] | None = None
    ) -> None:
        """first: what the attaching process gave. earlier: what a holder before left in state.json."""
        self.run = run
        self._name = name
        self._log = log
        self.fields: dict[str, Any] = {
            "version": state.VERSION,
            "name": name,
            "state": "starting",
            "detail": None,
            "device": None,
            "holder": state.identity(os.getpid()),
            "worker": None,
            "connection": None,
            "restarts": 0,
            "protocol": message.PROTOCOL,
            "worker_version": None,
            "upgrades": {},
            "lease": None,
            "lost": None,
            **first,
        }
        own = ("version", "protocol", "holder", "worker")
        self.fields.update({key: value for key, value in (earlier or {}).items() if key not in own})

    def __getitem__(self, field: str) -> Any:
        return self.fields[field]

    def write(self, change: dict[str, Any]) -> None:
        """Make a change that must be in state.json, or is not made. Raises OSError."""
        state.write(self.run, self._name, {**self.fields, **change})
        self.fields.update(change)

    def save(self, change: dict[str, Any]) -> None:
        """Make a change, and write it if possible."""
        self.fields.update(change)
        try:
            state.write(self.run, self._name, self.fields)
        except OSError as error:
            self._log(f"cannot write state.json: {error.strerror}", WARNING)
