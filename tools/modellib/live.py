"""An attachment that is served: a worker that takes it up, one that writes, and the end.

Written from the point of view of the node: what it knows, and what it concludes. `fence` is where it gives up for good;
that it does so only for a reason is what the properties ask.
"""

from __future__ import annotations

from tools.modellib.attach import Attach
from tools.modellib.layout import (
    AGE,
    BAD_CONDITION,
    BAD_LEASE,
    CALL,
    COND,
    D_LOOKING,
    DATA,
    DEAD,
    DOUBT,
    DUE,
    EPOCH,
    EXCUSE,
    EXPIRES,
    FENCED,
    FOREVER,
    FOUND,
    FRESH,
    HELD,
    ID,
    KILLS,
    KIND,
    LAPSES,
    LEFT,
    LIST,
    LOOK,
    LOW,
    METADATA,
    NEVER,
    NODE,
    NUM,
    OK,
    PAGE,
    PAGES,
    PHASE,
    R_CHECKING,
    R_LOOKING,
    R_RAISING,
    R_RENEWING,
    RAISE,
    RAISE_TO,
    RELEASE,
    RELEASING,
    RENEW,
    RENEWING,
    SEEN,
    SERVED,
    SIGN,
    SIGNED,
    STALE,
    TAG,
    TRIED,
    UNSIGNING,
    WANT,
    generation,
    numbered,
    tag,
)
from tools.modellib.network import Network
from tools.modellib.scope import Scope

__all__ = ["Live"]


class Live:
    """The phases LIVE, R_... and those of a detach."""

    def __init__(self, scope: Scope, network: Network, attach: Attach) -> None:
        self.scope, self.network, self.attach = scope, network, attach
        wrong = scope.wrong
        self.no_tag = "tag-ignored" in wrong or attach.by_one
        self.newer_epoch = "look-compares-with-newer" in wrong
        self.no_look = "no-look" in wrong
        self.no_raise = "no-raise" in wrong
        self.no_resume_raise = "resume-without-raise" in wrong
        self.no_raise_after_lapse = "no-raise-after-lapse" in wrong
        self.own_term = "term-of-the-option" in wrong
        self.old_raise = "raise-from-before-the-lapse" in wrong
        self.blind_detach = "detach-ignores-tag" in wrong
        self.unnoticed = "lapse-during-renewal" in wrong
        self.no_doubt = "no-doubt" in wrong

    # -- a new worker, or the attach of the disk of a dead attachment --

    def next_worker(self, s: bytearray, base: int) -> None:
        s[base + PHASE] = R_LOOKING
        s[base + LOW] = s[base + EXPIRES] = NEVER
        self.network.ask(s, base + CALL, LOOK)

    def adopt(self, s: bytearray, node: int, base: int, dead: int) -> None:
        """Node `node` attaches the disk of a dead attachment of its machine: what state.json says is its own now."""
        s[base : base + NODE] = s[dead : dead + NODE]
        self.attach.end(s, dead)
        s[base + SERVED] = 0
        s[base + DATA : base + NODE] = bytes(NODE - DATA)
        if self.own_term:
            s[base + HELD] = self.scope.terms[node]
        self.next_worker(s, base)

    def resume_looked(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        number, fresh = s[call + NUM], s[call + COND]
        if (tag(number) != s[base + TAG] and not self.no_tag) or number < s[base + SEEN]:
            return self.fence(s, node, base)
        s[base + FRESH], s[base + FOUND] = fresh, number
        s[base + PHASE] = R_RENEWING
        self.network.ask(s, call, RENEW)
        return ""

    def resume_renewed(self, s: bytearray, node: int, base: int) -> str:
        if s[base + CALL] != OK:
            return self.fence(s, node, base)
        self._hold(s, base, s[base + CALL + AGE])
        if self.no_resume_raise:
            s[base + EPOCH] = s[base + FOUND]
            return self._goes_on(s, node, base)
        self._claim(s, base)
        return ""

    def _claim(self, s: bytearray, base: int) -> None:
        number = s[base + FOUND]
        counter = 1 + min(2, s[KILLS])  # an earlier worker's is the higher one: so its late raise would win
        s[base + WANT] = number + 1 if self.attach.by_one else numbered(generation(number) + 1, s[base + TAG], counter)
        s[base + PHASE] = R_RAISING
        self.network.ask(s, base + CALL, RAISE_TO, num=s[base + WANT], cond=s[base + FRESH])

    def resume_raised(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        status, number = s[call], s[call + NUM]
        if status == BAD_LEASE:
            self.next_worker(s, base)
            return ""
        if status == BAD_CONDITION:
            return self.resume_check(s, base)
        if number != s[base + WANT]:
            return self.fence(s, node, base)
        s[base + EPOCH], s[base + FRESH] = number, s[call + COND]
        return self._goes_on(s, node, base)

    def resume_check(self, s: bytearray, base: int) -> str:
        s[base + PHASE] = R_CHECKING
        self.network.ask(s, base + CALL, LOOK)
        return ""

    def resume_checked(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        number, fresh = s[call + NUM], s[call + COND]
        if number != s[base + WANT]:
            if (tag(number) != s[base + TAG] and not self.no_tag) or number < s[base + SEEN]:
                return self.fence(s, node, base)
            s[base + FRESH], s[base + FOUND] = fresh, number
            self._claim(s, base)
            return ""
        s[base + EPOCH], s[base + FRESH] = number, fresh
        return self._goes_on(s, node, base)

    def _goes_on(self, s: bytearray, node: int, base: int) -> str:
        if s[base + LEFT] or self.attach.no_certainty:
            return self.attach.serve(s, node, base, sign=self.scope.sign)
        s[base + PHASE] = RENEWING
        self.network.ask(s, base + CALL, RENEW)
        return ""

    # -- the lease of a live node --

    def renew(self, s: bytearray, base: int) -> None:
        """Send a renewal; if the lease is not certain when it is answered, the number is looked at."""
        s[base + DOUBT] = 0
        s[base + LOW] = NEVER if self.unnoticed and s[base + LEFT] else s[base + EPOCH]
        self.network.ask(s, base + CALL, RENEW)

    def renew_answered(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        if s[call + KIND] == RENEW:
            if s[call] != OK:
                return self.fence(s, node, base)
            if not s[base + LEFT] and s[base + LOW] != NEVER and not self.no_look:
                age = s[call + AGE]
                self.network.ask(s, call, LOOK)
                s[call + AGE] = age
                return ""
        else:
            low = s[base + EPOCH] if self.newer_epoch else s[base + LOW]
            if not low <= s[call + NUM] <= s[base + TRIED]:
                return self.fence(s, node, base)
        lapsed = not s[base + LEFT]
        raises = not (self.no_raise_after_lapse or self.no_raise or (self.unnoticed and s[base + LOW] == NEVER))
        if lapsed and raises:
            s[base + DUE], s[base + LAPSES] = 1, bool(s[base + RAISE])
        if s[base + DOUBT]:  # it arose after this renewal was sent, which proves nothing then
            s[base + LEFT] = 0
            self.renew(s, base)
            return ""
        self._hold(s, base, s[call + AGE])
        self.network.free(s, call)
        if lapsed and not raises:
            self.network.service.recovered(s)
        s[base + LOW] = NEVER
        return ""

    def renew_lost(self, s: bytearray, node: int, base: int) -> None:
        self.network.give_up(s, node, base, base + CALL)
        s[base + LOW], s[base + DOUBT] = NEVER, 0

    def _hold(self, s: bytearray, base: int, age: int) -> None:
        held = s[base + HELD]
        s[base + LEFT] = held if held == FOREVER else max(0, held - (0 if self.attach.after_answer else age))

    def doubt(self, s: bytearray, base: int) -> None:
        if self.no_doubt:
            return
        s[base + LEFT] = 0
        if s[base + CALL]:
            s[base + DOUBT] = 1

    def fence(self, s: bytearray, node: int, base: int) -> str:
        """Another has, or had, the disk: the attachment does nothing any more, for good."""
        excuse = s[base + EXCUSE]
        self.leave(s, node, base)
        self.attach.end(s, base, FENCED)
        return "" if excuse else "P4 a node is fenced though nobody else did anything to its disk"

    def leave(self, s: bytearray, node: int, base: int) -> None:
        """All it had sent is on its own from here."""
        for call in (
            base + CALL,
            base + RAISE,
            base + LIST,
            base + SIGN,
            *(base + DATA + p * PAGE + 2 for p in range(PAGES)),
        ):
            if s[call]:
                self.network.give_up(s, node, base, call)

    # -- the epoch of a live node --

    def may_raise(self, s: bytes, base: int) -> bool:
        """Whether a raise is due and can be sent, within the bounds of the search."""
        if not s[base + DUE] or not s[base + LEFT] or s[base + RAISE]:
            return False
        return self._following(s[base + EPOCH], s[base + TAG]) - s[base + SEEN] <= self.scope.raises or (
            self.scope.counters < 8 and generation(s[base + EPOCH]) == generation(s[base + SEEN])
        )

    def send_raise(self, s: bytearray, base: int) -> None:
        """The number is asked for by `max`, without a condition."""
        if self.no_raise:
            s[base + DUE] = 0
            return
        wanted = max(s[base + TRIED], self._following(s[base + EPOCH], s[base + TAG]))
        s[base + TRIED], s[base + LAPSES] = wanted, 0
        self.network.ask(s, base + RAISE, RAISE_TO, num=wanted)

    def _following(self, epoch: int, own_tag: int) -> int:
        if epoch & 7 >= self.scope.counters - 1:
            return numbered(generation(epoch) + 1, own_tag, 0)
        return epoch + 1

    def raise_answered(self, s: bytearray, node: int, base: int) -> str:
        call = base + RAISE
        status, number = s[call], s[call + NUM]
        self.network.free(s, call)
        if status == BAD_LEASE:
            self.doubt(s, base)
        elif number != s[base + TRIED]:
            return self.fence(s, node, base)
        else:
            s[base + EPOCH] = number
            s[base + DUE] = s[base + LAPSES] and not self.old_raise  # one from before the end of a lapse is not enough
            if s[base + LAPSES] and self.old_raise:
                self.network.service.recovered(s)
            s[base + LAPSES] = 0
        return ""

    # -- a worker's death --

    def die(self, s: bytearray, node: int, base: int) -> None:
        """What stays is the ring, and state.json."""
        self.leave(s, node, base)
        keep = [(at, s[base + at]) for at in (ID, HELD, TAG, SEEN, EXCUSE, SERVED)]
        rings = [bytes(s[base + DATA + p * PAGE : base + DATA + p * PAGE + 2]) for p in range(PAGES)]
        s[base : base + NODE] = bytes(NODE)
        s[base + PHASE] = DEAD
        for at, value in keep:
            s[base + at] = value
        for p, ring in enumerate(rings):
            s[base + DATA + p * PAGE : base + DATA + p * PAGE + 2] = ring

    # -- detach: everything is flushed --

    def detach(self, s: bytearray, node: int, base: int) -> None:
        self.leave(s, node, base)
        keep = [(at, s[base + at]) for at in (ID, TAG, EXCUSE)]
        s[base : base + NODE] = bytes(NODE)
        for at, value in keep:
            s[base + at] = value
        s[base + PHASE] = D_LOOKING
        self.network.ask(s, base + CALL, LOOK)

    def detach_looked(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        number, fresh = s[call + NUM], s[call + COND]
        if tag(number) != s[base + TAG] and not self.no_tag and not self.blind_detach:
            self.attach.end(s, base)
        elif self.scope.sign and not s[base + SIGNED]:
            s[base + PHASE], s[base + SIGNED], s[base + FRESH] = UNSIGNING, 1, fresh
            self.network.ask(s, call, METADATA, cond=fresh)
        else:
            self._release(s, base, fresh)
        return ""

    def unsigned(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        if s[call] == OK:
            self._release(s, base, s[call + COND])
        elif s[call] == BAD_CONDITION:
            s[base + PHASE], s[base + SIGNED] = D_LOOKING, 0
            self.network.ask(s, call, LOOK)
        else:
            self._release(s, base, STALE)
        return ""

    def released(self, s: bytearray, node: int, base: int) -> str:
        if s[base + CALL] == BAD_CONDITION:
            s[base + PHASE] = D_LOOKING
            self.network.ask(s, base + CALL, LOOK)
        else:
            self.attach.end(s, base)
        return ""

    def _release(self, s: bytearray, base: int, fresh: int) -> None:
        s[base + PHASE], s[base + FRESH] = RELEASING, fresh
        self.network.ask(s, base + CALL, RELEASE, cond=fresh)

    def detach_lost(self, s: bytearray, node: int, base: int) -> None:
        """Tried again, but for the name, which is a courtesy."""
        phase, fresh, call = s[base + PHASE], s[base + FRESH], base + CALL
        self.network.give_up(s, node, base, call)
        if phase == D_LOOKING:
            self.network.ask(s, call, LOOK)
        else:
            self._release(s, base, fresh)
