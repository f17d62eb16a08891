"""What a holder writes into state.json. Standard library only, as the holder."""

from __future__ import annotations

import os

from blobfuse_dysk.device.ipc import message, state
from blobfuse_dysk.device.ipc.log import WARNING, Log
from blobfuse_dysk.timestamp import utc_text

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from blobfuse_dysk.device.ipc.statefile import Change, FirstState, StateFile

__all__ = ["Record"]


class Record:
    """The state of one attachment, in memory and, as far as /run has room, in state.json. The holder's alone.

    fields: see StateFile. Those that the worker changes come with its messages.
    """

    def __init__(self, run: str, name: str, first: FirstState, log: Log, earlier: StateFile | None = None) -> None:
        """first: what the attaching process gave. earlier: what a holder before left in state.json."""
        self.run = run
        self._name = name
        self._log = log
        mine = state.identity(os.getpid())
        self.fields: StateFile = {
            **first,
            "version": state.VERSION,
            "name": name,
            "state": "starting",
            "state_since": first["since"],
            "detail": None,
            "device": None,
            "holder": mine,
            "worker": None,
            "connection": None,
            "restarts": 0,
            "protocol": message.PROTOCOL,
            "worker_version": None,
            "upgrades": {},
            "lease": None,
            "lost": None,
        }
        if earlier:
            self.fields = {
                **earlier,
                "version": state.VERSION,
                "holder": mine,
                "worker": None,
                "protocol": message.PROTOCOL,
            }

    def write(self, change: Change) -> None:
        """Make a change that must be in state.json, or is not made. Raises OSError."""
        change = self._dated(change)
        state.write(self.run, self._name, {**self.fields, **change})
        self.fields.update(change)  # type: ignore[typeddict-item]

    def save(self, change: Change) -> None:
        """Make a change, and write it if possible."""
        change = self._dated(change)
        self.fields.update(change)  # type: ignore[typeddict-item]
        try:
            state.write(self.run, self._name, self.fields)
        except OSError as error:
            self._log(f"cannot write state.json: {error.strerror}", WARNING)

    def _dated(self, change: Change) -> Change:
        """With the time, where it brings another state."""
        if change.get("state", self.fields["state"]) == self.fields["state"]:
            return change
        return {**change, "state_since": utc_text()}
