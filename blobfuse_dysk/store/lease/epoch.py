"""What the sequence number of a disk says: which life of it, whose, and how often its holder raised it.

Theory. The number has 63 bits and can only grow here (`max`). From the top:

    generation   grows by one with each claim: each attach, and each new worker of an attachment
    tag          drawn by each attachment, kept by all of its workers, and written into state.json as part of the epoch
    counter      raised by one to end doubts about writes; its start is drawn, too

So a number says whether it was raised by this attachment. That is what a new worker looks at before it goes on, since a
lease that can be renewed says less: somebody may have had the disk under the same id, which the user chose, or a late
copy of the request that once took the lease may have taken it again. The tag is another one than that of the number
found, so an attachment and the one after it never have the same; beyond that, one chance in a million.

Counting up from the largest counter goes on in the next generation, under the same tag. Numbers that other software set
have some tag, too, most likely not ours.
"""

from __future__ import annotations

from random import Random

from blobfuse_dysk.errors import Kind, StoreError

__all__ = ["claim_number", "draw_tag", "generation", "next_number", "tag"]

TAG_BITS = 20
COUNTER_BITS = 20
GENERATION_BITS = 63 - TAG_BITS - COUNTER_BITS
GENERATIONS = 1 << GENERATION_BITS
SPARE_GENERATIONS = 1 << 10  # that a new attachment must find left
TAGS = 1 << TAG_BITS
COUNTERS = 1 << COUNTER_BITS
FIRST_COUNTERS = COUNTERS >> 2  # where a claim starts: three quarters are left for raises
RESET = (
    "set it to 0 while the disk is attached nowhere (Set Blob Properties, x-ms-sequence-number-action: update, "
    "x-ms-blob-sequence-number: 0), then attach it"
)


def generation(number: int) -> int:
    """How many claims there were, this one included."""
    return number >> (TAG_BITS + COUNTER_BITS)


def tag(number: int) -> int:
    """Whose number it is."""
    return number >> COUNTER_BITS & (TAGS - 1)


def draw_tag(found: int, random: Random) -> int:
    """A tag for a new attachment of a disk whose number was `found`. StoreError(REJECTED) if that leaves no room.

    An attachment needs more than one generation: each of its workers takes one, and so do many raises.
    """
    if GENERATIONS - generation(found) <= SPARE_GENERATIONS:
        raise _full(found)
    return (tag(found) + random.randrange(1, TAGS)) % TAGS


def claim_number(found: int, own_tag: int, random: Random) -> int:
    """The number to raise to when `found` is the disk's. StoreError(REJECTED) if there is none."""
    following = generation(found) + 1
    if following >= GENERATIONS - 1:  # the last one is for a counter that carries
        raise _full(found)
    return (following * TAGS + own_tag) * COUNTERS + random.randrange(1, FIRST_COUNTERS)


def _full(found: int) -> StoreError:
    return StoreError(
        f"the blob's sequence number is {found}, and too little room is left up to 2^63, which is the end",
        Kind.REJECTED,
        remedy=RESET,
    )


def next_number(number: int) -> int:
    """The number that comes after this one, of the same attachment."""
    if (number + 1) % COUNTERS:
        return number + 1
    return ((generation(number) + 1) * TAGS + tag(number)) * COUNTERS
