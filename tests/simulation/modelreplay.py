"""Does to the real store, on a simulated blob, what a trace of the model says, and compares the two after each step.

A request of the real code waits until the model's step says what becomes of it: the service does it, the answer comes
in, its sender gives it up, it arrives late. So the model's steps are the schedule, and the store's own tasks fill in
the rest. A tick is TICK_S seconds in one jump of the clock: renewals, due after a third of the term, leave right after
it, as the model's do, and what the store pauses for is short beside it. No request ends by itself (`patient`): the
model says how long it takes.

A request that the model knows to be void is tried after each step, and must be refused each time. Not replayed: lists
of pages, signing, conditions with a last moment.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.errors import ServiceError, StoreError
from blobfuse_dysk.store import open, stack
from blobfuse_dysk.store.lease import claim, epoch, release, requests
from blobfuse_dysk.store.lease.token import lease_time
from blobfuse_dysk.testing import SimBlob
from tests.simulation.modelnodes import Node, Sent, SteppedClient
from tests.simulation.stacks import LEASE, SIZE
from tests.suspension import Suspend
from tools.modellib import layout
from tools.modellib.layout import Request
from tools.modellib.scope import Scope
from tools.modellib.search import Step
from tools.modellib.trace import sentence
from tools.modellib.world import World

__all__ = ["Replay", "patient"]

NAMES = {  # of requests: the model's, and the clients'
    layout.LOOK: "properties",
    layout.ACQUIRE: "acquire",
    layout.BREAK: "break",
    layout.RENEW: "renew",
    layout.RELEASE: "release",
    layout.RAISE_TO: "raise",
    layout.PUT: "put",
}
TICK_S = 30.0  # a term of one tick, or two, is a real one
WAIT_S, WAITS = 0.25, 100  # for what the store sends after a pause


def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no request and no series of attempts end because it takes long, and no look come that decides nothing.

    What store/lease/watch.py sees is told to people; the model has no such looks.
    """

    async def nothing(*arguments: object, **more: object) -> StoreError:
        return await trio.sleep_forever()

    monkeypatch.setattr(requests, "GRACE", math.inf)
    monkeypatch.setattr(open, "ATTACH_BUDGET_S", math.inf)
    monkeypatch.setattr(claim, "CERTAIN_TRIES", math.inf)
    monkeypatch.setattr(release, "GIVE_UP_S", math.inf)
    monkeypatch.setattr(stack, "watch", nothing)
    monkeypatch.setattr(stack, "find_holder", nothing)


class Replay:
    """One trace on one simulated blob."""

    def __init__(self, scope: Scope, nursery: trio.Nursery, clock: MockClock, suspend: Suspend) -> None:
        self.blob = SimBlob(SIZE, clock=lease_time)
        self._scope, self._clock, self._suspend = scope, clock, suspend
        self._world = World(scope)
        self._bases = self._world.bases
        self._nodes = []
        self._starts = 0
        self._tags: dict[int, int] = {0: 0}
        self._ids: dict[int, str] = {layout.USERS_ID: LEASE}
        self._slots = self._world.network
        for i in range(scope.nodes):
            options: dict[str, object] = {
                "cache": "none",
                "break_lease": i in scope.force,
                "lease_id": LEASE if scope.shared_id else None,
                "lease_s": None if scope.terms[i] == layout.FOREVER else scope.terms[i] * TICK_S,
                "io_timeout_s": None,
            }
            client = SteppedClient(self.blob, nursery, name="ABC"[i])
            self._nodes.append(Node(client, nursery, options))

    async def run(self, trace: list[tuple[Step, bytes]]) -> None:
        """All of it. AssertionError where model and code differ."""
        before, told = self._world.first(), []
        if self._scope.attached:
            await self._attach(self._nodes[0])
        for count, (step, after) in enumerate(trace, 1):
            told.append(f"{count:3} {sentence(step, before, after, self._scope.nodes)}")
            etag = self.blob.etag
            try:
                await self._do(step, before)
                await self._compare(after)
                assert (self.blob.etag != etag) == self._modifies(step, before, after), f"the ETag was {etag}"
                self._try_void(after)
            except AssertionError as error:
                raise AssertionError("\n".join([*told, f"    but: {error}"])) from error
            before = after

    def end(self) -> None:
        """Let what is under way fail."""
        for node in self._nodes:
            node.client.end()

    async def _attach(self, node: Node) -> None:
        """The first node is attached before the trace begins."""
        self._starts += 1
        node.start(seed=self._starts)
        while node.state == "opening":
            await wait_all_tasks_blocked()
            for sent in node.client.waiting:
                sent.serve()
                sent.heard.set()
        assert node.state == "live", node.state

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
        if what == "outsider":
            self._outsider(str(step[1]), before[layout.VERSION] + 1)
            return
        if what == "tick":
            for node, base in zip(self._nodes, self._bases, strict=True):
                await self._all_sent(node, before, base)
            if step[1] == -1:
                self._clock.jump(TICK_S)
            else:
                self._suspend(TICK_S + 1)  # what is read off two clocks may be a little less
            return
        index = int(str(step[1]))
        node, base = self._nodes[index], self._bases[index]
        if what in ("begin", "worker", "adopt"):
            if what == "adopt":
                dead = self._nodes[int(str(step[2]))]
                node.held, dead.held = dead.held, None
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

    def _outsider(self, what: str, version: int) -> None:
        if what == "break":
            self.blob.break_now()
            return
        self.blob.put("outsider", 0, bytes([version]) * 512, 512, self._held_id, None)
        if what != "write":
            self.blob.number = 0

    @property
    def _held_id(self) -> str | None:
        return self.blob.lease_id if self.blob.lease_state == "leased" else None

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

    def _modifies(self, step: Step, before: bytes, after: bytes) -> bool:
        """Whether the model's step gives the blob another ETag."""
        what, modifying = step[0], (layout.RAISE_TO, layout.PUT)
        if what == "outsider":
            return step[1] != "break"
        if what == "late":
            request = step[1]
            assert isinstance(request, Request)
            holds = before[layout.LEASE] == layout.LEASED and before[layout.HOLDER] == request.lease_id
            fits = request.kind == layout.RAISE_TO or request.num == before[layout.NUMBER]
            return request.kind in modifying and request.cond != layout.STALE and holds and fits
        if what == "serve":
            at = self._bases[int(str(step[1]))] + int(str(step[2]))
            return before[at + 1] in modifying and after[at] == layout.OK
        return False

    def _try_void(self, s: bytes) -> None:
        """What the model dropped, since no condition of it can hold any more, must be refused."""
        slots = range(self._slots.at, self._slots.end, layout.SLOT)
        alive = Counter((s[at + 1], NAMES[s[at]]) for at in slots if s[at])
        for index, node in enumerate(self._nodes):
            for name in NAMES.values():
                late = [sent for sent in node.client.late if sent.name == name]
                for sent in late[: len(late) - alive[index, name]]:
                    with pytest.raises(ServiceError):
                        sent.request()

    async def _compare(self, s: bytes) -> None:
        await wait_all_tasks_blocked()
        state = ("available", "leased", "expired", "broken")[s[layout.LEASE]]
        assert self.blob.lease_state == state, f"the lease is {self.blob.lease_state}, not {state}"
        if state in ("leased", "expired", "broken"):
            known = self._ids.setdefault(s[layout.HOLDER], self.blob.lease_id or "")
            assert known == self.blob.lease_id, "the lease has another id"
        if state == "leased":
            term = s[layout.TERM]
            term_s = math.inf if term == layout.FOREVER else term * TICK_S
            assert self.blob.lease_s == term_s, f"the term is {self.blob.lease_s} s, not {term_s}"
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
            node.client.leave()
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
