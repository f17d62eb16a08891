"""Does to the real store, on a simulated blob, what a trace of the model says, and compares the two after each step.

A request of the real code waits until the model's step says what becomes of it: the service does it, the answer comes
in, its sender gives it up, it arrives late. So the model's steps are the schedule, and the store's own tasks fill in
the rest. Replayed are scopes without time, pages lists and signing: what depends on a clock has tests of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.azure.wire import Condition
from blobfuse_dysk.errors import DyskError, ServiceError, TransportError
from blobfuse_dysk.store.lease import epoch
from blobfuse_dysk.store.open import ResumeState
from blobfuse_dysk.store.stack import Stack
from blobfuse_dysk.testing import SimBlob, SimClient
from blobfuse_dysk.testing.fates import refuse
from tests.unit.stacks import LEASE, SIZE, attached, held
from tools.modellib import layout
from tools.modellib.layout import Request, node_base
from tools.modellib.scope import Scope
from tools.modellib.search import Step, covering
from tools.modellib.trace import sentence
from tools.modellib.world import Move, World

__all__ = ["Replay", "all_kinds", "walk"]

T = TypeVar("T")
NAMES = {  # of requests: the model's, and the clients'
    layout.LOOK: "properties",
    layout.ACQUIRE: "acquire",
    layout.BREAK: "break",
    layout.RENEW: "renew",
    layout.RELEASE: "release",
    layout.RAISE_TO: "raise",
    layout.PUT: "put",
}
EAGER = ("send", "raise", "renew", "worker")  # the store does these at once
WAIT_S, WAITS = 0.25, 60  # for what the store sends after a pause


@dataclass
class Sent:
    """A request under way. done: by the service; outcome: its answer."""

    name: str
    request: Callable[[], object]
    heard: trio.Event = field(default_factory=trio.Event)
    done: bool = False
    lost: bool = False
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
    """A client whose requests wait for `Sent.serve` and `heard`. Nobody may write metadata."""

    waiting: list[Sent] = field(default_factory=list)
    late: list[Sent] = field(default_factory=list)

    async def set_metadata(
        self, metadata: Mapping[str, str], *, lease_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> str:
        raise refuse(403, "AuthorizationPermissionMismatch")

    async def _ask(self, name: str, request: Callable[[], T], timeout_s: float) -> T:
        if name == "list":
            return request()
        sent = Sent(name, request)
        self.waiting.append(sent)
        try:
            await sent.heard.wait()
        except trio.Cancelled:
            sent.lost = True
            raise
        finally:
            self.waiting.remove(sent)
            if sent.lost and not sent.done and name != "properties":
                self.late.append(sent)
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
        self._nursery.start_soon(self._release, self.stack)

    async def _release(self, stack: Stack) -> None:
        await stack.release()
        self.state = "gone"
        self.scope.cancel()


class Replay:
    """One trace on one simulated blob."""

    def __init__(self, scope: Scope, nursery: trio.Nursery, clock: MockClock) -> None:
        self.blob = SimBlob(SIZE)
        self._scope, self._clock = scope, clock
        self._world = World(scope)
        self._bases = self._world.bases
        self._nodes = []
        self._starts = 0
        self._tags: dict[int, int] = {0: 0}
        for i in range(scope.nodes):
            options: dict[str, object] = {"cache": "none", "break_lease": i in scope.force}
            if scope.shared_id:
                options["lease_id"] = LEASE
            if scope.terms[i] == layout.FOREVER:
                options["lease_s"] = None
            client = SteppedClient(self.blob, nursery, name="ABC"[i])
            self._nodes.append(Node(client, nursery, options))

    async def run(self, trace: list[tuple[Step, bytes]]) -> None:
        """All of it. AssertionError where model and code differ."""
        before, told = self._world.first(), []
        for count, (step, after) in enumerate(trace, 1):
            told.append(f"{count:3} {sentence(step, before, after, self._scope.nodes)}")
            try:
                await self._do(step, before)
                await self._compare(after)
            except AssertionError as error:
                raise AssertionError("\n".join([*told, f"    but: {error}"])) from error
            before = after

    async def _do(self, step: Step, before: bytes) -> None:
        what = str(step[0])
        if what == "late":
            assert isinstance(step[1], Request)
            request = step[1]
            late = self._nodes[request.node].client.late
            sent = next((s for s in reversed(late) if s.name == NAMES[request.kind]), None)  # older ones are void
            assert sent is not None, "the code has no such request on its way"
            late.remove(sent)
            sent.serve()
            return
        index = int(str(step[1]))
        node, base = self._nodes[index], self._bases[index]
        if what in ("begin", "worker"):
            self._starts += 1
            node.start(seed=self._starts)  # each worker draws other numbers
        elif what in ("kill", "fail"):
            await self._all_sent(node, before, base)
            node.scope.cancel()
        elif what == "detach":
            await self._all_sent(node, before, base)
            node.detach()
        elif what == "send":
            page = int(str(step[2]))
            node.write(page, before[base + layout.DATA + page * layout.PAGE])
        elif what in ("serve", "answer", "lose"):
            sent = await self._waiting(node, NAMES[before[base + int(str(step[2])) + 1]], done=what == "answer")
            if what == "serve":
                sent.serve()
            else:
                sent.lost = what == "lose"
                sent.heard.set()

    async def _all_sent(self, node: Node, s: bytes, base: int) -> None:
        """Wait until the code has sent what the model has: it pauses before it sends something again."""
        for call in (layout.CALL, layout.RAISE, layout.DATA + 2):
            if s[base + call] == layout.OUT:
                await self._waiting(node, NAMES[s[base + call + 1]], done=False)

    async def _waiting(self, node: Node, name: str, *, done: bool) -> Sent:
        for _ in range(WAITS):
            await wait_all_tasks_blocked()
            for sent in node.client.waiting:
                if sent.name == name and sent.done >= done:
                    return sent
            self._clock.jump(WAIT_S)
        raise AssertionError(f"the code sends no {name}: {[s.name for s in node.client.waiting]}, {node.state}")

    async def _compare(self, s: bytes) -> None:
        await wait_all_tasks_blocked()
        state = ("available", "leased", "expired", "broken")[s[layout.LEASE]]
        assert self.blob.lease_state == state, f"the lease is {self.blob.lease_state}, not {state}"
        self._compare_numbers(s[layout.NUMBER], self.blob.number)
        for page in range(self._scope.pages):
            version = self.blob.get(page * 512, 1)[0]
            assert version == s[layout.CONTENT + page], f"page {page} has version {version}"
        for node, base in zip(self._nodes, self._bases, strict=True):
            await self._compare_node(node, s, base)

    def _compare_numbers(self, model: int, real: int) -> None:
        assert epoch.generation(real) == layout.generation(model), f"the generation is {epoch.generation(real)}"
        known = self._tags.setdefault(layout.tag(model), epoch.tag(real))
        assert known == epoch.tag(real), "the tag is another one"

    async def _compare_node(self, node: Node, s: bytes, base: int) -> None:
        phase = s[base + layout.PHASE]
        if phase == layout.LIVE:
            for _ in range(WAITS):
                if node.state == "opening" and not node.client.waiting:
                    self._clock.jump(WAIT_S)  # it pauses after a look
                    await wait_all_tasks_blocked()
            assert node.state == "live", node.state
            assert node.stack is not None
            assert node.stack.state != "fenced", "the code is fenced"
            assert (node.stack.state == "paused") == (not s[base + layout.LEFT]), node.stack.state
            assert node.held is not None
            self._compare_numbers(s[base + layout.EPOCH], node.stack.epoch or 0)
        elif phase == layout.FENCED:
            fenced = node.stack is not None and node.stack.state == "fenced"
            assert fenced or node.state.startswith("failed"), f"the code goes on: {node.state}"
        elif phase in (layout.ENDED, layout.KILLED):
            await self._let_end(node)
        elif phase in layout.OVER or phase == layout.DEAD:
            assert node.state == "gone", node.state
        elif phase >= layout.D_LOOKING:
            assert node.state == "detaching", node.state
        elif phase != layout.ABSENT:
            assert node.state == "opening", node.state

    async def _let_end(self, node: Node) -> None:
        """An attach that fails may still look whose the disk is, to say so."""
        for _ in range(WAITS):
            await wait_all_tasks_blocked()
            if node.state not in ("opening", "detaching"):
                break
            for sent in node.client.waiting:
                assert sent.name == "properties", f"the model is done, the code sends {sent.name}"
                sent.serve()
                sent.heard.set()
        assert node.state == "gone" or node.state.startswith("failed"), node.state


class Doable(World):
    """The model's moves that can be done to the real code; what the store does at once comes at once."""

    def moves(self, state: bytes) -> list[Move]:
        if any(state[base + layout.ROUNDS] >= self.scope.rounds for base in self.bases):
            return []  # the code looks more often than the model, and in the end otherwise
        moves = [move for move in super().moves(state) if not _cannot(self, move[0], state)]
        return [move for move in moves if move[0][0] in EAGER] or moves


def walk(scope: Scope, random: Random, most: int = 60) -> list[tuple[Step, bytes]]:
    """A trace drawn at random."""
    world = Doable(scope)
    state = world.first()
    trace: list[tuple[Step, bytes]] = []
    while len(trace) < most and (moves := world.moves(state)):
        step, state, violation = random.choice(moves)
        assert not violation, violation
        trace.append((step, state))
    return trace


def all_kinds(scope: Scope, max_states: int) -> list[list[tuple[Step, bytes]]]:
    """Traces to each kind of step: what happens, to which request, with which outcome, in which phase, to what end."""

    def kind(step: Step, before: bytes, after: bytes) -> object:
        if step[0] == "late":
            request = step[1]
            assert isinstance(request, Request)
            base = node_base(request.node)
            return "late", request.kind, request.cond, before[base], before[layout.LEASE], after[layout.LEASE]
        base = node_base(int(str(step[1])))
        call = base + int(str(step[2])) if step[0] in ("serve", "answer", "lose") else base + layout.CALL
        facts = (layout.DUE, layout.TAKEN, layout.AGAIN)
        told = tuple(after[base + at] for at in facts)
        tag = layout.tag(before[layout.NUMBER]) == before[base + layout.TAG]
        return step[0], before[base], after[base], before[call], before[call + 1], after[call], tag, told

    return covering(Doable(scope), kind, max_states=max_states)


def _cannot(world: World, step: Step, state: bytes) -> bool:
    """Whether the real code cannot be brought to do this here: no time passes, and a cancelled attach takes back."""
    if step[0] == "force-detach" or (step[0] == "renew" and state[node_base(int(str(step[1]))) + layout.LEFT]):
        return True
    return step[0] == "kill" and state[node_base(int(str(step[1]))) + layout.PHASE] < layout.LIVE
