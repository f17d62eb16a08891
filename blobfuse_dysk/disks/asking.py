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

__all__ = ["REQUEST_S", "again", "read_footer", "run"]

T = TypeVar("T")
REQUEST_S = 30.0  # for one attempt
BUDGET_S = 60.0  # for all attempts of a request


def run(address: DiskAddress, credential: Credential, work: Callable[[], Awaitable[T]], *, needs: str = "r") -> T:
    """Run it in an event loop of its own. What it raises is told in the words of `explain`; needs: see there."""
    try:
        return trio.run(work)
    except DyskError as error:
        raise _told(error, address, credential, needs) from error
    except BaseExceptionGroup as group:  # of a nursery
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            others = [each for each in first.exceptions if not isinstance(each, trio.Cancelled)]
            interrupts = [each for each in others if isinstance(each, KeyboardInterrupt)]
            first = (interrupts or others)[0]
        if isinstance(first, DyskError):
            raise _told(first, address, credential, needs) from first
        raise first from group


def _told(error: DyskError, address: DiskAddress, credential: Credential, needs: str) -> DyskError:
    return explain(error, address, credential, needs=needs)


async def again(
    call: Callable[[], Awaitable[T]],
    what: str,
    *,
    modifies: bool = False,
    conditional: bool = False,
) -> T:
    """Make a request, and again while its failure may pass. what: for the error, a StoreError.

    modifies, conditional: see to_store_error. The error's `unknown` is that of the last attempt.
    """

    async def attempt() -> T:
        try:
            return await call()
        except (ServiceError, TransportError) as error:
            raise to_store_error(error, what, modifies=modifies, conditional=conditional) from error

    return await Attempts(Random(), BUDGET_S)(attempt)


async def read_footer(client: BlobClient, blob_size: int) -> VhdFooter | None:
    """The VHD footer that hides the blob's last page from the device; None if the device is the whole blob.

    As an attach with vhd=auto decides it.
    """
    at = blob_size - FOOTER_SIZE
    page = await again(lambda: client.get_range(at, FOOTER_SIZE, timeout_s=REQUEST_S), "reading the disk's last page")
    found = parse_footer(page)
    return found if found is not None and found.layout(blob_size) is not None else None
