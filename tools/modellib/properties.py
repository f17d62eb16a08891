"""What must hold in every state. What must hold of a step is said where the step is made, and begins with P, too.

P1  no older write lands over a newer one that was acknowledged
P2  a write that is acknowledged is in the page, or a newer one
P3  of two nodes that write in turns, the first writes nothing after the attach of the second was acknowledged; and a
    node believes in its lease no longer than the service
P4  nobody is fenced or refused, and no lease is left behind, by a node's own late messages or by a failed attempt
P5  what the map of pages calls free is not allocated
P6  an attach is acknowledged only while the disk is held
P7  everything comes to an end, or goes on (settling.py)
P8  one worker serves (holder.py)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.modellib.layout import (
    ALLOCATED,
    ENDS,
    EXCUSE,
    HOLDER,
    ID,
    LEASE,
    LEASED,
    LEFT,
    LIVE,
    LOADED,
    MAP,
    OWNER,
    PHASE,
)

if TYPE_CHECKING:
    from tools.modellib.world import World

__all__ = ["broken"]


def broken(world: World, s: bytes) -> str:
    """The property that does not hold in this state, or ""."""
    for node, base in enumerate(world.bases):
        if s[base + PHASE] != LIVE or s[base + EXCUSE]:
            continue
        left = s[base + LEFT]
        if left and not (s[LEASE] == LEASED and s[HOLDER] == s[base + ID] and s[ENDS] >= left):
            return "P3 a node believes in its lease for longer than the service"
        if s[base + LOADED] and s[OWNER] == node and s[ALLOCATED] & ~s[base + MAP] & 3:
            return "P5 a page is allocated that the map calls free"
    return ""
