"""Clones of disks: in the same account the service copies (Copy Blob), to another one it is told which pages to fetch.

A clone is a new disk; one that exists is never touched. What is cloned does not change meanwhile: a disk that somebody
has attached, and one that goes to another account, is cloned from a snapshot made for it, which is deleted afterwards.
So it is as a power cut at that moment would have left it, or with a clean file system (disks/snapshot.py).

Until it is complete a clone has a mark (azure/marks.py), and nobody attaches it. `clone` with the same words goes on
with one that was left. What each step may do when it is repeated, or carried out late, is in clonesteps.py.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import quote

from blobfuse_dysk.azure.copysource import CopySource
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.azure.diskclient import DiskClient
from blobfuse_dysk.azure.marks import CloneMark, found_in, incomplete, is_unfinished
from blobfuse_dysk.azure.properties import BlobProperties
from blobfuse_dysk.azure.tiers import check_tier
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks import clonesteps
from blobfuse_dysk.disks.asking import REQUEST_S, again, read_footer, run
from blobfuse_dysk.disks.cloneplan import Plan, check_names, check_resumed, plan
from blobfuse_dysk.disks.clonesteps import Progress
from blobfuse_dysk.disks.pagecopy import PageCopy, bounded, missing_in
from blobfuse_dysk.disks.ranges import blob_ranges
from blobfuse_dysk.disks.snapshot import create_snapshot
from blobfuse_dysk.errors import (
    DyskError,
    FailedCopyError,
    NotFoundError,
    ServiceError,
    StoreError,
    TransportError,
    UsageError,
)
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store.open import check_blob
from blobfuse_dysk.vhd import FOOTER_SIZE, VhdFooter

__all__ = ["Clone", "Progress", "abort_clone", "clone", "clone_state"]

log = logging.getLogger(__name__)
T = TypeVar("T")
_AZURITE = "Azurite"
_DELETE = "delete a disk with dyskctl delete"
_TRIES, _PAUSE_S = 4, 0.5  # of making the snapshot
_MADE_FOR = "dysk_made_for"
"""Name in the metadata of a snapshot that was made for a clone: of which disk."""


@dataclass(frozen=True, slots=True)
class Clone:
    """A clone. size: of the device; blob_size: of the blob, in bytes. source: what was copied, with its snapshot.

    complete: whether it can be attached now; if not, the service is copying still. temporary: whether the snapshot was
    made for the clone.
    """

    disk: DiskAddress
    source: str
    size: int
    blob_size: int
    complete: bool
    temporary: bool


def clone(
    source: DiskAddress,
    target: DiskAddress,
    source_options: AttachOptions,
    options: AttachOptions,
    *,
    size: int | None = None,
    metadata: Mapping[str, str] | None = None,
    tier: str | None = None,
    wait: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Clone:
    """Make `target` a clone of a disk or of a snapshot, or go on with an unfinished one of the same. Raises DyskError.

    size: of the clone's device in bytes, at least the source's, or None for the same; a file system on it grows when it
    is mounted with grow. metadata: of the clone, beside what others have written on the source. wait: until it is
    complete; else only until the service copies, which it does by itself if both are in one account. Interrupted
    (KeyboardInterrupt) meanwhile, nothing is left of a clone in the same account; one in another account stays as far
    as it is. progress: called now and then.
    """
    check_names(source, target)
    job = _Job(source, target, source_options, options, progress or _nobody)
    try:
        found = job.at_target(clonesteps.look)
        if found is None:
            job.begin(size, dict(metadata or {}), tier, wait=wait)
        else:
            job.take_up(found, size)
        try:
            complete = job.copy(wait=wait)
        except NotFoundError as error:
            raise job.without_source(error) from error
        if complete:
            job.complete()
        return job.result(complete)
    except (FailedCopyError, KeyboardInterrupt):
        if (job.by_service or job.at_target(clonesteps.look) is None) and not job.undo():
            log.warning("%s stays: it was completed or replaced before it could be given up", target)
        raise


def clone_state(target: DiskAddress, options: AttachOptions) -> Progress | None:
    """How far an unfinished clone is; None for a disk that is complete. Raises DyskError, as if it is not there."""
    address, credential = resolve.resolve(target, options)

    async def ask() -> BlobProperties:
        async with DiskClient(address, credential) as client:
            return await again(lambda: client.properties(timeout_s=REQUEST_S), "looking at the clone")

    found = run(address, credential, ask)
    if not is_unfinished(found.metadata, found.copy):
        return None
    if found.copy is not None:
        return Progress(found.copy.done or 0, found.copy.total)
    return Progress(sum(length for _, length, _ in blob_ranges(address, credential, 0, found.size)), None)


def abort_clone(target: DiskAddress, options: AttachOptions, *, source_options: AttachOptions | None = None) -> None:
    """Give an unfinished clone up: end the copy, delete what there is, and the snapshot that was made for it.

    source_options: how to reach the source, if it is of another account. Raises DyskError; UsageError for a disk that
    is no unfinished clone, or none any more: it was not touched.
    """
    job = _Job(target, target, options, options, _nobody)
    found = job.at_target(clonesteps.look)
    if found is None:
        raise NotFoundError(f"disk {target} does not exist", missing="disk", remedy="there is nothing to give up")
    mark = found_in(found.metadata)
    if mark is None or not is_unfinished(found.metadata, found.copy):
        raise UsageError(f"{target} is no unfinished clone", remedy=_DELETE)
    origin = DiskAddress.parse(mark.source)
    if origin.account == target.account:
        origin = replace(target, container=origin.container, blob=origin.blob, snapshot=origin.snapshot)
    try:
        job = _Job(origin, target, source_options or options, options, _nobody)
    except DyskError as error:
        if mark.temporary:
            log.warning("%s, which was made for the clone, may stay: %s", mark.source, error)
        job.mark = mark
    else:
        job.take_up(found, None)
    if not job.undo():
        raise UsageError(
            f"{target} is no unfinished clone any more: it was completed or replaced before it could be given up",
            remedy=_DELETE,
        )


class _Job:
    """One clone, step by step. Each step runs an event loop of its own; between them nothing is held."""

    def __init__(
        self,
        source: DiskAddress,
        target: DiskAddress,
        source_options: AttachOptions,
        options: AttachOptions,
        progress: Callable[[Progress], None],
    ) -> None:
        self.mark: CloneMark | None = None
        self._temporary = False  # whether the snapshot that is copied was made for the clone
        self._named = source
        self._source_options = source_options
        self._progress = progress
        self._source, self._source_credential = resolve.resolve(source, source_options)
        self._target, self._credential = resolve.resolve(target, options)
        self._target.refuse_secondary("")
        self.by_service = (self._source.account, self._source.endpoint) == (self._target.account, self._target.endpoint)
        """Whether Copy Blob copies: that of Azurite does not, see begin."""

    def at_target(self, work: Callable[[DiskClient], Awaitable[T]], *, silent: bool = False) -> T:
        """Do it with a client of the target. silent: it shows how far it is."""

        async def opened() -> T:
            async with DiskClient(self._target, self._credential) as client:
                return await work(client)

        return run(self._target, self._credential, opened, needs="rw", silent=silent)

    def begin(self, size: int | None, metadata: Mapping[str, str], tier: str | None, *, wait: bool) -> None:
        """Make the clone: with the service's copy under way, or empty."""
        found, hidden = self._look_at_source()
        self._distrust(found)
        wanted = plan(self._source, found.size, hidden, size, found.metadata, metadata)
        tier = check_tier(tier, wanted.mark.size) if tier is not None else None
        if self._source.snapshot is None and (not self.by_service or found.lease_state in ("leased", "breaking")):
            self._source, self._temporary = replace(self._source, snapshot=self._take_snapshot()), True
            found, hidden = self._look_at_source()
            wanted = plan(self._source, found.size, hidden, size, found.metadata, metadata)
        self.mark = mark = replace(wanted.mark, temporary=self._temporary)
        ours = not self.by_service or wait or self._temporary or wanted.grows
        marks = mark.to_metadata() if ours else mark.origin()
        try:
            self._make(Plan(mark, {**wanted.metadata, **marks}), found.etag, tier)
        except DyskError as error:
            if not (isinstance(error, StoreError) and error.unknown):
                self._drop_snapshot()
            raise

    def _take_snapshot(self) -> str:
        """A snapshot of the source, made for the clone; returns its time."""
        made_for = {_MADE_FOR: quote(self._target.key, safe="/")}
        for left in reversed(range(_TRIES)):
            try:
                return create_snapshot(
                    replace(self._named, snapshot=None), self._source_options, metadata=made_for
                ).time
            except (ServiceError, StoreError, TransportError) as error:
                if not left or not _may_pass(error):
                    raise
            time.sleep(_PAUSE_S)
        raise AssertionError("the last attempt either succeeds or fails")

    def _make(self, wanted: Plan, source_etag: str, tier: str | None) -> None:
        async def work(client: DiskClient) -> None:
            if self.by_service:
                source = self._copy_source()

                async def send() -> None:
                    headers = await source.headers()
                    await client.copy_from(
                        headers, wanted.metadata, tier=tier, source_etag=source_etag, timeout_s=REQUEST_S
                    )
            else:

                async def send() -> None:
                    await client.create(wanted.mark.size, wanted.metadata, tier=tier, timeout_s=REQUEST_S)

            await clonesteps.make(client, wanted.mark, send, self._source)

        self.at_target(work)

    def take_up(self, found: BlobProperties, size: int | None) -> None:
        """Go on with what is there, if that is an unfinished clone of this source."""
        self._distrust(found)
        mark = found_in(found.metadata)
        if mark is None or not is_unfinished(found.metadata, found.copy):
            raise clonesteps.exists(self._target)
        check_resumed(mark, self._source, self._target, size)
        self.mark, self._temporary = mark, mark.temporary
        self._source = replace(self._source, snapshot=DiskAddress.parse(mark.source).snapshot)

    def _distrust(self, found: BlobProperties) -> None:
        """Copy Blob of Azurite 3.37 makes a page blob that shares its pages: what is written to one is in both."""
        if found.server.startswith(_AZURITE):
            self.by_service = False

    def copy(self, *, wait: bool) -> bool:
        """Have the content come; return whether it has."""
        mark = self._marked
        if mark.copied:
            return True
        if self.by_service:
            return self.at_target(
                lambda client: clonesteps.follow(client, mark, wait=wait, progress=self._progress), silent=True
            )
        epoch = self.at_target(lambda client: clonesteps.fence(client, mark))
        found, _ = self._look_at_source()
        wanted = bounded(
            (offset, length) for offset, length, _ in blob_ranges(self._source, self._source_credential, 0, found.size)
        )
        have = bounded(
            (offset, length) for offset, length, _ in blob_ranges(self._target, self._credential, 0, mark.size)
        )
        missing = missing_in(have, wanted)
        total = sum(length for _, length in wanted)
        done = total - sum(length for _, length in missing)
        self._progress(Progress(done, total))

        def copied(length: int) -> None:
            nonlocal done
            done += length
            self._progress(Progress(done, total))

        async def work(client: DiskClient) -> None:
            async with DiskClient(self._source, self._source_credential) as source:
                copying = PageCopy(client, source, self._copy_source(), found.etag, epoch, copied)
                await copying.copy(missing)

        self.at_target(work, silent=True)
        return True

    def without_source(self, error: NotFoundError) -> NotFoundError:
        """The error for a copy that found something missing: that can be the source, whoever it is told of."""
        try:
            self._look_at_source()
        except NotFoundError as gone:
            words = f"dyskctl clone --abort {shlex.quote(str(self._named))} {shlex.quote(str(self._target))}"
            return NotFoundError(
                f"{self._target} is an unfinished clone of {self._source}, which is gone",
                missing=gone.missing,
                remedy=f"give it up: {words}",
            )
        return error

    def complete(self) -> None:
        """The last steps. The snapshot goes before the mark, so that who finds the mark can still delete it."""
        mark = self._marked

        async def fill(client: DiskClient) -> None:
            epoch = None if self.by_service else await clonesteps.fence(client, mark)
            await clonesteps.fill(client, mark, epoch)

        found = self.at_target(clonesteps.look)
        if found is not None and incomplete(found.metadata) is None:
            return  # another process was faster, or nothing was to be done but the copy
        self.at_target(fill)
        if self._temporary:
            self.at_target(lambda client: clonesteps.settle(client, mark))
        self._drop_snapshot()
        self.at_target(lambda client: clonesteps.unmark(client, mark))

    def undo(self) -> bool:
        """Leave nothing of the clone, unless it is complete: whether nothing is left. Raises DyskError."""
        mark = self.mark
        gone = mark is None or self.at_target(lambda client: clonesteps.undo(client, mark))
        self._drop_snapshot()
        return gone

    def result(self, complete: bool) -> Clone:
        mark = self._marked
        size = mark.size - FOOTER_SIZE if mark.vhd else mark.size
        disk = replace(self._target, proxy=None)
        return Clone(disk, mark.source, size, mark.size, complete, mark.temporary)

    @property
    def _marked(self) -> CloneMark:
        assert self.mark is not None
        return self.mark

    def _look_at_source(self) -> tuple[BlobProperties, VhdFooter | None]:
        async def work() -> tuple[BlobProperties, VhdFooter | None]:
            async with DiskClient(self._source, self._source_credential) as client:
                found = await again(lambda: client.properties(timeout_s=REQUEST_S), "looking at the source")
                check_blob(found, self._source)
                return found, await read_footer(client, found.size)

        return run(self._source, self._source_credential, work)

    def _copy_source(self) -> CopySource:
        assert self._target.endpoint is not None
        return CopySource(self._source, self._source_credential, self._target.endpoint, own_account=self.by_service)

    def _drop_snapshot(self) -> None:
        """Delete the snapshot that was made for the clone. One that stays is a warning: it is in nobody's way."""
        if not self._temporary:
            return

        async def work() -> None:
            async with DiskClient(self._source, self._source_credential) as client:
                await again(lambda: client.delete(timeout_s=REQUEST_S), "deleting the snapshot", modifies=True)

        try:
            run(self._source, self._source_credential, work, needs="d")
        except NotFoundError:
            pass
        except DyskError as error:
            log.warning("%s, which was made for the clone, stays: %s", self._source, error)


def _may_pass(error: DyskError) -> bool:
    if isinstance(error, StoreError):
        return error.kind.retryable
    return isinstance(error, TransportError) or (isinstance(error, ServiceError) and error.status >= 500)


def _nobody(progress: Progress) -> None:
    """Nobody listens."""
