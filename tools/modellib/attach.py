"""An attach: look, break, acquire, raise, keep for ever, be certain, then sign; and how one that fails ends.

Each method draws the conclusion from one answer and sends the next request in the same step: a pause in between is the
same as a request that takes long.
"""

from __future__ import annotations

from tools.modellib.failing import SHORT_TERM, Failing
from tools.modellib.layout import (
    ACQUIRE,
    ACQUIRING,
    AGAIN,
    AGE,
    AIM,
    AIMED,
    ASKING,
    AVAILABLE,
    BAD_CONDITION,
    BAD_LEASE,
    BREAK,
    BREAKING,
    BROKEN,
    CALL,
    CHECKING,
    COMPARING,
    COND,
    DATED,
    EARLY,
    EPOCH,
    EXCUSE,
    EXPIRED,
    EXPIRES,
    EXTRA,
    F_ACQUIRING,
    FORCE,
    FORCED,
    FOREVER,
    FOUND,
    FRESH,
    HELD,
    HOLDER,
    ID,
    KEEPING,
    KEPT_CHECKING,
    KIND,
    LATER,
    LATER_CHECKING,
    LEASE,
    LEASE_SEEN,
    LEASED,
    LEFT,
    LIST,
    LIST_PAGES,
    LIVE,
    LOADED,
    LOOKING,
    LOW,
    MAP,
    MAYBE,
    METADATA,
    NEVER,
    NOTHING,
    NUM,
    NUMBER,
    OK,
    OUT,
    OWNED,
    OWNER,
    PHASE,
    RAISE_TO,
    RAISING,
    REFUSED,
    RELEASE,
    RENEW,
    RENEWING,
    ROUNDS,
    SEEN,
    SENT,
    SERVED,
    SHARING,
    SIGN,
    SIGNED,
    STALE,
    TAG,
    TAKEN,
    TRIED,
    UNTIL,
    USERS_ID,
    WAITING,
    WANT,
    generation,
    numbered,
    tag,
)
from tools.modellib.network import Network
from tools.modellib.scope import Scope

__all__ = ["Attach"]

DATE_TICKS = 1  # how far ahead the date of a break "if unmodified since" lies


class Attach(Failing):
    """The phases LOOKING to COMPARING, and those of a failure."""

    def __init__(self, scope: Scope, network: Network) -> None:
        super().__init__(scope, network)
        wrong = scope.wrong
        self.by_one = "raise-by-one" in wrong
        self.for_ever_at_once = "infinite-at-once" in wrong
        self.after_answer = "term-after-answer" in wrong
        self.no_certainty = "no-certainty" in wrong
        self.no_own = "own-late-raise-is-anothers" in wrong
        self.no_sharing = "acquire-of-the-shared" in wrong
        self.no_wait = "no-wait-for-last-moment" in wrong
        self.no_again = "no-raise-after-keeping" in wrong
        self.free = (AVAILABLE, BROKEN, EXPIRED) if "failure-releases-lapsed" in wrong else (AVAILABLE, BROKEN)
        self.no_refusal = "acquire-though-leased" in wrong
        self.map_early = "map-early" in wrong

    def begin(self, s: bytearray, node: int, base: int) -> None:
        """A new attachment."""
        scope = self.scope
        s[base + ID] = USERS_ID if scope.shared_id else 1 + node
        s[base + TAG] = scope.tags[node]
        s[base + FORCE] = node in scope.force
        s[base + EXPIRES] = s[base + LOW] = s[base + FOUND] = NEVER
        s[base + EXCUSE] = 0
        self._check(s, base, LOOKING)

    # -- the answers, by phase --

    def looked(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        number, leased, state = s[call + NUM], s[call + EXTRA], s[call + LEASE_SEEN]
        if s[base + TAKEN] == REFUSED:
            s[base + TAKEN] = 0
        self._found(s, base)
        s[base + WANT] = self._claim(s, base, number)
        if self.scope.sparse and not s[base + ROUNDS] and s[base + FRESH] != DATED:
            s[base + EARLY] = 1
            self.network.ask(s, base + LIST, LIST_PAGES)
        free = state in self.free
        if leased and not self.scope.shared_id and s[base + TAKEN] != MAYBE and not self.no_refusal:
            if not s[base + FORCE]:
                return self.fail(s, node, base)
            self._break(s, base, leased, free, number)
        elif self.scope.shared_id and state not in (AVAILABLE, BROKEN) and not self.no_sharing:
            s[base + PHASE] = SHARING
            if s[base + TAKEN] != MAYBE:
                s[base + TAKEN], s[base + FOUND] = SENT, number if free else NEVER
            self.network.ask(s, call, RENEW)
        else:
            self._acquire(s, node, base, free, number, aim=not leased or self.scope.shared_id)
        return ""

    def shared(self, s: bytearray, node: int, base: int) -> str:
        if s[base + CALL] == OK:
            s[base + TAKEN] = MAYBE
            s[base + HELD] = s[base + LEFT] = 0  # its term is not known
            self._send_raise(s, base)
        else:
            found = s[base + FOUND]
            self._acquire(s, node, base, found != NEVER, found, aim=True)
        return ""

    def broken(self, s: bytearray, node: int, base: int) -> str:
        if s[base + CALL] == BAD_CONDITION or s[base + TAKEN] in (REFUSED, MAYBE):  # so it was sent after a refusal
            return self._anew(s, node, base)
        found = s[base + FOUND]
        self._acquire(s, node, base, found != NEVER, found, aim=True)
        return ""

    def acquired(self, s: bytearray, node: int, base: int) -> str:
        status = s[base + CALL]
        if status == OK:
            s[base + TAKEN] = MAYBE
            self._hold(s, base, self._term(node))
            self._send_raise(s, base)
            return ""
        if s[base + TAKEN] != MAYBE:
            s[base + TAKEN] = 0
        if status == BAD_CONDITION:
            return self._anew(s, node, base)
        if not s[base + FORCE]:
            return self._check(s, base, ASKING)
        if s[base + TAKEN] != MAYBE:
            s[base + TAKEN] = REFUSED
        self._break(s, base, s[HOLDER], False, NEVER)  # whoever it is that has it now
        return ""

    def raised(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        status, number = s[call], s[call + NUM]
        if status == BAD_LEASE:
            return self._anew(s, node, base)
        if status == BAD_CONDITION:
            return self._check(s, base, CHECKING if s[base + PHASE] == RAISING else LATER_CHECKING)
        if number != s[base + WANT]:
            return self.refuse(s, node, base)
        s[base + FRESH] = s[call + COND]
        return self._claimed(s, node, base)

    def checked(self, s: bytearray, node: int, base: int) -> str:
        number, want, early = s[base + CALL + NUM], s[base + WANT], s[base + EARLY]
        self._found(s, base)
        s[base + ROUNDS] += 1
        if number == want:
            s[base + FRESH], s[base + EARLY] = s[base + CALL + COND], early
            return self._claimed(s, node, base)
        if generation(number) >= generation(want) and (self.no_own or tag(number) != s[base + TAG]):
            return self.refuse(s, node, base)
        if s[base + ROUNDS] > self.scope.rounds:
            return self.fail(s, node, base)
        s[base + WANT] = self._claim(s, base, number)
        self._send_raise(s, base)
        return ""

    def later_checked(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        number = s[call + NUM]
        s[base + FRESH] = s[call + COND]
        if number == s[base + WANT]:
            return self._claimed(s, node, base)
        if number != s[base + EPOCH]:
            return self.refuse(s, node, base)
        self.raise_on(s, base)
        return ""

    def kept(self, s: bytearray, node: int, base: int) -> str:
        status = s[base + CALL]
        if status == BAD_LEASE:
            return self.refuse(s, node, base)
        if status == BAD_CONDITION:
            return self._check(s, base, KEPT_CHECKING)
        self._hold(s, base, self.scope.terms[node])
        return self._go_on(s, node, base)

    def kept_checked(self, s: bytearray, node: int, base: int) -> str:
        if s[base + CALL + NUM] != s[base + EPOCH]:
            return self.refuse(s, node, base)
        s[base + FRESH], s[base + EARLY] = s[base + CALL + COND], 0
        return self._go_on(s, node, base)

    def renewed(self, s: bytearray, node: int, base: int) -> str:
        if s[base + CALL] != OK:
            return self.refuse(s, node, base)
        self._hold(s, base, s[base + HELD])
        s[base + LOW] = s[base + EPOCH]
        self._check(s, base, COMPARING)
        return ""

    def compared(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        number = s[call + NUM]
        if number not in (s[base + EPOCH], s[base + WANT]):
            return self.refuse(s, node, base)
        s[base + EPOCH], s[base + FRESH] = number, s[call + COND]
        self.raise_on(s, base)
        return ""

    def lost(self, s: bytearray, node: int, base: int) -> str:
        """The request of the present phase was given up, its end is unknown: it is sent again, as it was."""
        phase, call = s[base + PHASE], base + CALL
        kind, known, cond, ticks, aim = s[call + KIND], s[call] == OUT, s[call + COND], s[call + EXTRA], s[call + AIM]
        if not known:  # its answer is lost: of what was sent, only this is left
            cond = s[base + FRESH] if kind in (BREAK, ACQUIRE, RAISE_TO, RELEASE) else NOTHING
            ticks, aim = (s[base + UNTIL] if cond == DATED else 0), s[base + AIMED]
        if kind in (BREAK, ACQUIRE, RAISE_TO) and (cond == DATED or s[base + FRESH] == DATED) and not self.no_wait:
            s[base + EXPIRES] = DATE_TICKS
        if phase in (ACQUIRING, SHARING):
            s[base + TAKEN] = MAYBE
        elif phase == KEEPING:
            s[base + AGAIN] = not self.no_again
        num = 0
        if kind == RAISE_TO:
            num = s[base + WANT]
        elif kind == ACQUIRE:
            num = self.scope.terms[node] if phase == KEEPING else self._term(node)
            if phase == F_ACQUIRING:
                num = SHORT_TERM
        self.network.give_up(s, node, base, call)
        self.network.ask(s, call, kind, num=num, cond=cond, extra=ticks, aim=aim)
        return ""

    # -- requests --

    def _renew(self, s: bytearray, base: int) -> str:
        s[base + PHASE] = RENEWING
        self.network.ask(s, base + CALL, RENEW)
        return ""

    def _found(self, s: bytearray, base: int) -> None:
        """What the next requests of the attach rest on: the tag just seen, or after some looks a last moment."""
        if s[base + FRESH] == STALE or s[base + ROUNDS] >= self.scope.tag_looks:
            s[base + EARLY] = 0
        if s[base + ROUNDS] < self.scope.tag_looks:
            s[base + FRESH] = s[base + CALL + COND]
        else:
            s[base + FRESH], s[base + UNTIL] = DATED, DATE_TICKS

    def _conditional(self, s: bytearray, base: int, kind: int, num: int = 0, aim: int = 0) -> None:
        cond = s[base + FRESH]
        extra = s[base + UNTIL] if cond == DATED else 0
        self.network.ask(s, base + CALL, kind, num=num, cond=cond, extra=extra, aim=aim)

    def _break(self, s: bytearray, base: int, aim: int, free: bool, number: int) -> None:
        s[base + PHASE], s[base + AIMED] = BREAKING, aim
        if s[base + TAKEN] != MAYBE:
            s[base + FOUND] = number if free else NEVER
        self._conditional(s, base, BREAK, aim=aim)

    def _term(self, node: int) -> int:
        term = self.scope.terms[node]
        return SHORT_TERM if term == FOREVER and not self.for_ever_at_once else term

    def _acquire(self, s: bytearray, node: int, base: int, free: bool, number: int, aim: bool) -> None:
        s[base + PHASE], s[base + AIMED] = ACQUIRING, aim
        if s[base + TAKEN] != MAYBE:
            s[base + TAKEN] = SENT
            s[base + FOUND] = number if free else NEVER
        self._conditional(s, base, ACQUIRE, num=self._term(node), aim=aim)

    def _hold(self, s: bytearray, base: int, term: int) -> None:
        age = 0 if self.after_answer else s[base + CALL + AGE]
        s[base + HELD] = term
        s[base + LEFT] = term if term == FOREVER else max(0, term - age)

    def _send_raise(self, s: bytearray, base: int) -> None:
        s[base + PHASE] = RAISING
        self._conditional(s, base, RAISE_TO, num=s[base + WANT])

    def raise_on(self, s: bytearray, base: int) -> None:
        """Once more: no copy of anything that was sent so far can land then."""
        s[base + PHASE], s[base + WANT], s[base + EARLY] = LATER, s[base + EPOCH] + 1, 0
        self._conditional(s, base, RAISE_TO, num=s[base + WANT])

    def _claim(self, s: bytearray, base: int, number: int) -> int:
        counter = max(0, 2 - s[base + ROUNDS])  # an earlier try's is the higher one: so its late raise would win
        return number + 1 if self.by_one else numbered(generation(number) + 1, s[base + TAG], counter)

    def _anew(self, s: bytearray, node: int, base: int) -> str:
        s[base + ROUNDS] += 1
        if s[base + ROUNDS] > self.scope.rounds or s[base + AGAIN]:  # lost while its term was set: given up
            return self.fail(s, node, base)
        if s[base + LOW] == NEVER:
            return self._check(s, base, LOOKING)
        return self._renew(s, base)  # it lapsed once more before all was certain

    def _claimed(self, s: bytearray, node: int, base: int) -> str:
        s[base + EPOCH] = s[base + WANT]
        if s[base + PHASE] in (LATER, LATER_CHECKING):
            s[base + AGAIN] = 0
        return self._go_on(s, node, base)

    def _go_on(self, s: bytearray, node: int, base: int) -> str:
        """What is still to be done before the attach is acknowledged."""
        call = base + CALL
        if s[base + EXPIRES] != NEVER:
            s[base + PHASE] = WAITING
            self.network.free(s, call)
        elif s[base + HELD] != self.scope.terms[node] and not s[base + SEEN]:
            s[base + PHASE] = KEEPING
            self.network.ask(s, call, ACQUIRE, cond=s[base + FRESH], num=self.scope.terms[node])
        elif s[base + AGAIN]:
            self.raise_on(s, base)
        elif not s[base + LEFT] and not self.no_certainty:
            return self._renew(s, base)
        else:
            return self.serve(s, node, base, sign=self.scope.sign)
        return ""

    def waited(self, s: bytearray, node: int, base: int) -> None:
        """The last moment of its own requests is over: one more raise, and none can land."""
        s[base + EXPIRES] = NEVER
        self.raise_on(s, base)

    def serve(self, s: bytearray, node: int, base: int, *, sign: bool = False) -> str:
        """The attach is acknowledged, or a new worker goes on: the disk is used from here on."""
        first, epoch = not s[base + SERVED], s[base + EPOCH]
        self.network.free(s, base + CALL)
        if sign:  # nobody waits for it but what is written (writes.py)
            self.network.ask(s, base + SIGN, METADATA, cond=s[base + FRESH])
        if not s[base + EARLY] and not self.map_early:  # what was read does not count
            self.network.free(s, base + LIST)
            s[base + LOADED] = s[base + MAP] = 0
        s[base + PHASE], s[base + SEEN], s[base + TRIED], s[base + SERVED] = LIVE, epoch, epoch, 1
        for at in (WANT, FOUND, FORCE, ROUNDS, FRESH, TAKEN, AGAIN, SIGNED, AIMED, UNTIL, EARLY):
            s[base + at] = 0
        s[base + LOW] = s[base + EXPIRES] = NEVER
        if not first:
            return ""
        if epoch > s[OWNED] or self.by_one:
            s[OWNER], s[OWNED] = node, epoch
        held = s[LEASE] == LEASED and s[HOLDER] == s[base + ID] and s[NUMBER] == epoch
        if not held and not s[base + EXCUSE] & FORCED:
            return "P6 an attach is acknowledged though the disk is not held"
        return ""
