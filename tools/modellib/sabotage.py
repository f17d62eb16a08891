"""Everything the protocol does for a reason, left out or done wrongly, one at a time: the model must find each.

Each has the smallest scope that shows it, the property it breaks, and the length of its shortest trace. A search that
finds it later, or not at all, shows that the model does not see any more what it was written for.
"""

from __future__ import annotations

from typing import NamedTuple

from tools.modellib.layout import (
    FOREVER,
)
from tools.modellib.scope import Scope

__all__ = ["SABOTAGES", "Sabotage"]


class Sabotage(NamedTuple):
    """means: what is wrong. breaks: the beginning of the violation's text. steps: of the shortest trace."""

    means: str
    breaks: str
    steps: int
    scope: Scope


def _kinds(*names: str) -> frozenset[str]:
    return frozenset(names)


ALONE = Scope(nodes=1, attached=True, time=False, detach=False)
TWO = Scope(nodes=2, attached=True, time=False, detach=False)
USER = TWO._replace(shared_id=True, versions=2)

SABOTAGES: dict[str, Sabotage] = {
    "no-epoch": Sabotage(
        "Put Page does not carry the sequence number",
        "P1",
        14,
        ALONE._replace(versions=2, lossy=_kinds("put")),
    ),
    "no-raise": Sabotage(
        "nothing is raised after a write with an unknown end",
        "P1",
        12,
        ALONE._replace(versions=2, lossy=_kinds("put")),
    ),
    "no-gate": Sabotage(
        "writes pass while a raise is due",
        "P",
        8,
        ALONE._replace(versions=2, lossy=_kinds("put"), overwrite=True),
    ),
    "no-order": Sabotage(
        "a newer write leaves while an older one of the page is under way",
        "P",
        7,
        ALONE._replace(versions=2, overwrite=True),
    ),
    "resume-without-raise": Sabotage(
        "a new worker writes in the epoch of the dead one",
        "P",
        13,
        ALONE._replace(versions=2, kills=1, faults=0, overwrite=True),
    ),
    "copies-of-acknowledged": Sabotage(
        "the network delivers a copy of an acknowledged write (the assumption that it does not)",
        "P1",
        9,
        ALONE._replace(versions=2, lossy=_kinds("put")),
    ),
    "number-before-lease": Sabotage(
        "the claim rests on a number read before the lease, which nothing proves: no conditions, and the next number",
        "P3",
        17,
        USER._replace(
            wrong=_kinds("raise-unconditional", "acquire-unconditional", "raise-by-one"), lossy=_kinds("put", "raise")
        ),
    ),
    "raise-by-one": Sabotage(
        "a claim raises to the next number, without generation and tag",
        "P3",
        17,
        USER._replace(lossy=_kinds("put", "raise")),
    ),
    "tag-ignored": Sabotage(
        "a new worker does not ask whether the number still has its tag",
        "P3",
        20,
        USER._replace(kills=1, faults=0, versions=1),
    ),
    "raise-unconditional": Sabotage(
        "a claim raises without If-Match, so a dead worker's can win over the living one's",
        "P4",
        15,
        ALONE._replace(kills=2, faults=0),
    ),
    "look-compares-with-newer": Sabotage(
        "the number looked at is compared with the epoch at that time, not from before the renewal",
        "P4",
        13,
        ALONE._replace(time=True, lossy=_kinds("put")),
    ),
    "no-look": Sabotage(
        "after a lapse or a doubt nobody looks at the number",
        "P3",
        13,
        ALONE._replace(faults=0, outside=1, outsiders=_kinds("copy-with-id"), versions=3),
    ),
    "break-unconditional": Sabotage(
        "a break is sent without a condition, so it may land on its own sender, or on a third",
        "P6",
        11,
        TWO._replace(force=frozenset((1,)), lossy=_kinds("break"), versions=0),
    ),
    "no-wait-for-last-moment": Sabotage(
        "a request with a last moment is not outlasted",
        "P4",
        14,
        TWO._replace(force=frozenset((1,)), lossy=_kinds("break"), versions=0, tag_looks=0, time=True, terms=(1, 1)),
    ),
    "acquire-unconditional": Sabotage(
        "an acquire is sent without If-Match, so that of a failed attempt takes a lease that lapsed for a moment",
        "P4",
        16,
        Scope(nodes=2, versions=0, faults=0, attached=True, detach=False, terms=(1, 1)),
    ),
    "acquire-though-leased": Sabotage(
        "a plain attach sends its acquire although the look showed a lease",
        "P4",
        9,
        Scope(nodes=2, versions=0, lossy=_kinds("acquire"), failures=True, detach=False, attached=True),
    ),
    "release-unconditional": Sabotage(
        "a release is sent without If-Match, so that of an earlier attachment ends a later one's lease",
        "P",
        13,
        TWO._replace(shared_id=True, versions=0, detach=True, lossy=_kinds("release")),
    ),
    "failure-releases-all": Sabotage(
        "a failed attach releases the lease under the user's id, whoever held it before",
        "P",
        5,
        TWO._replace(shared_id=True, versions=0, failures=True),
    ),
    "failure-releases-lapsed": Sabotage(
        "a failed attach releases the lease under the user's id that had only lapsed",
        "P4",
        11,
        TWO._replace(shared_id=True, versions=0, failures=True, time=True, terms=(1, 1)),
    ),
    "infinite-at-once": Sabotage(
        "an infinite lease is acquired for ever before the raise",
        "P4",
        7,
        Scope(nodes=1, versions=0, terms=(FOREVER,), failures=True, time=False),
    ),
    "no-raise-after-keeping": Sabotage(
        "an acquire for ever with an unknown end is not followed by a raise",
        "P4",
        16,
        Scope(nodes=1, versions=0, terms=(FOREVER,), time=False),
    ),
    "no-raise-of-failed": Sabotage(
        "a failing attach releases while its acquire for ever may be on its way",
        "P4",
        11,
        Scope(nodes=1, versions=0, terms=(FOREVER,), failures=True, time=False),
    ),
    "term-of-the-option": Sabotage(
        "who takes up a lease believes in the term it asked for, not in the one that is held",
        "P3",
        8,
        Scope(nodes=2, versions=0, faults=0, attached=True, kills=1, adopt=True, terms=(1, 2)),
    ),
    "no-certainty": Sabotage(
        "an attach is acknowledged without asking whether the lease is still certain",
        "P6",
        9,
        Scope(nodes=1, versions=0, faults=0),
    ),
    "own-late-raise-is-anothers": Sabotage(
        "an attach that finds a number of its own, but not the one it asked for last, takes it for another's",
        "P4",
        21,
        Scope(nodes=2, versions=0, attached=True, shared_id=True, time=False, lossy=_kinds("raise")),
    ),
    "acquire-of-the-shared": Sabotage(
        "a lease under the user's id that there is already is acquired, which changes the term its holder counts on",
        "P3",
        4,
        TWO._replace(shared_id=True, versions=0, faults=0, terms=(FOREVER, 2)),
    ),
    "no-raise-after-lapse": Sabotage(
        "after a lapse that ended well nothing is raised, so an acquire from then can land in the next lapse",
        "P4",
        14,
        Scope(nodes=2, versions=0, faults=0, attached=True, detach=False, terms=(1, 1)),
    ),
    "lapse-during-renewal": Sabotage(
        "a lapse that begins while a renewal is on its way goes unnoticed, so nothing is looked at, and nothing raised",
        "P4",
        13,
        Scope(nodes=2, versions=0, faults=0, attached=True, detach=False, terms=(2, 1)),
    ),
    "raise-from-before-the-lapse": Sabotage(
        "after a lapse that ended well, a raise that was sent before its end is taken for the one that is due",
        "P4",
        20,
        Scope(nodes=2, versions=1, faults=1, lossy=_kinds("put"), attached=True, detach=False, rounds=0, terms=(1, 1)),
    ),
    "detach-ignores-tag": Sabotage(
        "a detach releases the lease under the user's id although another attachment has the disk now",
        "P6",
        13,
        TWO._replace(shared_id=True, versions=0, faults=0, detach=True),
    ),
    "term-after-answer": Sabotage(
        "the lease's end is counted from the answer",
        "P3",
        8,
        Scope(nodes=1, versions=0, faults=0),
    ),
    "no-boottime-clock": Sabotage(
        "the lease's end is counted by a clock that stands still while the machine is suspended",
        "P3",
        1,
        Scope(nodes=1, versions=0, faults=0, suspends=1, attached=True),
    ),
    "map-early": Sabotage(
        "a map of pages read after the look is believed, though the claim does not rest on that look",
        "P5",
        18,
        TWO._replace(sparse=True, faults=0, force=frozenset((1,))),
    ),
    "freed-early": Sabotage(
        "the map calls a page free before its clear was acknowledged",
        "P5",
        9,
        ALONE._replace(sparse=True, clears=True, faults=0, versions=2),
    ),
}
