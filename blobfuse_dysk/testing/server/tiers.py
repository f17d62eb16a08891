"""Tiers of premium page blobs: what each allows, which one a blob has, and Set Blob Tier.

In a premium account each page blob has a tier: the one that was set, or the smallest that its size fits into. It
decides how many operations and bytes a second the blob gets (throttle.py). A tier is only raised.
Source: https://learn.microsoft.com/rest/api/storageservices/set-blob-tier,
https://learn.microsoft.com/azure/storage/blobs/storage-blob-pageblob-overview
"""

from __future__ import annotations

from .answers import Answer, Refusal, http_date
from .config import Config
from .context import Context
from .leases import parse_lease_id
from .request import Request
from .state import Blob
from .throttle import TIERS

__all__ = ["rates_of", "set_blob_tier", "set_tier_of_new", "tier_headers"]

_GIB = 1 << 30
# Largest blob, in bytes, of each tier, smallest tier first.
_SIZES = {
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
_ORDER = list(_SIZES)


def set_blob_tier(context: Context) -> Answer:
    """Give a blob a higher tier. Neither its ETag nor its time of change is another one afterwards."""
    request = context.request
    target = request.target
    blob = context.state.blob(target.account, target.container, target.blob, target.query.get("snapshot"))
    blob.lease.check_read(parse_lease_id(request.header(b"x-ms-lease-id")), context.now)
    _set(context.config, blob, request.required(b"x-ms-access-tier"), context.now)
    context.state.save(context.now)
    return Answer(200)


def set_tier_of_new(config: Config, request: Request, blob: Blob, now: float) -> None:
    """x-ms-access-tier of Put Blob and Copy Blob, if the request has it."""
    tier = request.header(b"x-ms-access-tier")
    if tier is not None:
        _set(config, blob, tier, now)


def tier_headers(config: Config, blob: Blob) -> dict[str, str]:
    """What Get Blob Properties says of it; nothing outside of a premium account."""
    tier = _tier_of(config, blob)
    if tier is None:
        return {}
    if not blob.tier:
        return {"x-ms-access-tier": tier, "x-ms-access-tier-inferred": "true"}
    return {"x-ms-access-tier": tier, "x-ms-access-tier-change-time": http_date(blob.tier_changed)}


def rates_of(config: Config, blob: Blob) -> tuple[float, float] | None:
    """(operations, bytes) per second that the blob's tier allows; None if it has none."""
    tier = _tier_of(config, blob)
    return TIERS[tier] if tier is not None else None


def _tier_of(config: Config, blob: Blob) -> str | None:
    if not _is_premium(config) or blob.pages is None:
        return None
    return blob.tier or next(name for name, size in _SIZES.items() if blob.size <= size)


def _set(config: Config, blob: Blob, tier: str, now: float) -> None:
    if blob.pages is None or not _is_premium(config):
        raise Refusal("BlobAccessTierNotSupportedForAccountType")
    if tier not in _SIZES:
        raise Refusal("InvalidHeaderValue")
    if blob.size > _SIZES[tier]:
        raise Refusal("BlobTierInadequateForContentLength")
    if blob.tier and _ORDER.index(tier) < _ORDER.index(blob.tier):
        raise Refusal("CannotChangeToLowerTier")
    blob.tier, blob.tier_changed = tier, now


def _is_premium(config: Config) -> bool:
    return config.sku.startswith("Premium_")
