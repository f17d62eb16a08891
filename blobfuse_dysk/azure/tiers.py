"""Tiers of page blobs in Premium accounts: which there are, what fits into each, and refusals in plain words.

A blob without one has the smallest that its size fits into. A higher one has more operations and bytes a second, and
costs more; it cannot be lowered again.
Source: https://learn.microsoft.com/rest/api/storageservices/set-blob-tier,
https://learn.microsoft.com/azure/storage/blobs/storage-blob-pageblob-overview
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blobfuse_dysk.disk import format_size
from blobfuse_dysk.errors import DyskError, UsageError
from blobfuse_dysk.keyvalue import suggest

__all__ = ["REFUSALS", "TIERS", "check_tier"]

_GIB = 1 << 30
TIERS: Mapping[str, int] = {
    "P4": 32 * _GIB,
    "P6": 64 * _GIB,
    "P10": 128 * _GIB,
    "P15": 256 * _GIB,
    "P20": 512 * _GIB,
    "P30": 1024 * _GIB,
    "P40": 2048 * _GIB,
    "P50": 4096 * _GIB,
    "P60": 8192 * _GIB,
    "P70": 16384 * _GIB,
    "P80": 32767 * _GIB,
}
"""Name -> bytes that a blob of it has at most, smallest first."""

_NO_TIERS = (
    UsageError,
    "page blobs of account {account} have no tiers: only those of Premium accounts do",
    "leave the tier out, or use a Premium account of the kind for page blobs",
)
# As in explain.py: code -> what makes the error, message, remedy.
REFUSALS: Mapping[str, tuple[Callable[..., DyskError], str, str]] = {
    "AccessTierNotSupportedForBlobType": _NO_TIERS,
    "BlobAccessTierNotSupportedForAccountType": _NO_TIERS,
    "InvalidBlobTier": (UsageError, "account {account} does not have this tier", f"use one of {', '.join(TIERS)}"),
    "BlobTierInadequateForContentLength": (
        UsageError,
        "disk {disk} is larger than this tier allows",
        "use a higher tier",
    ),
    "CannotChangeToLowerTier": (
        UsageError,
        "disk {disk} has a higher tier, and a tier can only be raised",
        "for a lower one, copy the disk to a new one",
    ),
}


def check_tier(tier: str, blob_size: int = 0) -> str:
    """The tier as the service spells it; UsageError if there is none of this name, or the blob is larger than it."""
    name = tier.upper()
    if name not in TIERS:
        raise UsageError(f"there is no tier {tier!r}", remedy=suggest(name, TIERS) or f"use one of {', '.join(TIERS)}")
    if blob_size > TIERS[name]:
        enough = next(each for each, most in TIERS.items() if blob_size <= most)
        raise UsageError(
            f"tier {name} is for at most {format_size(TIERS[name])}, and the disk has {format_size(blob_size)}",
            remedy=f"use {enough} or a higher one, or leave the tier out",
        )
    return name
