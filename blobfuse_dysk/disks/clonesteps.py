"""The steps of a clone at its target, each of which may be done again: whoever finds a clone unfinished repeats them.

Theory. Between two steps this process may die, and an answer that does not come tells nothing of the request, which may
even be carried out much later: after the clone is complete, attached and written to. So each request is made such that
a copy of it that comes late is refused, or does what was done already:

- the clone is made only where nothing is (If-None-Match), with the mark of an unfinished clone on it from its first
  moment. A clone_id tells one's own from another's, if the answer was lost;
- pages are written only in the epoch that was in force when the clone was taken up, and the number is raised before the
  next step: what comes later is refused, also if a virtual machine has the disk, which raises nothing. So the footer of
  a VHD, of which the clone has two pages for a moment, is moved in an epoch of its own;
- resizing, taking off the mark, and deleting have the ETag of the look before as their condition.

The mark comes off last. Until then nobody attaches, resizes or snapshots the disk (store/open.py, check_blob).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import trio

from blobfuse_dysk.azure.diskclient import DiskClient
from blobfuse_dysk.azure.marks import CloneMark, found_in, is_unfinished, without_mark
from blobfuse_dysk.azure.properties import BlobProperties, Condition
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.asking import PATIENCE_S, REQUEST_S, again, read_footer
from blobfuse_dysk.disks.cloneplan import moved_footer
from blobfuse_dysk.errors import DyskError, FailedCopyError, Kind, LaterError, NotFoundError, ServiceError, StoreError
from blobfuse_dysk.vhd import FOOTER_SIZE, parse_footer

__all__ = [
    "Progress",
    "exists",
    "fence",
    "fill",
    "follow",
    "is_marked",
    "look",
    "make",
    "of_source",
    "settle",
    "undo",
    "unmark",
]

_T = TypeVar("_T")
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.05, 2.0  # between looks at a copy
_MOST_LOOKS = 20  # at a blob that changes under our hands
_THERE = frozenset(
    {
        "BlobAlreadyExists",
        "ConditionNotMet",
        "InvalidBlobType",
        "LeaseIdMissing",
        "PendingCopyOperation",
        "SnapshotsPresent",
        "TargetConditionNotMet",
        "UnauthorizedBlobOverwrite",
    }
)
"""How the service says that a blob which is to be made is there already."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes that were copied, and of how many. total: None where that is not known."""

    done: int
    total: int | None


async def look(client: DiskClient, budget_s: float | None = None) -> BlobProperties | None:
    """What is at the target; None if nothing is, or not even the container. budget_s: see again."""
    try:
        return await again(lambda: client.properties(timeout_s=REQUEST_S), "looking at the clone", budget_s=budget_s)
    except StoreError as error:
        if isinstance(error.__cause__, ServiceError) and error.__cause__.status == 404:
            return None
        raise


def exists(target: DiskAddress) -> DyskError:
    """The error for a target that is there already."""
    return DyskError(f"disk {target} exists already", remedy="choose another name as TARGET; it was not touched")


def is_marked(found: BlobProperties, mark: CloneMark) -> bool:
    """Whether this is our clone, and has its mark still."""
    own = found_in(found.metadata)
    return own is not None and own.clone_id == mark.clone_id


async def make(client: DiskClient, mark: CloneMark, send: Callable[[], Awaitable[None]], source: DiskAddress) -> None:
    """Make the clone by `send`, one request; with the container, if that is missing. Raises DyskError if it exists."""

    async def attempt() -> None:
        try:
            await send()
        except ServiceError as error:
            if error.code == "ContainerNotFound":
                await _make_container(client)
                await send()
            elif error.code in _THERE:
                found = await client.properties(timeout_s=REQUEST_S)
                if not is_marked(found, mark):
                    raise exists(client.address) from None
            elif refused := of_source(error, source, client.address):
                raise refused from None
            else:
                raise

    await again(attempt, "making the clone", modifies=True)


async def follow(client: DiskClient, mark: CloneMark, *, wait: bool, progress: Callable[[Progress], None]) -> bool:
    """Wait until the service has copied all; return False if it has not, and `wait` is not set.

    Raises FailedCopyError: what there is cannot be used.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        found = await look(client, PATIENCE_S)
        if found is None:
            raise LaterError(f"clone {client.address} is gone: somebody deleted it", remedy="clone it again")
        if not is_marked(found, mark):
            return True  # somebody else finished it
        copy = found.copy
        if copy is None and found.size == mark.size != mark.source_size:
            return True  # it grew already, which takes the copy's state off
        if copy is None:
            raise FailedCopyError(
                f"the service does not tell what became of the copy of {mark.source} to {client.address}",
                remedy="clone it again",
            )
        progress(Progress(copy.done or 0, copy.total))
        if copy.status == "success":
            if found.size not in (mark.source_size, mark.size):
                raise FailedCopyError(
                    f"the copy of {mark.source}, of {mark.source_size} bytes, came to {found.size} bytes",
                    remedy="clone it again",
                )
            return True
        if copy.status != "pending":
            why = f" ({copy.description})" if copy.description else ""
            raise FailedCopyError(
                f"the copy of {mark.source} to {client.address} was not completed, it is {copy.status}{why}",
                remedy="see that the source is there and does not change, then clone it again",
            )
        if not wait:
            return False
        await trio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _MOST_PAUSE_S)


async def fence(client: DiskClient, mark: CloneMark) -> int:
    """Begin a new epoch: nothing of an earlier one is carried out any more. Returns its number."""

    async def raise_number(found: BlobProperties, condition: Condition) -> int:
        number = (found.sequence_number or 0) + 1
        raised = await client.raise_sequence_number(number, lease_id=None, condition=condition, timeout_s=REQUEST_S)
        return raised.number

    for _ in range(_MOST_LOOKS):
        found = await _still(client, mark)
        number = await _as_seen(found, raise_number, "beginning an epoch of the clone")
        if number is not None:
            return number
    raise _changes(client)


async def fill(client: DiskClient, mark: CloneMark, epoch: int | None) -> None:
    """Make the clone as large as it is to be, and move a VHD's footer to its end.

    epoch: the one to write in; None: a new one, if anything is to be written.
    """

    async def grow(found: BlobProperties, condition: Condition) -> None:
        await client.resize(mark.size, lease_id=None, condition=condition, timeout_s=REQUEST_S)

    for _ in range(_MOST_LOOKS):
        found = await _still(client, mark)
        if found.size >= mark.size:
            break
        await _as_seen(found, grow, "growing the clone")
    else:
        raise _changes(client)
    if mark.vhd and mark.size != mark.source_size:
        await _move_footer(client, mark, await fence(client, mark) if epoch is None else epoch)
        await fence(client, mark)


async def _move_footer(client: DiskClient, mark: CloneMark, epoch: int) -> None:
    """The new one is written before the old one is cleared, so one is there at any moment."""
    old = mark.source_size - FOOTER_SIZE
    if await read_footer(client, mark.size) is None:
        page = await again(lambda: client.get_range(old, FOOTER_SIZE, timeout_s=REQUEST_S), "reading the VHD footer")
        hidden = parse_footer(page)
        if hidden is None:
            raise DyskError(f"clone {client.address} has no VHD footer where its source has one", remedy="clone again")
        data = moved_footer(hidden, mark.source_size, mark.size)
        await again(
            lambda: client.put_pages(mark.size - FOOTER_SIZE, data, lease_id=None, epoch=epoch, timeout_s=REQUEST_S),
            "writing the VHD footer",
            modifies=True,
        )
    await again(
        lambda: client.clear_pages(old, FOOTER_SIZE, lease_id=None, epoch=epoch, timeout_s=REQUEST_S),
        "clearing the old VHD footer",
        modifies=True,
    )


async def settle(client: DiskClient, mark: CloneMark) -> None:
    """Write on the clone that it needs its source no longer."""
    copied = replace(mark, copied=True).to_metadata()
    await _rewrite(client, mark, lambda found: {**without_mark(found), **copied}, until=copied)


async def unmark(client: DiskClient, mark: CloneMark) -> None:
    """Take the mark off: the clone is complete. One that has none any more is."""
    await _rewrite(client, mark, without_mark, until={})


async def _rewrite(
    client: DiskClient,
    mark: CloneMark,
    change: Callable[[Mapping[str, str]], dict[str, str]],
    *,
    until: Mapping[str, str],
) -> None:
    """Change the clone's metadata until `until` is in it, or the mark is gone."""

    async def write(found: BlobProperties, condition: Condition) -> None:
        await client.set_metadata(change(found.metadata), lease_id=None, condition=condition, timeout_s=REQUEST_S)

    for _ in range(_MOST_LOOKS):
        found = await look(client)
        if found is None or not is_marked(found, mark) or (until and until.items() <= found.metadata.items()):
            return
        await _as_seen(found, write, "writing how far the clone is")
    raise _changes(client)


async def _as_seen(
    found: BlobProperties, send: Callable[[BlobProperties, Condition], Awaitable[_T]], what: str
) -> _T | None:
    """Change the clone by a request that holds for it as it was seen; None if it is another one by then."""
    condition = Condition(if_match=found.etag)
    try:
        return await again(lambda: send(found, condition), what, modifies=True, conditional=True)
    except StoreError as error:
        if error.kind is not Kind.CHANGED:
            raise
        return None


async def undo(client: DiskClient, mark: CloneMark) -> bool:
    """End the copy and delete the clone, if it is ours and not complete; whether nothing is there then.

    False: what is there is complete by now, or another's, and was not touched.
    """
    for _ in range(_MOST_LOOKS):
        found = await look(client)
        if found is None:
            return True
        if not is_marked(found, mark) or not _may_delete(found):
            return False
        try:
            if found.copy is not None and found.copy.status == "pending":
                await client.abort_copy(found.copy.copy_id, timeout_s=REQUEST_S)
            else:
                await client.delete(condition=Condition(if_match=found.etag), timeout_s=REQUEST_S)
        except ServiceError as error:
            if error.code not in ("ConditionNotMet", "NoPendingCopyOperation", "CopyIdMismatch", "BlobNotFound"):
                raise
    raise _changes(client)


def _may_delete(found: BlobProperties) -> bool:
    """Not a clone without a mark, which is complete when the service has copied it."""
    return is_unfinished(found.metadata, found.copy)


def of_source(error: ServiceError, source: DiskAddress, target: DiskAddress) -> DyskError | None:
    """The error for a refusal that is about the source of a copy, which `explain` would take for the target's."""
    if error.code == "SourceConditionNotMet":
        return DyskError(
            f"{source} changed while it was to be cloned",
            remedy="clone a snapshot of it, or attach it here: a disk in use is cloned from a snapshot made for that",
        )
    if error.code in (
        "CannotVerifyCopySource",
        "CopySourceNotFound",
        "InvalidSourceBlobUrl",
        "NoAuthenticationInformation",
    ):
        refused = NotFoundError if error.status == 404 else DyskError
        return refused(
            f"account {target.account} cannot read {source}, to copy it ({error.code}, HTTP {error.status})",
            remedy="the source's credential must allow reading it, and its account's firewall must let the service in",
        )
    return None


async def _make_container(client: DiskClient) -> None:
    try:
        await client.create_container(timeout_s=REQUEST_S)
    except ServiceError as error:
        if error.code != "ContainerAlreadyExists":
            raise


async def _still(client: DiskClient, mark: CloneMark) -> BlobProperties:
    """The clone, with its mark. Raises LaterError if another process finished or deleted it."""
    found = await look(client)
    if found is None or not is_marked(found, mark):
        what = "deleted" if found is None else "finished"
        raise LaterError(f"clone {client.address} was {what} by somebody else meanwhile", remedy="look at it again")
    return found


def _changes(client: DiskClient) -> LaterError:
    return LaterError(f"clone {client.address} changes all the time", remedy="find out who else works on it")
