"""All steps that are possible in a state. A step is (what, node, more...): trace.py says it in words, a replay does it.

    ("begin", i) ("adopt", i, j) ("tick", asleep or -1)
    ("serve", i, call) ("copy", i, call) ("answer", i, call) ("lose", i, call) ("fail", i)
    ("late", request) ("outsider", what) ("kill", i) ("worker", i) ("force-detach", i) ("detach", i) ("waited", i)
    ("renew", i) ("raise", i) ("list", i) ("accept", i, page, zeros) ("send", i, page) ("zeros", i, page)

call: the offset of the request in the node (CALL, RAISE, LIST, SIGN, DATA + 2...).
"""

from __future__ import annotations

from collections.abc import Callable

from tools.modellib.attach import Attach
from tools.modellib.failing import SHORT_TERM
from tools.modellib.layout import (
    ABSENT,
    ACQUIRING,
    AGE,
    ASKING,
    BREAKING,
    CALL,
    CHECKING,
    CLEAR,
    COMPARING,
    COND,
    D_LOOKING,
    DATA,
    DATED,
    DEAD,
    ENDS,
    EPOCH,
    EXCUSE,
    EXPIRES,
    EXTRA,
    F_ACQUIRING,
    F_LOOKING,
    F_RAISING,
    F_RELEASING,
    FAULTS,
    FOREVER,
    HELD,
    HOLDER,
    ID,
    KEEPING,
    KEPT_CHECKING,
    KILLED,
    KILLS,
    KIND,
    KINDS,
    LATER,
    LATER_CHECKING,
    LEASE,
    LEASED,
    LEFT,
    LIST,
    LIST_PAGES,
    LIVE,
    LOADED,
    LOOKING,
    MAP,
    NEVER,
    NOBODY,
    NUM,
    NUMBER,
    OUT,
    OUTSIDE,
    OVER,
    OWNER,
    PAGE,
    PHASE,
    R_CHECKING,
    R_LOOKING,
    R_RAISING,
    R_RENEWING,
    RAISE,
    RAISING,
    RELEASING,
    RENEWING,
    RING,
    SHARING,
    SIGN,
    SLOT,
    SUSPENDS,
    TERM,
    UNSIGNING,
    UNTIL,
    VERSION,
    WAITING,
    numbered,
)
from tools.modellib.live import Live
from tools.modellib.network import Network
from tools.modellib.properties import broken
from tools.modellib.scope import Scope
from tools.modellib.service import Service
from tools.modellib.writes import Writes

__all__ = ["Move", "Step", "World"]

Step = tuple[object, ...]
Move = tuple[Step, bytes, str]  # step, state after it, violation or ""


class World:
    """The system of a scope: its first state, and the moves from a state."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.service = Service(scope)
        self.network = Network(self.service)
        self.attach = Attach(scope, self.network)
        self.live = Live(scope, self.network, self.attach)
        self.writes = Writes(scope, self.network, self.live)
        self.bases = self.service.bases
        lossy = scope.lossy
        self.lossy = frozenset(k for k, name in enumerate(KINDS) if k and (not lossy or name in lossy))
        self.age_most = max(SHORT_TERM if term == FOREVER else term for term in scope.terms[: scope.nodes])
        self.copies = "copies-of-acknowledged" in scope.wrong
        self.clock_stops = "no-boottime-clock" in scope.wrong
        a, live = self.attach, self.live
        self.answers: dict[int, Callable[[bytearray, int, int], str]] = {
            LOOKING: a.looked,
            BREAKING: a.broken,
            ACQUIRING: a.acquired,
            RAISING: a.raised,
            CHECKING: a.checked,
            LATER: a.raised,
            LATER_CHECKING: a.later_checked,
            SHARING: a.shared,
            KEEPING: a.kept,
            KEPT_CHECKING: a.kept_checked,
            RENEWING: a.renewed,
            COMPARING: a.compared,
            ASKING: a.fail,
            LIVE: live.renew_answered,
            R_LOOKING: live.resume_looked,
            R_RENEWING: live.resume_renewed,
            R_RAISING: live.resume_raised,
            R_CHECKING: live.resume_checked,
            F_LOOKING: a.failing_looked,
            F_ACQUIRING: a.failing_acquired,
            F_RAISING: a.failing_raised,
            F_RELEASING: a.failing_released,
            D_LOOKING: live.detach_looked,
            UNSIGNING: live.unsigned,
            RELEASING: live.released,
        }

    def first(self) -> bytes:
        scope = self.scope
        s = bytearray(self.service.late_end)
        s[FAULTS], s[KILLS], s[OUTSIDE], s[SUSPENDS] = scope.faults, scope.kills, scope.outside, scope.suspends
        s[OWNER] = NOBODY
        if scope.attached:
            base, number = self.bases[0], numbered(1, scope.tags[0], 1)
            self.attach.begin(s, 0, base)
            self.network.free(s, base + CALL)
            s[LEASE], s[HOLDER], s[TERM], s[ENDS] = LEASED, s[base + ID], scope.terms[0], scope.terms[0]
            s[base + HELD] = s[base + LEFT] = scope.terms[0]
            s[NUMBER] = s[base + EPOCH] = number
            self.attach.serve(s, 0, base)
        return self.network.tidy(s)

    def moves(self, state: bytes) -> list[Move]:
        """All steps that are possible."""
        out: list[Move] = []
        if self.scope.time:
            self._time(state, out)
        self._late(state, out)
        if state[OUTSIDE]:
            self._outsiders(state, out)
        for node, base in enumerate(self.bases):
            phase = state[base + PHASE]
            if phase in OVER:
                continue
            if phase == ABSENT:
                self._begin(state, out, node, base)
                continue
            self._requests(state, out, node, base)
            if state[KILLS] and (LOOKING <= phase <= ASKING or R_LOOKING <= phase <= R_CHECKING):
                s = bytearray(state)
                s[KILLS] -= 1
                self._kill(s, node, base, phase)
                self._add(out, ("kill", node), s)
            if phase == LIVE:
                self._live(state, out, node, base)
            elif phase == DEAD:
                self._dead(state, out, node, base)
            elif phase == WAITING and not state[base + EXPIRES]:
                s = bytearray(state)
                self.attach.waited(s, node, base)
                self._add(out, ("waited", node), s)
        return out

    def _add(self, out: list[Move], step: Step, s: bytearray, violation: str = "") -> None:
        state = self.network.tidy(s)
        out.append((step, state, violation or broken(self, state)))

    def _time(self, state: bytes, out: list[Move]) -> None:
        """A tick; with the wrong clock, also one that a node does not notice."""
        sleepers = [-1]
        if state[SUSPENDS]:
            sleepers += [i for i, b in enumerate(self.bases) if state[b + PHASE] == LIVE and state[b + LEFT]]
        for sleeper in sleepers:
            s = bytearray(state)
            self.service.tick(s)
            for node, base in enumerate(self.bases):
                asleep = node == sleeper and self.clock_stops
                left = s[base + LEFT]
                if left and left != FOREVER and not asleep:
                    s[base + LEFT] = left - 1
                if s[base + EXPIRES] not in (0, NEVER):
                    s[base + EXPIRES] -= 1
                if s[base + UNTIL]:
                    s[base + UNTIL] -= 1
                call = base + CALL
                if s[call]:
                    if s[call + AGE] < self.age_most and not asleep:
                        s[call + AGE] += 1
                    if s[call] == OUT and s[call + COND] == DATED and s[call + EXTRA]:
                        s[call + EXTRA] -= 1
            if s != state:
                if sleeper >= 0:
                    s[SUSPENDS] -= 1
                self._add(out, ("tick", sleeper), s)

    def _late(self, state: bytes, out: list[Move]) -> None:
        before = b""
        for at in range(self.network.at, self.network.end, SLOT):
            slot = state[at : at + SLOT]
            if slot[0] and slot != before:
                s = bytearray(state)
                request = self.network.late(state, at)
                s[at : self.network.end] = s[at + SLOT : self.network.end] + bytes(SLOT)
                _, violation = self.service.serve(s, request)
                self._add(out, ("late", request), s, violation)
            before = slot

    def _outsiders(self, state: bytes, out: list[Move]) -> None:
        for what in sorted(self.scope.outsiders):
            leased = state[LEASE] == LEASED
            if (what == "break" and leased) or (what in ("write", "copy") and not leased) or what == "copy-with-id":
                s = bytearray(state)
                s[OUTSIDE] -= 1
                self.service.outsider(s, what)
                self._add(out, ("outsider", what), s)

    def _begin(self, state: bytes, out: list[Move], node: int, base: int) -> None:
        if node and state[self.bases[node - 1] + PHASE] == ABSENT:
            return  # nodes are alike: they come in the order of their names
        s = bytearray(state)
        self.attach.begin(s, node, base)
        self._add(out, ("begin", node), s)
        if self.scope.adopt:
            for other in range(node):
                if state[self.bases[other] + PHASE] == DEAD:
                    s = bytearray(state)
                    self.live.adopt(s, node, base, self.bases[other])
                    self._add(out, ("adopt", node, other), s)

    def _requests(self, state: bytes, out: list[Move], node: int, base: int) -> None:
        """The service does what is under way; answers come in; senders lose patience."""
        for call in (CALL, RAISE, LIST, SIGN, *(DATA + p * PAGE + 2 for p in range(self.scope.pages))):
            at = base + call
            status = state[at]
            if not status:
                continue
            if status == OUT:
                s = bytearray(state)
                violation = self.network.answered(s, node, base, at)
                self._add(out, ("serve", node, call), s, violation)
                if self.copies and call >= DATA and state[FAULTS]:
                    self.network.leave(s, self.network.request(bytearray(state), node, base, at))
                    s[FAULTS] -= 1
                    self._add(out, ("copy", node, call), s, violation)
            else:
                s = bytearray(state)
                self._add(out, ("answer", node, call), s, self._answer(s, node, base, call))
            if state[FAULTS] and state[at + KIND] in self.lossy:
                s = bytearray(state)
                s[FAULTS] -= 1
                self._add(out, ("lose", node, call), s, self._lose(s, node, base, call))
                if self.scope.failures and call == CALL and LOOKING <= state[base + PHASE] <= ASKING:
                    s = bytearray(state)
                    s[FAULTS] -= 1
                    self._add(out, ("fail", node), s, self.attach.fail(s, node, base))

    def _answer(self, s: bytearray, node: int, base: int, call: int) -> str:
        if call == CALL:
            return self.answers[s[base + PHASE]](s, node, base)
        if call == RAISE:
            return self.live.raise_answered(s, node, base)
        if call == LIST:
            s[base + MAP] |= s[base + LIST + NUM]
            s[base + LOADED] = 1
            self.network.free(s, base + LIST)
            return ""
        if call == SIGN:
            self.network.free(s, base + SIGN)
            return ""
        return self.writes.answered(s, node, base, (call - DATA) // PAGE)

    def _lose(self, s: bytearray, node: int, base: int, call: int) -> str:
        phase = s[base + PHASE]
        if call >= DATA:
            self.writes.lost(s, node, base, (call - DATA) // PAGE)
        elif call != CALL:
            self.network.give_up(s, node, base, base + call)
        elif phase == LIVE:
            self.live.renew_lost(s, node, base)
        elif phase in (D_LOOKING, UNSIGNING, RELEASING):
            self.live.detach_lost(s, node, base)
        else:
            return self.attach.lost(s, node, base)
        return ""

    def _kill(self, s: bytearray, node: int, base: int, phase: int) -> None:
        if phase < LIVE:
            self.live.leave(s, node, base)
            self.attach.end(s, base, KILLED)
        else:
            self.live.die(s, node, base)

    def _dead(self, state: bytes, out: list[Move], node: int, base: int) -> None:
        s = bytearray(state)
        self.live.next_worker(s, base)
        self._add(out, ("worker", node), s)
        if self.scope.detach:
            s = bytearray(state)
            self.attach.end(s, base, KILLED)
            self._add(out, ("force-detach", node), s)

    def _live(self, state: bytes, out: list[Move], node: int, base: int) -> None:
        scope = self.scope
        if state[KILLS]:
            s = bytearray(state)
            s[KILLS] -= 1
            self.live.die(s, node, base)
            self._add(out, ("kill", node), s)
        left, held = state[base + LEFT], state[base + HELD]
        if not state[base + CALL] and (left < held or (held == FOREVER and state[base + EXCUSE])):
            s = bytearray(state)
            self.live.renew(s, base)
            self._add(out, ("renew", node), s)
        if self.live.may_raise(state, base):
            s = bytearray(state)
            self.live.send_raise(s, base)
            self._add(out, ("raise", node), s)
        if scope.sparse and not state[base + LOADED] and not state[base + LIST]:
            s = bytearray(state)
            self.network.ask(s, base + LIST, LIST_PAGES)
            self._add(out, ("list", node), s)
        for page in range(scope.pages):
            self._page(state, out, node, base, page)
        if scope.detach and self.writes.idle(state, base):
            s = bytearray(state)
            self.live.detach(s, node, base)
            self._add(out, ("detach", node), s)

    def _page(self, state: bytes, out: list[Move], node: int, base: int, page: int) -> None:
        scope, writes = self.scope, self.writes
        at = base + DATA + page * PAGE
        ring, call = state[at + RING], at + 2
        if state[VERSION] < scope.versions and (not ring or scope.overwrite):
            for zeros in (0, 1) if scope.clears else (0,):
                s = bytearray(state)
                writes.accept(s, at, zeros)
                self._add(out, ("accept", node, page, zeros), s)
        if not ring:
            return
        if not state[call]:
            if state[at + CLEAR] and writes.free_in_map(state, base, page):
                s = bytearray(state)
                self._add(out, ("zeros", node, page), s, writes.answer_zeros(s, node, base, page))
            elif writes.is_open(state, base):
                s = bytearray(state)
                writes.send(s, base, page)
                self._add(out, ("send", node, page), s)
        elif writes.no_order and state[call] == OUT and state[call + EXTRA] != ring:
            s = bytearray(state)
            writes.overtake(s, node, base, page)
            self._add(out, ("overtake", node, page), s)
