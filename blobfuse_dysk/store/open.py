"""Opens a disk: looks whether the blob can be one, takes it for this node, and keeps its stack open.

What goes wrong meanwhile is said in the words of who typed the command.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import trio

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.explain import explain, holder_in, leased_by, not_a_page_blob, not_copied
from blobfuse_dysk.azure.marks import found_in, incomplete, not_complete
from blobfuse_dysk.azure.wire import BlobProperties
from blobfuse_dysk.disk import MAX_SIZE, DiskAddress
from blobfuse_dysk.errors import Kind, StoreError, UsageError
from blobfuse_dysk.store.blobapi import BlobApi
from blobfuse_dysk.store.contract import PAGE, Store
from blobfuse_dysk.store.lease.attempts import Attempts
from blobfuse_dysk.store.lease.claim import Claim, Claiming
from blobfuse_dysk.store.lease.holdername import is_signed
from blobfuse_dysk.store.lease.release import take_back
from blobfuse_dysk.store.lease.requests import CALL_TIMEOUT_S, BlobLease
from blobfuse_dysk.store.lease.telling import tell
from blobfuse_dysk.store.lease.token import HoldState
from blobfuse_dysk.store.lease.trial import Trial
from blobfuse_dysk.store.parts.ring import Ring
from blobfuse_dysk.store.preview import Known, Preview
from blobfuse_dysk.store.stack import MAP_REGION, Stack, StackOptions

if TYPE_CHECKING:
    from blobfuse_dysk.azure.credential.credential import Credential

__all__ = ["ResumeState", "check_blob", "errors_for_people", "open_stack"]

CLOSE_S = 5.0
ATTACH_BUDGET_S = 8.0  # for each request of an attach: long enough for a hiccup, short enough for a person


@dataclass(frozen=True, slots=True)
class ResumeState:
    """What an earlier worker of the same attachment held: its lease and the last epoch it was known to use.

    lease_s: the term with which the lease was taken, None for infinite. It stays as it is, whatever is wanted now.
    """

    lease_id: str
    epoch: int
    lease_s: float | None


@asynccontextmanager
async def open_stack(
    address: DiskAddress,
    credential: Credential,
    options: StackOptions,
    *,
    resume: ResumeState | None = None,
    ring: Ring | None = None,
    on_state: Callable[[HoldState], None] = lambda state: None,
    client: BlobApi | None = None,
    random: Random | None = None,
) -> AsyncIterator[Stack]:
    """Attach to the blob: check it, take the lease, raise the epoch, and yield the stack until the block ends.

    The end of the block closes the stack but keeps the lease (a successor may resume it); call `release` first to
    give it up. ring: needed by cache=readwrite; what an earlier worker left in it is taken up. on_state is called
    (synchronously) at each change of `Stack.state`; the epoch may be another one then.
    Raises NotFoundError, CredentialError, LeasedError, UsageError, TransportError, ServiceError or StoreError (FENCED:
    a resumed attachment that lost its lease). client, random: for tests.
    """
    random = random or Random()
    read_only = options.read_only or address.snapshot is not None
    lease_s = resume.lease_s if resume else options.lease_s
    call_s = CALL_TIMEOUT_S if lease_s is None else min(CALL_TIMEOUT_S, lease_s / 6)
    stack: Stack | None = None
    closed = False

    def on_open_state(state: HoldState) -> None:
        if not closed:  # what is left of calls in the plain lane may end later
            on_state(state)

    if client is None:
        client = blob_client = BlobClient(address, credential, checksum=_wants_checksum(address, options))

        def lease_id() -> str | None:
            return stack.lease_in_use if stack else resume.lease_id if resume else None

        # It stays when this ends: the connections are closed then, so what is new is not taken until they are others.
        credential.trial = Trial(
            blob_client.signed_by, address, lease_id=lease_id, read_only=read_only, timeout_s=call_s
        )
    lease = BlobLease(client, timeout_s=call_s)
    try:
        with errors_for_people(address, credential, read_only=read_only):
            blob = await _look(lease, address, resume, options, random)
            held, known, tells = None, None, None
            if not read_only:
                preview = Preview(client, start=_last_region(blob.size), size=blob.size, timeout_s=call_s)
                held, known = await _claim(lease, blob, address, resume, options, random, preview)
                if resume is None or not is_signed(held.blob, options.node):  # it was not written, or not yet
                    tells = partial(tell, lease, held, options.node)
        async with _open_nursery() as nursery:
            stack = Stack(
                held.blob if held else blob,
                client,
                lease,
                held,
                nursery,
                options,
                snapshot=address.snapshot is not None,
                ring=ring if options.writes_back else None,
                on_state=on_open_state,
                random=random,
                known=known,
                first=tells,
            )
            if held is None and address.snapshot is None and blob.lease_state == "leased":
                stack.writer = leased_by(*holder_in(blob.metadata))
            try:
                yield stack
            finally:
                closed = True
                await _close(stack.store)
                nursery.cancel_scope.cancel()
    finally:
        await _close(client)


def check_blob(blob: BlobProperties, address: DiskAddress) -> None:
    """Raise UsageError unless the blob can be a disk, DyskError if a copy or clone to it has not been completed.

    Such a blob reads as zeros where nothing has come yet: a blank disk, to those who make file systems on them.
    """
    if blob.blob_type != "PageBlob":
        raise not_a_page_blob(address, blob.blob_type)
    source = incomplete(blob.metadata)
    if source is not None:
        raise not_complete(address, source)
    if blob.copy is not None and blob.copy.status != "success":
        mark = found_in(blob.metadata)
        raise not_copied(address, blob.copy, mark.source if mark else "")
    if blob.copy is not None and blob.copy.incremental and not address.snapshot:
        raise UsageError(
            f"{address} is the destination of an incremental copy, which cannot be read or written itself",
            remedy="attach one of its snapshots: az storage blob list --include s shows them; or copy that to a blob",
        )
    if blob.size <= 0 or blob.size % PAGE:
        raise UsageError(f"{address} has {blob.size} bytes", remedy="resize it to a multiple of 512 bytes")
    if blob.size > MAX_SIZE:
        raise UsageError(f"{address} has {blob.size} bytes, above the 8 TiB of a page blob")


@contextmanager
def errors_for_people(address: DiskAddress, credential: Credential | None, *, read_only: bool) -> Iterator[None]:
    """While attaching: what the service refused becomes a CredentialError, NotFoundError and so on, with a remedy."""
    try:
        yield
    except StoreError as error:
        if error.kind is Kind.FENCED:
            raise  # about this attachment's past, not about the request that brought it to light
        found = explain(error, address, credential, needs="r" if read_only else "rw")
        if found is error:
            raise
        raise found from error


async def _look(
    lease: BlobLease, address: DiskAddress, resume: ResumeState | None, options: StackOptions, random: Random
) -> BlobProperties:
    blob = await Attempts(random, _budget_s(resume, options))(lease.properties)
    check_blob(blob, address)
    return blob


async def _claim(
    lease: BlobLease,
    blob: BlobProperties,
    address: DiskAddress,
    resume: ResumeState | None,
    options: StackOptions,
    random: Random,
    preview: Preview,
) -> tuple[Claim, Known | None]:
    claiming = Claiming(
        lease,
        blob,
        address=address,
        lease_id=resume.lease_id if resume else options.lease_id,
        lease_s=resume.lease_s if resume else options.lease_s,
        budget_s=_budget_s(resume, options),
        random=random,
    )
    if resume is not None:
        return await claiming.resume(resume.epoch), None
    try:
        async with _open_nursery() as nursery:
            nursery.start_soon(preview.run)
            claim = await claiming.take(break_lease=options.break_lease)
            check_blob(claim.blob, address)  # it may be another one than the one looked at first
            known = await preview.known() if claim.rests_on == blob.etag else None
            nursery.cancel_scope.cancel()
        return claim, known
    except BaseException:
        await take_back(lease, claiming)
        raise


def _last_region(size: int) -> int:
    """Where the last of the regions begins by which Sparse loads its map."""
    return max(0, size - 1) // MAP_REGION * MAP_REGION


def _budget_s(resume: ResumeState | None, options: StackOptions) -> float | None:
    """A new attachment has somebody waiting at a terminal; a resumed one has I/O waiting, which has its own limit."""
    return ATTACH_BUDGET_S if resume is None else options.io_timeout_s


def _wants_checksum(address: DiskAddress, options: StackOptions) -> bool:
    """auto: where TLS does not check the content already, loopback aside."""
    if options.checksum == "auto":
        endpoint = address.endpoint
        return endpoint is not None and endpoint.scheme == "http" and not endpoint.is_loopback
    return options.checksum == "md5"


@asynccontextmanager
async def _open_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose lone exception comes out as itself, not in a group: callers match on DyskError."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from error.__cause__


async def _close(resource: Store | BlobApi) -> None:
    """Close, even while being cancelled, but not for ever."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
        await resource.aclose()
