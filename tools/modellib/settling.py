"""P7: without further trouble, everything comes to an end or goes on.

From a state, one fair schedule: late requests arrive, the service does what is under way, nodes send and hear, and
time passes when there is nothing else. No new attach begins, nothing more is lost, killed or written. In the end each
node must be gone, fenced, or live with nothing left to do, within MOST steps.
"""

from __future__ import annotations

from tools.modellib.layout import (
    ABSENT,
    DUE,
    FAULTS,
    KILLS,
    LEFT,
    LIVE,
    OUTSIDE,
    OVER,
    PHASE,
    SUSPENDS,
)
from tools.modellib.world import Move, World

__all__ = ["Settling"]

MOST = 300  # steps
NOT_NOW = ("begin", "adopt", "force-detach", "detach", "accept", "overtake", "list")
FIRST = ("late", "serve", "answer", "waited", "worker", "zeros", "send", "raise")


class Settling:
    """Asks whether states of a scope settle."""

    def __init__(self, world: World) -> None:
        scope = world.scope
        self.world = World(scope._replace(raises=6, detach=False))

    def fails(self, state: bytes) -> str:
        """What does not settle from here, or ""."""
        s = bytearray(state)
        s[FAULTS] = s[KILLS] = s[OUTSIDE] = s[SUSPENDS] = 0
        state = bytes(s)
        for _ in range(MOST):
            if self._settled(state):
                return ""
            move = self._next(state)
            if move is None:
                return "P7 nothing is possible any more, and something is not done"
            state = move[1]
        return "P7 something goes on for ever"

    def _settled(self, s: bytes) -> bool:
        for base in self.world.bases:
            phase = s[base + PHASE]
            if phase == ABSENT or phase in OVER:
                continue
            if phase != LIVE or s[base + DUE] or not s[base + LEFT] or not self.world.writes.idle(s, base):
                return False
        return True

    def _next(self, s: bytes) -> Move | None:
        best: tuple[int, Move] | None = None
        for move in self.world.moves(s):
            what = str(move[0][0])
            if what in NOT_NOW:
                continue
            rank = FIRST.index(what) if what in FIRST else 20 if what == "renew" else 30
            if what == "renew" and s[self.world.bases[int(str(move[0][1]))] + LEFT]:
                rank = 25
            if best is None or rank < best[0]:
                best = rank, move
        return best[1] if best else None
