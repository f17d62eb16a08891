"""Where everything stands in a state: a state is `bytes`, so that it is small, hashable, and copied in one go.

    world     the service and what is counted: the constants LEASE .. ALLOCATED
    nodes     NODE bytes each, from node_base(i): an attachment, its worker, its requests under way
    late      requests whose sender no longer waits for them, SLOT bytes each, sorted, unused slots zero

A byte is also as large as a number gets, so a sequence number of the model has 3 bits of generation, 2 of tag and 3 of
counter. Entity tags have no value: all that counts is whether one is still the blob's, since none ever comes back.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "ABSENT",
    "ACKED",
    "ACQUIRE",
    "ACQUIRING",
    "AGAIN",
    "AGE",
    "AIM",
    "AIMED",
    "ALLOCATED",
    "ASKING",
    "AVAILABLE",
    "BAD_CONDITION",
    "BAD_LEASE",
    "BAD_NUMBER",
    "BREAK",
    "BREAKING",
    "BROKEN",
    "CALL",
    "CHECKING",
    "CLEAR",
    "CLEAR_PAGES",
    "COMPARING",
    "COND",
    "CONTENT",
    "CURRENT",
    "DATA",
    "DATED",
    "DEAD",
    "DOUBT",
    "DUE",
    "D_LOOKING",
    "EARLY",
    "ENDED",
    "ENDS",
    "EPOCH",
    "EXCUSE",
    "EXPIRED",
    "EXPIRES",
    "EXTRA",
    "FAULTS",
    "FENCED",
    "FORCE",
    "FORCED",
    "FOREVER",
    "FOUND",
    "FRESH",
    "F_ACQUIRING",
    "F_LOOKING",
    "F_RAISING",
    "F_RELEASING",
    "HELD",
    "HOLDER",
    "ID",
    "IDLE",
    "KEEPING",
    "KEPT_CHECKING",
    "KILLED",
    "KILLS",
    "KIND",
    "KINDS",
    "LAPSED",
    "LAPSES",
    "LATER",
    "LATER_CHECKING",
    "LEASE",
    "LEASED",
    "LEASE_SEEN",
    "LEFT",
    "LIST",
    "LIST_PAGES",
    "LIVE",
    "LOADED",
    "LOOK",
    "LOOKING",
    "LOW",
    "MAP",
    "MAYBE",
    "METADATA",
    "NEVER",
    "NOBODY",
    "NODE",
    "NODES_AT",
    "NONE",
    "NOTHING",
    "NUM",
    "NUMBER",
    "OK",
    "OUT",
    "OUTSIDE",
    "OUTSIDER",
    "OVER",
    "OVERTAKEN",
    "OWNED",
    "OWNER",
    "PAGE",
    "PAGES",
    "PHASE",
    "PHASES",
    "PUT",
    "RAISE",
    "RAISE_TO",
    "RAISING",
    "REFUSED",
    "RELEASE",
    "RELEASING",
    "RENEW",
    "RENEWING",
    "RING",
    "ROUNDS",
    "R_CHECKING",
    "R_LOOKING",
    "R_RAISING",
    "R_RENEWING",
    "SEEN",
    "SENT",
    "SERVED",
    "SHARING",
    "SIGN",
    "SIGNED",
    "SLOT",
    "STALE",
    "STATUS",
    "SUSPENDS",
    "TAG",
    "TAKEN",
    "TERM",
    "TRIED",
    "UNSIGNING",
    "UNTIL",
    "USERS_ID",
    "VERSION",
    "WAITING",
    "WANT",
    "Request",
    "generation",
    "node_base",
    "numbered",
    "tag",
]

# -- the world --
LEASE, HOLDER, TERM, ENDS, NUMBER, OWNER, OWNED, VERSION, FAULTS, KILLS, OUTSIDE, SUSPENDS = range(12)
CONTENT, ACKED, ALLOCATED = 12, 14, 16  # two pages each; ALLOCATED is a bit for each page
PAGES = 2
NODES_AT = 17

# -- a node --
(
    PHASE,
    ID,  # the lease id it uses
    HELD,  # the term of the lease it holds
    LEFT,  # ticks for which the lease is certain; 0: in doubt, or lapsed
    EPOCH,  # the number whose raise was acknowledged
    TRIED,  # the highest number asked for
    WANT,  # what the claim raises to
    FOUND,  # the number before the first acquire that may have landed; NEVER: the lease was not free then
    TAG,
    SEEN,  # the epoch in state.json
    FORCE,  # break_lease was given
    ROUNDS,
    FRESH,  # what is known of the entity tag of the last look: one of NOTHING, CURRENT, OVERTAKEN, STALE
    TAKEN,  # what became of the acquires: 0 none, SENT, REFUSED, MAYBE one landed or may have
    EXPIRES,  # ticks until nothing DATED of ours can land after a change any more; NEVER: there is none
    AGAIN,  # an acquire for ever has an unknown end
    SIGNED,
    DUE,  # a raise is due
    DOUBT,  # a doubt arose while a renewal was under way
    LOW,  # the epoch from before the renewal was sent
    EXCUSE,  # what others did to it: LAPSED, FORCED
    SERVED,  # the attach was acknowledged
    LOADED,
    MAP,
    AIMED,  # whose lease its break is for
    UNTIL,  # ticks until the last moment of a condition that is DATED
    LAPSES,  # a lapse ended while a raise was under way
    EARLY,  # the page list was asked for after a look whose tag the claim rests on, as far as is known
) = range(28)
# requests: claim or lease, raise of a live node, page list, name of the holder, data of each page
CALL, RAISE, LIST, SIGN, DATA = 28, 35, 42, 49, 56
RING, CLEAR = 0, 1  # of a page: the version in the ring, whether it is zeros; its request follows
PAGE = 9
NODE = DATA + PAGES * PAGE

# -- a request under way, or its answer --
STATUS, KIND, NUM, COND, AGE, EXTRA, AIM = range(7)
LEASE_SEEN = AIM  # in the answer to a look

# -- words --
AVAILABLE, LEASED, EXPIRED, BROKEN = range(4)
NEVER = FOREVER = 255
# of an entity tag; OVERTAKEN: still the blob's, but its holder has recovered since. DATED: no tag, but a last moment
NOTHING, CURRENT, OVERTAKEN, STALE, DATED = range(5)
IDLE, OUT, OK, BAD_LEASE, BAD_NUMBER, BAD_CONDITION = range(6)
LAPSED, FORCED = 1, 2
SENT, REFUSED, MAYBE = 1, 2, 3
NOBODY, OUTSIDER = 9, 8
USERS_ID = 9  # own ids are 1 + node

KINDS = (
    "none",
    "look",
    "acquire",
    "break",
    "renew",
    "release",
    "raise",
    "metadata",
    "put",
    "clear",
    "list",
)
NONE, LOOK, ACQUIRE, BREAK, RENEW, RELEASE, RAISE_TO, METADATA, PUT, CLEAR_PAGES, LIST_PAGES = range(11)

PHASES = (
    "absent",
    "looking",
    "breaking",
    "acquiring",
    "renewing-the-shared",
    "raising",
    "checking",
    "raising-once-more",
    "checking-that",
    "waiting",
    "setting-its-term",
    "checking-before-its-term",
    "renewing",
    "comparing",
    "asking-whose-it-is",
    "live",
    "dead",
    "resume-looking",
    "resume-renewing",
    "resume-raising",
    "resume-checking",
    "failing-looking",
    "failing-acquiring",
    "failing-raising",
    "failing-releasing",
    "detach-looking",
    "unsigning",
    "releasing",
    "ended",
    "killed",
    "fenced",
)
(
    ABSENT,
    LOOKING,
    BREAKING,
    ACQUIRING,
    SHARING,  # renews a lease under the user's id that there is already
    RAISING,
    CHECKING,  # looks whether its raise landed
    LATER,  # raises once more
    LATER_CHECKING,
    WAITING,  # for the expiry of its own break
    KEEPING,  # acquires for its own term, under its number
    KEPT_CHECKING,
    RENEWING,  # the lease was not certain any more
    COMPARING,
    ASKING,  # whose the lease is, to say so
    LIVE,
    DEAD,
    R_LOOKING,
    R_RENEWING,
    R_RAISING,
    R_CHECKING,
    F_LOOKING,
    F_ACQUIRING,  # and raises, so that its own late acquire that sets the term cannot land
    F_RAISING,
    F_RELEASING,
    D_LOOKING,
    UNSIGNING,
    RELEASING,
    ENDED,
    KILLED,
    FENCED,
) = range(31)
OVER = frozenset((ENDED, KILLED, FENCED))

SLOT = 8  # bytes of a late request


class Request(NamedTuple):
    """What travels to the service.

    num: number, or term. extra: version, or ticks until the last moment. aim: page, or whose lease a break is for.
    """

    kind: int
    node: int
    lease_id: int
    num: int
    cond: int
    extra: int
    aim: int


def node_base(node: int) -> int:
    """The place of a node's first byte."""
    return NODES_AT + node * NODE


def generation(number: int) -> int:
    return number >> 5


def tag(number: int) -> int:
    return number >> 3 & 3


def numbered(generation: int, tag: int, counter: int) -> int:
    return generation << 5 | tag << 3 | counter
