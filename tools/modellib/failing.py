"""How an attach that fails ends: what it holds, or may come to hold, is released, unless it is somebody else's as well.

Its acquire that sets the term may still be on its way; one more acquire and raise make that void. If those are refused
(somebody else has the lease; within the time for all this it does not lapse), that much is not promised any more, and
the end counts as that of a killed one.
"""

from __future__ import annotations

from tools.modellib.layout import (
    ACQUIRE,
    ACQUIRING,
    AGAIN,
    BAD_CONDITION,
    CALL,
    COND,
    ENDED,
    EXCUSE,
    F_ACQUIRING,
    F_LOOKING,
    F_RAISING,
    F_RELEASING,
    FOUND,
    FRESH,
    ID,
    KEEPING,
    KEPT_CHECKING,
    KILLED,
    LIST,
    LOOK,
    MAYBE,
    NODE,
    NOTHING,
    NUM,
    OK,
    PHASE,
    RAISE_TO,
    RELEASE,
    SHARING,
    TAG,
    TAKEN,
    WANT,
    tag,
)
from tools.modellib.network import Network
from tools.modellib.scope import Scope

__all__ = ["SHORT_TERM", "Failing"]

SHORT_TERM = 2  # what an infinite lease is first taken for


class Failing:
    """The phases of a failure."""

    def __init__(self, scope: Scope, network: Network) -> None:
        self.scope, self.network = scope, network
        self.no_raise_of_failed = "no-raise-of-failed" in scope.wrong
        self.releases_all = "failure-releases-all" in scope.wrong

    def fail(self, s: bytearray, node: int, base: int) -> str:
        """The attach fails; what may be ours of the lease is given back."""
        phase = s[base + PHASE]
        if phase in (KEEPING, KEPT_CHECKING):
            s[base + AGAIN] = 1
        elif phase in (ACQUIRING, SHARING):
            s[base + TAKEN] = MAYBE
        self.network.give_up(s, node, base, base + CALL)
        self.network.free(s, base + LIST)
        if s[base + TAKEN] != MAYBE:
            self.end(s, base)
        elif self.releases_all or not (self.scope.shared_id or (s[base + AGAIN] and not self.no_raise_of_failed)):
            self._give_back(s, base, NOTHING)
        else:
            self._check(s, base, F_LOOKING)
        return ""

    def failing_looked(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        number, fresh = s[call + NUM], s[call + COND]
        ours = tag(number) == s[base + TAG]
        s[base + FRESH], s[base + WANT] = fresh, number + 1
        if not (ours or not self.scope.shared_id or number == s[base + FOUND]):
            self.end(s, base)
        elif ours and s[base + AGAIN] and not self.no_raise_of_failed:  # its own late acquire could still land
            s[base + PHASE] = F_ACQUIRING
            self.network.ask(s, call, ACQUIRE, num=SHORT_TERM, cond=fresh)
        else:
            self._give_back(s, base, fresh)
        return ""

    def failing_acquired(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        if s[call] == BAD_CONDITION:
            return self._check(s, base, F_LOOKING)
        if s[call] == OK:
            s[base + PHASE] = F_RAISING
            self.network.ask(s, call, RAISE_TO, num=s[base + WANT], cond=s[base + FRESH])
        else:
            self._give_back(s, base, s[base + FRESH])
        return ""

    def failing_raised(self, s: bytearray, node: int, base: int) -> str:
        call = base + CALL
        if s[call] == BAD_CONDITION:
            return self._check(s, base, F_LOOKING)
        if s[call] == OK:
            s[base + FRESH], s[base + AGAIN] = s[call + COND], 0
        self._give_back(s, base, s[base + FRESH])
        return ""

    def failing_released(self, s: bytearray, node: int, base: int) -> str:
        if s[base + CALL] == BAD_CONDITION:
            return self._check(s, base, F_LOOKING)
        given_up = s[base + AGAIN] and not self.no_raise_of_failed
        self.end(s, base, KILLED if given_up else ENDED)
        return ""

    def _give_back(self, s: bytearray, base: int, cond: int) -> None:
        s[base + PHASE], s[base + FRESH] = F_RELEASING, cond
        self.network.ask(s, base + CALL, RELEASE, cond=cond)

    def refuse(self, s: bytearray, node: int, base: int) -> str:
        """Another attachment has the disk: the attach fails."""
        excuse = s[base + EXCUSE]
        self.fail(s, node, base)
        return "" if excuse else "P4 an attach is refused though nobody else did anything"

    def end(self, s: bytearray, base: int, phase: int = ENDED) -> None:
        """Nothing is left of the attachment but its tag."""
        keep = s[base + TAG], s[base + ID]
        s[base : base + NODE] = bytes(NODE)
        s[base + PHASE], s[base + TAG], s[base + ID] = phase, keep[0], keep[1]

    def _check(self, s: bytearray, base: int, phase: int) -> str:
        s[base + PHASE] = phase
        self.network.ask(s, base + CALL, LOOK)
        return ""
