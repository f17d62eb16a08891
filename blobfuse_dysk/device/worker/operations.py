"""What can be asked of a worker over its control socket; the questions and answers are described in control.py."""

from __future__ import annotations

import math
import time
from typing import Any, NotRequired, Protocol

import trio

from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.device.ipc.control import (
    BarrierQuestion,
    CredentialSeen,
    GrowQuestion,
    ReloadQuestion,
    SetQuestion,
    SimpleQuestion,
    SnapshotQuestion,
    UpgradeQuestion,
)
from blobfuse_dysk.device.ipc.messages import StateChanged, UpgradeAsked, WorkerEvent
from blobfuse_dysk.device.worker.controlserver import Answer
from blobfuse_dysk.device.worker.geometry import Geometry, is_blank
from blobfuse_dysk.device.worker.growth import grow
from blobfuse_dysk.device.worker.snapshots import barrier, take
from blobfuse_dysk.errors import DyskError, LaterError
from blobfuse_dysk.options import LIVE_OPTIONS
from blobfuse_dysk.store.stack import Stack
from blobfuse_dysk.timestamp import utc_text

__all__ = ["Asked", "Questions"]

GROW_S = 30.0  # what is written meanwhile waits for it (store/layers/order.py)


class Reload(ReloadQuestion):
    """text: what came in the descriptor, if one did."""

    text: NotRequired[str]


class Asked(Protocol):
    """The worker, as its questioners see it.

    stack, geometry: None while the disk is not open. open_by: when a disk that cannot be opened again is given up, by
    trio's clock. opening_error: why the last attempt failed. send_event: to the holder. show: has the device show this
    geometry, a larger one.
    """

    @property
    def stack(self) -> Stack | None: ...
    @property
    def geometry(self) -> Geometry | None: ...
    @property
    def credential(self) -> Credential: ...
    @property
    def open_by(self) -> float: ...
    @property
    def opening_error(self) -> DyskError | None: ...
    def send_event(self, event: WorkerEvent) -> bool: ...
    def show(self, geometry: Geometry) -> None: ...


class Questions:
    """answers: for ControlServer."""

    def __init__(self, worker: Asked) -> None:
        self._worker = worker
        self._growing = trio.Lock()
        self.answers: dict[str, Answer] = {
            "status": self._status,
            "blank": self._blank,
            "set": self._set,
            "grow": self._grow,
            "guard": self._guard,
            "barrier": self._barrier,
            "snapshot": self._snapshot,
            "reload": self._reload,
            "upgrade": self._upgrade,
            "stop": self._stop,
        }

    async def _status(self, question: SimpleQuestion) -> dict[str, Any]:
        worker = self._worker
        if worker.stack:
            status = worker.stack.status()
        else:
            status = {"state": "recovering" if worker.geometry else "starting", "waiting": self._opening()}
        return {"status": {**status, "credential": _describe(worker.credential)}}

    def _opening(self) -> dict[str, object] | None:
        """How long I/O still waits for a disk that is being opened again, as Retry.waiting says it."""
        error, open_by = self._worker.opening_error, self._worker.open_by
        if error is None:
            return None
        fails_in_s = None if open_by == math.inf else max(0.0, open_by - trio.current_time())
        return {"fails_in_s": fails_in_s, "reason": error.line()}

    async def _blank(self, question: SimpleQuestion) -> dict[str, Any]:
        stack, geometry = self._worker.stack, self._worker.geometry
        if not stack or not geometry:
            raise LaterError("the disk is not open now", remedy="try again in a moment")
        return {"blank": await is_blank(stack.store, stack.beneath_map, geometry)}

    async def _set(self, question: SetQuestion) -> dict[str, Any]:
        """Later workers learn of it from the state that the holder keeps, but do not go on with a trace."""
        for option in LIVE_OPTIONS.values():
            if option.field in question:
                option.check(question.get(option.field))
        stack = self._open_stack()
        event: StateChanged = {"event": "state"}
        limits = {**stack.limits}
        if "io_timeout_s" in question:
            event["io_timeout_s"] = question["io_timeout_s"]
            stack.set_io_timeout(question["io_timeout_s"])
        if "iops" in question:
            limits["iops"] = event["iops"] = None if question["iops"] is None else int(question["iops"])
        if "mbps" in question:
            limits["mbps"] = event["mbps"] = question["mbps"]
        if "iops" in question or "mbps" in question:
            stack.set_limits(**limits)
        if "trace_s" in question and question["trace_s"] is not None:
            stack.trace(question["trace_s"])
        if len(event) > 1:
            self._worker.send_event(event)
        return {}

    async def _grow(self, question: GrowQuestion) -> dict[str, Any]:
        async with self._growing:
            stack, geometry = self._worker.stack, self._worker.geometry
            if not stack or not geometry:
                raise LaterError("the disk is not open now", remedy="try again in a moment")
            with trio.move_on_after(GROW_S) as scope:
                self._worker.show(await grow(stack.store, geometry, question["size"]))
            if scope.cancelled_caught:
                raise LaterError(f"the disk did not grow within {GROW_S:g} s", remedy="see dyskctl status; try again")
        return {}

    async def _guard(self, question: SimpleQuestion) -> dict[str, Any]:
        self._worker.send_event({"event": "freezing"})
        return {}

    async def _barrier(self, question: BarrierQuestion) -> dict[str, Any]:
        return {"etag": await barrier(self._open_stack(), question["timeout_s"])}

    async def _snapshot(self, question: SnapshotQuestion) -> dict[str, Any]:
        time, size = await take(self._open_stack(), question["metadata"], question["etag"], question["timeout_s"])
        return {"time": time, "size": size}

    def _open_stack(self) -> Stack:
        if not self._worker.stack:
            raise LaterError("the disk is not open now", remedy="try again in a moment")
        return self._worker.stack

    async def _reload(self, question: Reload) -> dict[str, Any]:
        credential = self._worker.credential
        if "text" in question:
            await credential.take(question["text"])
        else:
            await credential.reload(question["file"] or "")
        return {"credential": _describe(credential)}

    async def _upgrade(self, question: UpgradeQuestion) -> dict[str, Any]:
        """The holder goes about it, and says in state.json what became of it (device/holder/handover.py)."""
        event: UpgradeAsked = {
            "event": "upgrade",
            "id": question["id"],
            "worker": question["worker"],
            "path": question["path"],
        }
        self._worker.send_event(event)
        return {}

    async def _stop(self, question: SimpleQuestion) -> dict[str, Any]:
        self._worker.send_event({"event": "released"})
        return {}


def _describe(credential: Credential) -> CredentialSeen:
    """For people, without the secret. expires: ISO 8601, UTC, if it is known that it ends."""
    at = credential.expires_at
    return {
        "what": "; ".join(filter(None, [credential.describe(), credential.left_out])),
        "expires": None if at is None else utc_text(at),
        "expires_in_s": None if at is None else at - time.time(),
        "problem": credential.problem,
    }
