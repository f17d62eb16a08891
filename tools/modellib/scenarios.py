"""The scopes in which the protocol, as it is, is searched: small ones for each run of the tests, deep ones by hand."""

from __future__ import annotations

from typing import NamedTuple

from tools.modellib.layout import (
    FOREVER,
)
from tools.modellib.scope import Scope

__all__ = ["SCENARIOS", "Scenario"]


class Scenario(NamedTuple):
    """what: in words. small: searched by the tests. deep: searched by tools/model, up to its --max-states."""

    what: str
    small: Scope
    deep: Scope


def _kinds(*names: str) -> frozenset[str]:
    return frozenset(names)


SECOND = frozenset((1,))
WRITES = _kinds("put", "clear", "raise")

SCENARIOS: dict[str, Scenario] = {
    "alone": Scenario(
        "one node: lost requests, lapses, writes of one page one after the other",
        Scope(nodes=1, versions=1, lossy=_kinds("put", "renew", "raise")),
        Scope(nodes=1, versions=2, faults=2, overwrite=True, sign=True, attached=True),
    ),
    "workers": Scenario(
        "one node, whose worker is killed and replaced",
        Scope(nodes=1, attached=True, versions=2, kills=2, overwrite=True, time=False, detach=False),
        Scope(nodes=1, attached=True, versions=2, kills=2, faults=2, overwrite=True, sign=True),
    ),
    "plain": Scenario(
        "two nodes attach, without force",
        Scope(nodes=2, versions=1, time=False, failures=True),
        Scope(nodes=2, versions=1, faults=1, failures=True),
    ),
    "lapse": Scenario(
        "a node lapses while another attaches",
        Scope(nodes=2, versions=0, faults=0, attached=True, detach=False, terms=(1, 1)),
        Scope(nodes=2, versions=1, faults=1, attached=True),
    ),
    "break": Scenario(
        "a second node breaks the lease of the first",
        Scope(nodes=2, versions=2, attached=True, time=False, detach=False, force=SECOND, lossy=_kinds("break", "put")),
        Scope(nodes=2, versions=2, faults=2, attached=True, force=SECOND, failures=True, sign=True),
    ),
    "break-busy": Scenario(
        "a second node breaks the lease of the first, which writes all the time: conditions with a last moment",
        Scope(
            nodes=2,
            versions=1,
            attached=True,
            detach=False,
            force=SECOND,
            tag_looks=0,
            lossy=_kinds("break"),
            rounds=0,
            terms=(1, 1),
        ),
        Scope(nodes=2, versions=2, faults=1, attached=True, force=SECOND, tag_looks=1, failures=True),
    ),
    "break-third": Scenario(
        "a break meant for the first node is late, and the disk is a third one's",
        Scope(nodes=3, versions=0, attached=True, time=False, force=SECOND, lossy=_kinds("break"), failures=True),
        Scope(nodes=3, versions=1, faults=2, attached=True, time=False, force=SECOND, failures=True),
    ),
    "users-id": Scenario(
        "two nodes use one lease id of the user's",
        Scope(nodes=2, versions=2, attached=True, time=False, shared_id=True, failures=True),
        Scope(nodes=2, versions=2, faults=1, attached=True, shared_id=True, failures=True),
    ),
    "users-id-workers": Scenario(
        "two nodes use one lease id of the user's, and a worker is killed and replaced",
        Scope(nodes=2, versions=2, faults=0, kills=1, attached=True, time=False, shared_id=True, detach=False),
        Scope(nodes=3, versions=2, faults=1, kills=1, attached=True, time=False, shared_id=True),
    ),
    "infinite": Scenario(
        "attaches with a lease without end",
        Scope(nodes=1, versions=0, faults=2, terms=(FOREVER,), failures=True),
        Scope(nodes=2, versions=1, faults=2, terms=(FOREVER, FOREVER), failures=True, time=False),
    ),
    "users-id-terms": Scenario(
        "two nodes use one lease id of the user's, with different terms",
        Scope(nodes=2, versions=0, attached=True, time=False, shared_id=True, failures=True, terms=(FOREVER, 2)),
        Scope(nodes=2, versions=1, attached=True, shared_id=True, failures=True, terms=(2, 1)),
    ),
    "adopt": Scenario(
        "the disk of a dead attachment is attached again, with another term",
        Scope(nodes=2, versions=0, faults=0, kills=1, attached=True, adopt=True, terms=(1, 2)),
        Scope(nodes=2, versions=1, faults=1, kills=1, attached=True, adopt=True, terms=(1, 2)),
    ),
    "outsiders": Scenario(
        "somebody outside of the protocol breaks the lease, writes, or copies over the blob",
        Scope(nodes=1, versions=2, faults=0, attached=True, outside=1, outsiders=_kinds("break", "write", "copy")),
        Scope(nodes=2, versions=3, faults=1, attached=True, outside=1, outsiders=_kinds("break", "write", "copy")),
    ),
    "pages": Scenario(
        "the map of pages, while another node attaches by force",
        Scope(
            nodes=2,
            versions=2,
            faults=0,
            attached=True,
            time=False,
            detach=False,
            force=SECOND,
            sparse=True,
            clears=True,
        ),
        Scope(
            nodes=2, versions=2, faults=1, attached=True, time=False, force=SECOND, sparse=True, clears=True, pages=2
        ),
    ),
    "beside": Scenario(
        "an attach reads the map of pages beside its claim, and tells its name beside what it serves",
        Scope(nodes=2, versions=2, lossy=_kinds("put", "raise", "metadata"), time=False, sparse=True, sign=True),
        Scope(nodes=2, versions=2, faults=2, attached=True, force=SECOND, sparse=True, sign=True, failures=True),
    ),
    "suspended": Scenario(
        "a machine is suspended for longer than the lease's term",
        Scope(nodes=1, versions=1, suspends=2, lossy=_kinds("put"), attached=True, detach=False),
        Scope(nodes=2, versions=1, faults=1, suspends=2, attached=True),
    ),
    "carry": Scenario(
        "the counter of an epoch runs over into the next generation",
        Scope(nodes=1, versions=2, lossy=_kinds("put"), attached=True, time=False, counters=3, kills=1),
        Scope(nodes=1, versions=3, faults=3, attached=True, time=False, counters=3, kills=1),
    ),
}
