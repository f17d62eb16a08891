"""Whether a disk still is this attachment's, and the errors that say it is not: all of Kind.FENCED."""

from __future__ import annotations

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.lease import epoch

__all__ = ["check_own", "lost", "not_as_set", "taken"]


def check_own(found: int, held_epoch: int) -> None:
    """Raise FENCED unless the number found on the blob was raised by the attachment whose epoch was held_epoch."""
    if found < held_epoch:
        raise StoreError(
            f"the epoch is {found} after it had been {held_epoch}: this is not the blob that was attached",
            Kind.FENCED,
            remedy="the blob was replaced; detach it here and attach it anew",
        )
    if epoch.tag(found) != epoch.tag(held_epoch):
        raise lost(f"the epoch is {found}, of another attachment than {held_epoch}")


def lost(how: str) -> StoreError:
    """The error of an attachment whose disk somebody had in between."""
    return StoreError(
        f"the lease of this attachment is lost: {how}",
        Kind.FENCED,
        remedy="another node had the disk meanwhile; detach it here and attach it anew",
    )


def taken(how: str) -> StoreError:
    """The error of an attach that another one came before."""
    return StoreError(
        f"another attachment took the disk at the same time: {how}",
        Kind.FENCED,
        remedy="detach it there, or attach it again; if both use a lease id of the user's, let each have its own",
    )


def not_as_set(number: int, wanted: int) -> StoreError:
    """The error of an attach that set the number to `wanted` and finds `number`."""
    if number != wanted and float(number) == float(wanted):
        return StoreError(
            f"the service rounds sequence numbers above 2^53, as Azurite does: {number} where {wanted} was set",
            Kind.FENCED,
            remedy=epoch.RESET,
        )
    return taken(f"the epoch is {number} where {wanted} was set under our lease")
