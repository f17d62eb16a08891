"""What a search covers: how many of everything, and what is done wrong on purpose."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Scope"]


class Scope(NamedTuple):
    """Bounds of a search. Terms are in ticks, FOREVER for an infinite lease; budgets are for the whole trace."""

    nodes: int = 2
    pages: int = 1
    versions: int = 1  # writes accepted
    faults: int = 1  # requests given up by their sender
    lossy: frozenset[str] = frozenset()  # kinds of requests that may be given up; empty: all
    late: int = 2  # requests on their way that nobody waits for any more
    kills: int = 0
    outside: int = 0
    outsiders: frozenset[str] = frozenset(("break", "write"))  # what they do: break, write, copy, copy-with-id
    suspends: int = 0
    terms: tuple[int, ...] = (2, 2, 2)
    time: bool = True
    shared_id: bool = False
    force: frozenset[int] = frozenset()  # nodes that attach with break_lease (and only so)
    tag_looks: int = 9  # looks of an attach after which the condition is the tag, then a last moment
    rounds: int = 2  # looks of an attach beyond the first
    tags: tuple[int, ...] = (1, 2, 3)
    raises: int = 1  # raises of a live worker
    counters: int = 8  # numbers of a generation before the carry
    sign: bool = False
    detach: bool = True
    failures: bool = False  # an attach may fail at any of its requests
    adopt: bool = False  # attach of the disk of a dead attachment
    clears: bool = False
    sparse: bool = False
    overwrite: bool = False  # a newer write is accepted while an older one of the page is not acknowledged
    attached: bool = False  # node 0 is attached at the start
    wrong: frozenset[str] = frozenset()  # sabotages
