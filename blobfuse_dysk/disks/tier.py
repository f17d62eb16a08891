"""The tier of a disk in a Premium account: how fast it may be."""

from __future__ import annotations

from blobfuse_dysk.azure import management
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.azure.tiers import check_tier
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import AttachOptions

__all__ = ["set_tier"]


def set_tier(disk: DiskAddress, options: AttachOptions, tier: str) -> str:
    """Raise a disk's tier, P4 to P80; it may be attached, anywhere. Returns the tier as it is spelled.

    Raises DyskError: also for a lower one, a disk that is too large for it, an account without tiers.
    """
    if disk.snapshot:
        raise UsageError("a snapshot has no tier of its own", remedy="name the disk without ?snapshot=")
    name = check_tier(tier)
    address, credential = resolve.resolve(disk, options)
    address.refuse_secondary("")
    management.set_tier(address, credential, name)
    return name
