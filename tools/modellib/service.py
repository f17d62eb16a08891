"""The service: one blob, its lease, its sequence number, its conditions.

Sources: the tables of outcomes in https://learn.microsoft.com/rest/api/storageservices/lease-blob ; that If-Match and
If-Unmodified-Since are looked at by lease operations, too; that every modification gives another entity tag, also a
`max` that raises nothing, and that lease operations give none.

Each request is done or refused in one step. What it also notes down, for the properties, is who was disturbed by whom.
"""

from __future__ import annotations

from tools.modellib.layout import (
    ACKED,
    ACQUIRE,
    ALLOCATED,
    AVAILABLE,
    BAD_CONDITION,
    BAD_LEASE,
    BAD_NUMBER,
    BREAK,
    BROKEN,
    CALL,
    CLEAR_PAGES,
    COND,
    CONTENT,
    CURRENT,
    DATED,
    ENDED,
    ENDS,
    EXCUSE,
    EXPIRED,
    EXTRA,
    FORCED,
    FOREVER,
    FRESH,
    HOLDER,
    ID,
    LAPSED,
    LEASE,
    LEASED,
    LIST_PAGES,
    LIVE,
    LOOK,
    METADATA,
    NOTHING,
    NUMBER,
    OK,
    OUTSIDER,
    OVERTAKEN,
    OWNED,
    OWNER,
    PHASE,
    PUT,
    RAISE_TO,
    RELEASE,
    RENEW,
    SIGN,
    SLOT,
    STALE,
    TERM,
    UNTIL,
    VERSION,
    Request,
    node_base,
)
from tools.modellib.scope import Scope

__all__ = ["Answer", "Service"]

Answer = tuple[int, int, int, int]  # status, number, entity tag, id of the lease that is held


class Service:
    """Does requests to a state that is being made (a bytearray)."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.bases = [node_base(i) for i in range(scope.nodes)]
        self.late_at = node_base(scope.nodes)
        self.late_end = self.late_at + scope.late * SLOT
        wrong = scope.wrong
        self.ignored = {
            kind
            for name, kinds in (
                ("acquire-unconditional", (ACQUIRE,)),
                ("break-unconditional", (BREAK,)),
                ("release-unconditional", (RELEASE,)),
                ("raise-unconditional", (RAISE_TO,)),
            )
            if name in wrong
            for kind in kinds
        }
        self.no_epoch = "no-epoch" in wrong

    def serve(self, s: bytearray, request: Request) -> tuple[Answer, str]:
        """Do or refuse a request; returns the answer and the violation it is, or ""."""
        kind, node, lease_id, num, cond, extra, aim = request
        if cond == STALE and kind not in self.ignored:
            return (BAD_CONDITION, s[NUMBER], STALE, 0), ""
        if kind == LOOK:
            return (OK, s[NUMBER], CURRENT, s[HOLDER] if s[LEASE] == LEASED else 0), ""
        if kind == LIST_PAGES:
            return (OK, s[ALLOCATED], NOTHING, 0), ""
        if kind in (ACQUIRE, BREAK, RENEW, RELEASE):
            status, violation = self._lease(s, request)
            return (status, s[NUMBER], cond, 0), violation
        if not (s[LEASE] == LEASED and s[HOLDER] == lease_id):
            return (BAD_LEASE, s[NUMBER], STALE, 0), ""
        violation = ""
        if kind == RAISE_TO:
            if num > s[NUMBER]:
                s[NUMBER] = num
            if s[self.bases[node] + PHASE] != LIVE:
                for i, base in enumerate(self.bases):  # a claim
                    if i != node:
                        s[base + EXCUSE] |= FORCED if s[base + ID] == lease_id else LAPSED
        elif kind != METADATA:
            if num != s[NUMBER] and not self.no_epoch:
                return (BAD_NUMBER, s[NUMBER], STALE, 0), ""
            nothing = kind == CLEAR_PAGES and not s[ALLOCATED] >> aim & 1  # zeros over zeros
            if s[OWNER] != node:
                violation = "P3 a write lands after another attach was acknowledged"
            elif extra < s[ACKED + aim] and not nothing:
                violation = "P1 an older write lands over a newer one that was acknowledged"
            s[CONTENT + aim] = max(extra, s[CONTENT + aim]) if nothing else extra
            if kind == PUT:
                s[ALLOCATED] |= 1 << aim
            else:
                s[ALLOCATED] &= ~(1 << aim)
        self.modified(s)
        return (OK, s[NUMBER], CURRENT, 1), violation

    def _lease(self, s: bytearray, request: Request) -> tuple[int, str]:
        kind, node, lease_id, term, cond, _, aim = request
        state, violation = s[LEASE], ""
        if kind == ACQUIRE:
            if state == LEASED and s[HOLDER] != lease_id:
                return BAD_LEASE, ""
            if state != LEASED and aim and cond in (CURRENT, DATED):
                for i, base in enumerate(self.bases):
                    if i != node:
                        s[base + EXCUSE] |= LAPSED
            if term == FOREVER and s[self.bases[node] + PHASE] == ENDED:
                violation = "P4 a lease without end is left to nobody"
            s[LEASE], s[HOLDER], s[TERM], s[ENDS] = LEASED, lease_id, term, term
        elif kind == BREAK:
            if state == AVAILABLE:
                return BAD_LEASE, ""
            if cond in (CURRENT, DATED):
                for i, base in enumerate(self.bases):
                    if i != node and s[base + ID] == s[HOLDER] and (aim == s[HOLDER]):
                        s[base + EXCUSE] |= FORCED
            s[LEASE], s[ENDS] = BROKEN, 0
        elif kind == RENEW:
            if state in (AVAILABLE, BROKEN) or s[HOLDER] != lease_id:
                return BAD_LEASE, ""
            s[LEASE], s[ENDS] = LEASED, s[TERM]
        else:
            if state == AVAILABLE or s[HOLDER] != lease_id:
                return BAD_LEASE, ""
            s[LEASE], s[HOLDER], s[TERM], s[ENDS] = AVAILABLE, 0, 0, 0
        return OK, violation

    def outsider(self, s: bytearray, what: str) -> None:
        """Somebody who knows nothing of the protocol."""
        for base in self.bases:
            s[base + EXCUSE] |= LAPSED | FORCED
        if what == "break":
            s[LEASE], s[ENDS] = BROKEN, 0
            return
        if what != "copy-with-id":
            s[LEASE], s[HOLDER], s[TERM], s[ENDS] = AVAILABLE, 0, 0, 0
        s[VERSION] += 1
        s[CONTENT] = s[ACKED] = s[VERSION]
        s[ALLOCATED] |= 1
        s[OWNER], s[OWNED] = OUTSIDER, s[NUMBER]
        if what != "write":
            s[NUMBER] = s[OWNED] = 0
        self.modified(s)

    def modified(self, s: bytearray) -> None:
        """The blob has another entity tag, and was changed now."""
        for base in self.bases:
            if s[base + FRESH] and (s[base + FRESH] != DATED or not s[base + UNTIL]):
                s[base + FRESH] = STALE
            at = base + CALL
            if s[at + COND] and (s[at + COND] != DATED or not s[at + EXTRA]):
                s[at + COND] = STALE
            if s[base + SIGN + COND]:
                s[base + SIGN + COND] = STALE
        for at in range(self.late_at, self.late_end, SLOT):
            if s[at] and s[at + 4] and (s[at + 4] != DATED or not s[at + 5]):
                s[at + 4] = STALE

    def recovered(self, s: bytearray) -> None:
        """A holder has its lease for certain again: what others sent before should not be able to harm it."""
        for base in self.bases:
            if s[base + FRESH] == CURRENT:
                s[base + FRESH] = OVERTAKEN
            for call in (CALL, SIGN):
                if s[base + call + COND] == CURRENT:
                    s[base + call + COND] = OVERTAKEN
        for at in range(self.late_at, self.late_end, SLOT):
            if s[at] and s[at + 4] == CURRENT:
                s[at + 4] = OVERTAKEN

    def tick(self, s: bytearray) -> None:
        """Time passes at the service."""
        if s[LEASE] == LEASED and s[TERM] != FOREVER:
            s[ENDS] -= 1
            if not s[ENDS]:
                s[LEASE] = EXPIRED
        for at in range(self.late_at, self.late_end, SLOT):
            if s[at + 4] == DATED and s[at + 5]:
                s[at + 5] -= 1
