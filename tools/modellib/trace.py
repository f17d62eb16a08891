"""A trace in plain sentences: what happens, and, where it matters, how things stand after it."""

from __future__ import annotations

from tools.modellib.layout import (
    ACQUIRE,
    BAD_CONDITION,
    BAD_LEASE,
    CLEAR_PAGES,
    DATA,
    EPOCH,
    FOREVER,
    HOLDER,
    KINDS,
    LEASE,
    NUMBER,
    OK,
    OUT,
    PAGE,
    PHASE,
    PHASES,
    PUT,
    RAISE_TO,
    STALE,
    USERS_ID,
    Request,
    generation,
    node_base,
    tag,
)
from tools.modellib.search import Found, Step

__all__ = ["number", "sentence", "told"]

STATES = ("available", "leased", "expired", "broken")
OUTCOMES = {OK: "done", BAD_LEASE: "refused, the lease", BAD_CONDITION: "refused, the blob was changed"}
OUTSIDERS = {
    "break": "somebody breaks the lease",
    "write": "somebody writes to the blob, without a lease",
    "copy": "somebody copies another blob over it; its number is 0",
    "copy-with-id": "somebody who knows the lease id copies another blob over it; its number is 0",
}
SIMPLE = {
    "begin": "{0} begins to attach",
    "kill": "{0}'s worker is killed; what it had sent stays on its way",
    "worker": "{0}'s next worker starts",
    "force-detach": "{0} is detached by force",
    "detach": "{0} has all flushed, and is detached",
    "waited": "{0} has outlasted the last moment of its own requests, and raises once more",
    "renew": "{0} sends a renewal",
    "raise": "{0} sends a raise",
    "list": "{0} asks for the list of pages",
    "fail": "{0}'s attach fails for a reason of its own",
}


def number(value: int) -> str:
    """A sequence number as generation.tag.counter."""
    return f"{generation(value)}.{tag(value)}.{value & 7}"


def told(found: Found, nodes: int) -> list[str]:
    """The lines of a trace in a scope of so many nodes: the violation, then one for each step."""
    lines, before = [found.violation], found.first
    for count, (step, after) in enumerate(found.trace, 1):
        lines.append(f"{count:3} {sentence(step, before, after, nodes)}")
        before = after
    return lines


def sentence(step: Step, before: bytes, after: bytes, nodes: int) -> str:
    """What happened, and what became of the node, of the lease and of the number."""
    return _what(step, before, after) + _changes(before, after, nodes)


def _node(node: object) -> str:
    return f"node {'ABC'[int(str(node))]}"


def _id(lease_id: int) -> str:
    return "the user's id" if lease_id == USERS_ID else f"{_node(lease_id - 1)}'s id"


def _what(step: Step, before: bytes, after: bytes) -> str:
    what = str(step[0])
    if what == "tick":
        return "time passes" if step[1] == -1 else f"time passes, but not for {_node(step[1])}, which is suspended"
    if what == "outsider":
        return OUTSIDERS[str(step[1])]
    if what == "late":
        request = step[1]
        assert isinstance(request, Request)
        return f"a late request of {_node(request.node)} reaches the service: {_request(request)}"
    if what == "adopt":
        return f"{_node(step[1])} attaches the disk of the dead attachment {_node(step[2])}"
    if what == "accept":
        return f"{_node(step[1])} accepts {'zeros' if step[3] else 'a write'} to page {step[2]}"
    if what in ("send", "overtake"):
        beside = ", beside the older one," if what == "overtake" else ""
        epoch = before[node_base(int(str(step[1]))) + EPOCH]
        return f"{_node(step[1])} sends page {step[2]}{beside} in epoch {number(epoch)}"
    if what == "zeros":
        return f"{_node(step[1])} answers zeros to page {step[2]} out of its map"
    if what in SIMPLE:
        return SIMPLE[what].format(_node(step[1]))
    return _call(what, step, before, after)


def _call(what: str, step: Step, before: bytes, after: bytes) -> str:
    node, call = int(str(step[1])), int(str(step[2]))
    at = node_base(node) + call
    kind = KINDS[before[at + 1]]
    if call >= DATA:
        kind += f" of page {(call - DATA) // PAGE}"
    if what in ("serve", "copy"):
        copy = "; a copy stays on its way" if what == "copy" else ""
        return f"the service gets {_node(node)}'s {kind}: {OUTCOMES.get(after[at], 'refused, the number')}{copy}"
    if what == "answer":
        return f"{_node(node)} gets the answer to its {kind}"
    still = "it may still arrive" if before[at] == OUT else "its answer is lost"
    return f"{_node(node)} gives its {kind} up; {still}"


def _request(request: Request) -> str:
    text = KINDS[request.kind]
    if request.kind == RAISE_TO:
        text += f" to {number(request.num)}"
    elif request.kind == ACQUIRE:
        text += f" under {_id(request.lease_id)}" + (" for ever" if request.num == FOREVER else "")
    elif request.kind in (PUT, CLEAR_PAGES):
        text += f" of page {request.aim} in epoch {number(request.num)}"
    return text + (" (its condition does not hold)" if request.cond == STALE else "")


def _changes(before: bytes, after: bytes, nodes: int) -> str:
    text = ""
    for node in range(nodes):
        base = node_base(node)
        if after[base + PHASE] == before[base + PHASE]:
            continue
        text += f"; {_node(node)}: {PHASES[after[base + PHASE]]}"
        if after[base + EPOCH] != before[base + EPOCH] and after[base + EPOCH]:
            text += f" in epoch {number(after[base + EPOCH])}"
    if after[NUMBER] != before[NUMBER]:
        text += f"; the number is {number(after[NUMBER])}"
    if (after[LEASE], after[HOLDER]) != (before[LEASE], before[HOLDER]):
        whose = f", {_id(after[HOLDER])}" if after[HOLDER] else ""
        text += f"; the lease is {STATES[after[LEASE]]}{whose}"
    return text
