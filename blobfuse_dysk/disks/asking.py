"""Asks the service about a disk, from code that is not asynchronous: one call, one event loop, errors for people.

A request that failed in a way that may pass is sent again for a while; who sends one that changes something says what
makes its repetition harmless.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

import trio

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.explain import explain
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError, ServiceError, TransportError
from blobfuse_dysk.store.lease.attempts import Attempts
from blobfuse_dysk.store.serviceerrors import to_store_error
from blobfuse_dysk.vhd import FOOTER_SIZE, VhdFooter, parse_footer

__all__ = ["PATIENCE_S", "REQUEST_S", "again", "read_footer", "run"]

T = TypeVar("T")
REQUEST_S = 30.0  # for one attempt
BUDGET_S = 60.0  # for all attempts of a request
PATIENCE_S = (
    900.0  # the same in the middle of a copy that takes long anyway: an outage ends, a throttled service goes on
)


def run(address: DiskAddress, credential: Credential, work: Callable[[], Awaitable[T]], *, needs: str = "r") -> T:
    """Run it in an event loop of its own. What it raises is told in the words of `explain`; needs: see there."""
    try:
        return trio.run(work)
    except (DyskError, BaseExceptionGroup) as failure:
        error = _first(failure)
    told = explain(error, address, credential, needs=needs) if isinstance(error, DyskError) else error
    if told is error:
        raise error  # with the cause that it has
    raise told from error


def _first(failure: BaseException) -> BaseException:
    """Of a group that a nursery raised, what is to be told: that somebody interrupted, else what failed first."""
    if not isinstance(failure, BaseExceptionGroup):
        return failure
    found = [_first(each) for each in failure.exceptions]
    return next((each for each in found if isinstance(each, KeyboardInterrupt)), found[0])


async def again(
    call: Callable[[], Awaitable[T]],
    what: str,
    *,
    modifies: bool = False,
    conditional: bool = False,
    budget_s: float | None = None,
) -> T:
    """Make a request, and again while its failure may pass. what: for the error, a StoreError.

    modifies, conditional: see to_store_error. budget_s: for all attempts; None: BUDGET_S. The error's `unknown` is that
    of the last attempt.
    """

    async def attempt() -> T:
        try:
            return await call()
        except (ServiceError, TransportError) as error:
            raise to_store_error(error, what, modifies=modifies, conditional=conditional) from error

    return await Attempts(Random(), BUDGET_S if budget_s is None else budget_s)(attempt)


async def read_footer(client: BlobClient, blob_size: int) -> VhdFooter | None:
    """The VHD footer that hides the blob's last page from the device; None if the device is the whole blob.

    As an attach with vhd=auto decides it.
    """
    at = blob_size - FOOTER_SIZE
    page = await again(lambda: client.get_range(at, FOOTER_SIZE, timeout_s=REQUEST_S), "reading the disk's last page")
    found = parse_footer(page)
    return found if found is not None and found.layout(blob_size) is not None else None
