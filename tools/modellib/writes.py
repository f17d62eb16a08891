"""What a live node does with pages: accepts, sends in its epoch, concludes from the answer; and its map of pages."""

from __future__ import annotations

from tools.modellib.layout import (
    ACKED,
    ALLOCATED,
    BAD_LEASE,
    BAD_NUMBER,
    CLEAR,
    CLEAR_PAGES,
    CONTENT,
    DATA,
    DUE,
    EPOCH,
    EXCUSE,
    EXTRA,
    KIND,
    LEFT,
    LOADED,
    MAP,
    NUM,
    OK,
    OWNER,
    PAGE,
    PUT,
    RING,
    SIGN,
    TRIED,
    VERSION,
)
from tools.modellib.live import Live
from tools.modellib.network import Network
from tools.modellib.scope import Scope

__all__ = ["Writes"]


class Writes:
    """The data of a node: one newest version of each page in the ring, at most one request of a page under way."""

    def __init__(self, scope: Scope, network: Network, live: Live) -> None:
        self.scope, self.network, self.live = scope, network, live
        wrong = scope.wrong
        self.no_gate = "no-gate" in wrong
        self.no_order = "no-order" in wrong
        self.freed_early = "freed-early" in wrong

    def accept(self, s: bytearray, page_at: int, zeros: int) -> None:
        s[VERSION] += 1
        s[page_at + RING], s[page_at + CLEAR] = s[VERSION], zeros

    def is_open(self, s: bytes, base: int) -> bool:
        """Whether a modifying request may leave now."""
        return bool(self.no_gate or (not s[base + DUE] and s[base + LEFT] and not s[base + SIGN]))

    def free_in_map(self, s: bytes, base: int, page: int) -> bool:
        """Whether zeros written to this page need no request."""
        return bool(self.scope.sparse and s[base + LOADED] and not s[base + MAP] >> page & 1)

    def answer_zeros(self, s: bytearray, node: int, base: int, page: int) -> str:
        at = base + DATA + page * PAGE
        violation = ""
        if s[OWNER] == node and not s[base + EXCUSE]:
            if s[ALLOCATED] >> page & 1:
                violation = "P5 zeros are answered out of the map while the page is allocated"
            s[CONTENT + page] = s[ACKED + page] = s[at + RING]
        s[at : at + PAGE] = bytes(PAGE)
        return violation

    def send(self, s: bytearray, base: int, page: int) -> None:
        at = base + DATA + page * PAGE
        clear = s[at + CLEAR]
        if not clear:
            s[base + MAP] |= 1 << page
        elif self.freed_early:
            s[base + MAP] &= ~(1 << page)
        kind = CLEAR_PAGES if clear else PUT
        self.network.ask(s, at + 2, kind, num=s[base + EPOCH], extra=s[at + RING], aim=page)

    def overtake(self, s: bytearray, node: int, base: int, page: int) -> None:
        """Wrong: a newer write leaves beside the older one of the same page."""
        self.network.give_up(s, node, base, base + DATA + page * PAGE + 2)
        self.send(s, base, page)

    def lost(self, s: bytearray, node: int, base: int, page: int) -> None:
        call = base + DATA + page * PAGE + 2
        if s[call + NUM] >= s[base + EPOCH]:
            s[base + DUE] = 1
        self.network.give_up(s, node, base, call)

    def answered(self, s: bytearray, node: int, base: int, page: int) -> str:
        at = base + DATA + page * PAGE
        call = at + 2
        status, kind, epoch, version = s[call], s[call + KIND], s[call + NUM], s[call + EXTRA]
        self.network.free(s, call)
        if status == BAD_LEASE or (status == BAD_NUMBER and epoch >= s[base + TRIED]):
            self.live.doubt(s, base)
            return ""
        if status != OK:
            return ""
        if s[at + RING] == version:
            s[at + RING] = s[at + CLEAR] = 0
        if kind == CLEAR_PAGES:
            s[base + MAP] &= ~(1 << page)
        if version > s[ACKED + page]:
            s[ACKED + page] = version
        return "P2 a write is acknowledged, and the page has an older one" if s[CONTENT + page] < version else ""

    def idle(self, s: bytes, base: int) -> bool:
        """Whether all is flushed."""
        return not any(s[base + DATA + p * PAGE] or s[base + DATA + p * PAGE + 2] for p in range(self.scope.pages))
