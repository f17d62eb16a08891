"""Asking a worker something: one JSON object a line over /run/dysk/NAME/control.sock, one answer a line.

    {"op": "status"}                    -> {"ok": true, "status": {...}}
    {"op": "blank"}                     -> {"ok": true, "blank": bool}
    {"op": "set", "io_timeout_s": 60, "iops": 500, "mbps": null} -> {"ok": true}: those that are given; null: no limit
    {"op": "grow", "size": 2199023255552} -> {"ok": true}: the file has so many bytes now, the device not yet
    {"op": "reload", "file": "..."}     -> {"ok": true, "credential": {...}}; file: null for the one it came from
    {"op": "upgrade", "id": "...", "worker": [...], "path": "..."} -> {"ok": true}: begun; state.json says how it ends
    {"op": "stop"}                      -> {"ok": true}: ends the attachment if no loop device is on it any more
    {"op": "watch"}                     -> {"ok": true} when the disk's end was clean, which may be long after
    anything that failed                -> {"ok": false, "error": {"type": ..., "message": ..., "remedy": ...}}

The holder keeps the listening socket, so a question to an attachment whose worker is being replaced waits for the new
one.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from blobfuse_dysk.device.ipc.message import message_to_error
from blobfuse_dysk.errors import DeviceError

__all__ = ["Control"]


class Control:
    """A connection to one worker; a context manager. Errors of the connection are DeviceErrors."""

    def __init__(self, path: str, name: str, *, timeout_s: float | None = 10.0) -> None:
        self._name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise self._silent(error) from None
        self._answers = self._socket.makefile("rb")

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *args: object) -> None:
        self._answers.close()
        self._socket.close()

    def ask(self, op: str, **arguments: object) -> dict[str, Any]:
        """Ask and wait for the answer. Raises the error that the worker answered with, or DeviceError."""
        self.tell(op, **arguments)
        return self.answer()

    def tell(self, op: str, **arguments: object) -> None:
        """Ask without waiting."""
        try:
            self._socket.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
        except OSError as error:
            raise self._silent(error) from None

    def answer(self) -> dict[str, Any]:
        """The answer to the oldest question that has none yet."""
        try:
            line = self._answers.readline()
        except OSError as error:
            raise self._silent(error) from None
        if not line.endswith(b"\n"):
            raise self._silent(ConnectionResetError("it ended"))
        answer: dict[str, Any] = json.loads(line)
        if not answer.get("ok"):
            raise message_to_error(answer.get("error", {}))
        return answer

    def _silent(self, error: OSError) -> DeviceError:
        return DeviceError(
            f"the worker of {self._name} does not answer: {error.strerror or error}",
            remedy=f"see the log of {self._name}; dyskctl detach {self._name} --force ends it",
        )
