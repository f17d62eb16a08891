"""The control port: tests steer the server with POST /-/COMMAND and a JSON object, and get a JSON object.

It listens on loopback only, is never encrypted, asks for no credential and is not touched by faults or outages.

| command | arguments | answer |
|---|---|---|
| stats | | all counts |
| reset-stats | | |
| fault | the fields of faults.Fault | id |
| faults | | rules, with their hits |
| clear-faults | id (optional) | |
| release | | released: how many held requests went on |
| configure | see config.LIVE | |
| outage | kind: silent, refuse, null | |
| forget-connections | | forgotten: how many connections are dead now, silently; new ones are served |
| elapse-leases | seconds | |
| create | account, container, blob, size; metadata (a character for each byte) and sequence_number optional | |
| blob | account, container, blob | size, allocated, sequence_number, metadata, lease, snapshots |
| copy | account, container, blob; status: pending, success, failed, aborted; copied: bytes | |
| remove | account, container, blob | |
"""

from __future__ import annotations

import asyncio
import json
import traceback
from typing import Any

from .answers import Answer, Refusal
from .copy_operations import set_copy
from .faults import Fault
from .http import Headers, HttpConnection
from .service import Service
from .state import Blob, Container

__all__ = ["ControlConnection"]


class ControlConnection(HttpConnection):
    """One connection of a test."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service
        self._task: asyncio.Task[None] | None = None

    def handle(self, method: str, target: str, headers: Headers, body: bytes) -> None:
        self._task = self._service.loop.create_task(self._run(target, body))

    async def _run(self, target: str, body: bytes) -> None:
        command = getattr(self, "_do_" + target.removeprefix("/-/").replace("-", "_"), None)
        status = 200
        try:
            if command is None:
                raise ValueError(f"unknown command {target}")
            result = await command(**json.loads(body or b"{}"))
        except (ValueError, TypeError, KeyError, Refusal) as error:
            status, result = 400, {"error": f"{type(error).__name__}: {error}"}
        except Exception:
            status, result = 500, {"error": traceback.format_exc()}
        answer = Answer(status, {"Content-Type": "application/json"}, json.dumps(result).encode())
        self.respond([answer.head(""), answer.body])

    async def _do_stats(self) -> dict[str, Any]:
        return {**self._service.statistics.to_json(), "held": self._service.held_count}

    async def _do_reset_stats(self) -> dict[str, Any]:
        self._service.statistics.reset()
        return {}

    async def _do_fault(self, **fields: Any) -> dict[str, Any]:
        return {"id": self._service.faults.add(Fault(**fields))}

    async def _do_faults(self) -> dict[str, Any]:
        return {"faults": self._service.faults.to_json()}

    async def _do_clear_faults(self, id: int | None = None) -> dict[str, Any]:
        self._service.faults.clear(id)
        return {}

    async def _do_release(self) -> dict[str, Any]:
        return {"released": self._service.release()}

    async def _do_configure(self, **changes: Any) -> dict[str, Any]:
        self._service.configure(changes)
        return {}

    async def _do_outage(self, kind: str | None) -> dict[str, Any]:
        await self._service.set_outage(kind)
        return {}

    async def _do_forget_connections(self) -> dict[str, Any]:
        return {"forgotten": self._service.forget_connections()}

    async def _do_elapse_leases(self, seconds: float) -> dict[str, Any]:
        self._service.state.elapse_leases(seconds)
        return {}

    async def _do_create(
        self,
        account: str,
        container: str,
        blob: str,
        size: int,
        metadata: dict[str, str] | None = None,
        sequence_number: int = 0,
    ) -> dict[str, Any]:
        if size % 512 or size < 0:
            raise ValueError(f"size {size} is not a multiple of 512")
        _refuse_no_bytes(metadata or {})
        service = self._service
        state, now = service.state, service.now()
        containers = state.accounts[account]
        if container not in containers:
            containers[container] = Container(container, now)
        made = Blob(blob, "PageBlob", now, state.new_pages(size))
        made.metadata = metadata or {}
        made.sequence_number = sequence_number
        state.put(containers[container], made)
        state.save(now)
        return {}

    async def _do_blob(self, account: str, container: str, blob: str) -> dict[str, Any]:
        found = self._service.state.blob(account, container, blob)
        return {
            "size": found.size,
            "allocated": found.pages.allocated if found.pages is not None else found.size,
            "sequence_number": found.sequence_number,
            "metadata": found.metadata,
            "lease": found.lease.to_json(self._service.now()),
            "snapshots": sorted(found.snapshots),
            "etag": found.etag,
        }

    async def _do_copy(self, account: str, container: str, blob: str, status: str, copied: int = 0) -> dict[str, Any]:
        state, now = self._service.state, self._service.now()
        set_copy(state, state.blob(account, container, blob), status, copied, now)
        state.save(now)
        return {}

    async def _do_remove(self, account: str, container: str, blob: str) -> dict[str, Any]:
        state = self._service.state
        state.remove(state.container(account, container), state.blob(account, container, blob))
        state.save(self._service.now())
        return {}


def _refuse_no_bytes(metadata: dict[str, str]) -> None:
    """Metadata is what came as bytes of headers; what no such byte stands for could not be answered to any request."""
    for name, value in metadata.items():
        try:
            f"{name}{value}".encode("latin-1")
        except UnicodeEncodeError:
            raise ValueError(
                f"metadata {name}: {value!r} has a character that is no byte of a header; of UTF-8 give the bytes, "
                "as in value.encode().decode('latin-1')"
            ) from None
