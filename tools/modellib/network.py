"""Requests on their way. Sent by a node's `ask`; given up, they go on without anybody who waits for their answer.

A late request may arrive at any later moment or never; one that is never delivered just stays in the state, so "lost"
needs no step of its own while there is room for it. One whose conditions cannot hold any more is dropped at once.
"""

from __future__ import annotations

from tools.modellib.layout import (
    CLEAR_PAGES,
    ID,
    LEASE,
    LIST_PAGES,
    LOOK,
    NUMBER,
    OUT,
    PUT,
    SLOT,
    STALE,
    Request,
)
from tools.modellib.service import Service

__all__ = ["Network"]

READS = (LOOK, LIST_PAGES)


class Network:
    """The late requests of a state, and the moves of a request from node to service to late."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.at, self.end = service.late_at, service.late_end
        self.keep_stale = service.ignored
        self.numbers_return = bool(service.scope.outside) or service.no_epoch

    def ask(
        self, s: bytearray, call: int, kind: int, num: int = 0, cond: int = 0, extra: int = 0, aim: int = 0
    ) -> None:
        """A request leaves a node, which waits for its answer in `call`."""
        s[call : call + 7] = bytes((OUT, kind, num, cond, 0, extra, aim))

    def request(self, s: bytearray, node: int, base: int, call: int) -> Request:
        """The request that `call` of a node waits for."""
        return Request(s[call + 1], node, s[base + ID], s[call + 2], s[call + 3], s[call + 5], s[call + 6])

    def answered(self, s: bytearray, node: int, base: int, call: int) -> str:
        """The service does it; the answer waits in `call`. Returns the violation."""
        data = s[call + 1] in (PUT, CLEAR_PAGES)
        (status, number, cond, leased), violation = self.service.serve(s, self.request(s, node, base, call))
        s[call] = status
        if not data:  # of data, the node still has to know what it sent
            s[call + 2], s[call + 3], s[call + 5], s[call + 6] = number, cond, leased, s[LEASE]
        return violation

    def free(self, s: bytearray, call: int) -> None:
        s[call : call + 7] = bytes(7)

    def give_up(self, s: bytearray, node: int, base: int, call: int) -> None:
        """The node does not wait any more; the request, if it did not arrive yet, still may."""
        if s[call] == OUT and s[call + 1] not in READS:
            self.leave(s, self.request(s, node, base, call))
        self.free(s, call)

    def leave(self, s: bytearray, request: Request) -> None:
        """Put a request among the late ones, if there is room."""
        for at in range(self.at, self.end, SLOT):
            if not s[at]:
                kind, node, lease_id, num, cond, extra, aim = request
                s[at : at + SLOT] = bytes((kind, node, lease_id, num, cond, extra, aim, 0))
                return

    def late(self, s: bytes, at: int) -> Request:
        return Request(*s[at : at + 7])

    def tidy(self, s: bytearray) -> bytes:
        """Drop what can have no effect any more, sort the rest; returns the state made."""
        at, end = self.at, self.end
        if s[at]:
            left = []
            for k in range(at, end, SLOT):
                kind = s[k]
                if not kind or (s[k + 4] == STALE and kind not in self.keep_stale):
                    continue
                if kind in (PUT, CLEAR_PAGES) and s[k + 3] < s[NUMBER] and not self.numbers_return:
                    continue
                left.append(s[k : k + SLOT])
            left.sort()
            s[at:end] = b"".join(left).ljust(end - at, b"\0")
        return bytes(s)
