"""The real code as a node of the model's: its requests wait until the replay says what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from blobfuse_dysk.azure.wire import Condition
from blobfuse_dysk.errors import DyskError, ServiceError, TransportError
from blobfuse_dysk.store.open import ResumeState
from blobfuse_dysk.store.stack import Stack
from blobfuse_dysk.testing import SimClient
from blobfuse_dysk.testing.fates import refuse
from tests.simulation.stacks import attached, held

__all__ = ["Node", "Sent", "SteppedClient"]

T = TypeVar("T")


@dataclass
class Sent:
    """A request under way. done: by the service; outcome: its answer. left: its sender waits, but is done with."""

    name: str
    request: Callable[[], object]
    heard: trio.Event = field(default_factory=trio.Event)
    done: bool = False
    lost: bool = False
    left: bool = False
    outcome: object = None

    def serve(self) -> None:
        """The service does it, or refuses it."""
        try:
            self.outcome = self.request()
        except ServiceError as error:
            self.outcome = error
        self.done = True


@dataclass
class SteppedClient(SimClient):
    """A client whose requests wait for `Sent.serve` and `heard`. Nobody may write metadata.

    over: the replay is at its end, and every request is refused, so that what gives up its disk ends.
    """

    waiting: list[Sent] = field(default_factory=list)
    late: list[Sent] = field(default_factory=list)
    over: bool = False

    def end(self) -> None:
        """Nothing is served any more."""
        self.over = True
        for sent in self.waiting:
            sent.heard.set()

    def leave(self) -> None:
        """What is under way is on its own: whatever becomes of it, its sender draws no conclusions any more."""
        for sent in self.waiting:
            sent.lost = sent.left = True
            self._keep(sent)
        self.waiting.clear()

    def _keep(self, sent: Sent) -> None:
        if sent.lost and not sent.done and sent.name != "properties":
            self.late.append(sent)

    async def set_metadata(
        self, metadata: Mapping[str, str], *, lease_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> str:
        raise refuse(403, "AuthorizationPermissionMismatch")

    async def _ask(self, name: str, request: Callable[[], T], timeout_s: float) -> T:
        if name == "list":
            return request()
        if self.over:
            raise refuse(403, "AuthorizationPermissionMismatch")
        sent = Sent(name, request)
        self.waiting.append(sent)
        try:
            await sent.heard.wait()
        except trio.Cancelled:
            sent.lost = True
            raise
        finally:
            if not sent.left:
                self.waiting.remove(sent)
                self._keep(sent)
        if self.over:
            raise refuse(403, "AuthorizationPermissionMismatch")
        if sent.lost:
            raise TransportError(f"{name}: connection lost", sent=True)
        if isinstance(sent.outcome, ServiceError):
            raise sent.outcome
        return sent.outcome  # type: ignore[return-value]


class Node:
    """One attachment of the real code, as a task of its own; `scope` ends its present worker or attach."""

    def __init__(self, client: SteppedClient, nursery: trio.Nursery, options: dict[str, object]) -> None:
        self.client = client
        self.state = "absent"
        self.stack: Stack | None = None
        self.held: ResumeState | None = None
        self.scope = trio.CancelScope()
        self._nursery = nursery
        self._options = options
        self._writes: trio.Nursery | None = None
        self._pages: dict[int, int] = {}  # page -> version on its way

    def start(self, seed: int) -> None:
        """Attach, or go on with a new worker."""
        self.scope = trio.CancelScope()
        self.state = "opening"
        self._nursery.start_soon(self._live, seed)

    async def _live(self, seed: int) -> None:
        resumed = {"resume": self.held} if self.held else {}
        try:
            with self.scope:
                async with attached(self.client, seed=seed, **resumed, **self._options) as stack:  # type: ignore[arg-type]
                    self.stack, self.held, self.state = stack, held(stack), "live"
                    async with trio.open_nursery() as self._writes:
                        await trio.sleep_forever()
        except DyskError as error:
            self.state = f"failed: {error}"
        if self.scope.cancelled_caught and self.state in ("opening", "live"):
            self.state = "gone"
        self.stack, self._writes = None, None
        self._pages.clear()

    def write(self, page: int, version: int) -> None:
        """Have this version written, if it is not on its way."""
        assert self._writes is not None
        if self._pages.get(page) != version:
            self._pages[page] = version
            self._writes.start_soon(self._write, page, version)

    async def _write(self, page: int, version: int) -> None:
        assert self.stack is not None
        with suppress(DyskError):  # fenced; the comparison tells
            await self.stack.store.write(page * 512, bytes([version]) * 512)
        self._pages.pop(page, None)

    def detach(self) -> None:
        """Give the disk up in order."""
        assert self.stack is not None
        self.state = "detaching"
        self.client.leave()
        self._nursery.start_soon(self._release, self.stack)

    async def _release(self, stack: Stack) -> None:
        await stack.release()
        self.state = "gone"
        self.scope.cancel()
