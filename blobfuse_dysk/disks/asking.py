"""Asks the service about a disk, from code that is not asynchronous: one call, one event loop, errors for people.

A request that failed in a way that may pass is sent again for a while; who sends one that changes something says what
makes its repetition harmless. What takes long is told to whoever sits at a terminal (patience.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from random import Random
from typing import TypeVar

import trio

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.explain import explain
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError, ServiceError, TransportError
from blobfuse_dysk.patience import telling
from blobfuse_dysk.store.lease.attempts import Attempts
from blobfuse_dysk.store.serviceerrors import to_store_error
from blobfuse_dysk.vhd import FOOTER_SIZE, VhdFooter, parse_footer

__all__ = ["PATIENCE_S", "REQUEST_S", "again", "read_footer", "run", "waiting"]

T = TypeVar("T")
REQUEST_S = 30.0  # for one attempt
BUDGET_S = 60.0  # for all attempts of a request
PATIENCE_S = (
    900.0  # the same in the middle of a copy that takes long anyway: an outage ends, a throttled service goes on
)


class _Wait:
    """What is asked of a disk just now, for people: `again` keeps it up to date."""

    def __init__(self, address: DiskAddress) -> None:
        self.what = ""
        self.error: DyskError | None = None
        self._address = address
        self._began = time.monotonic()

    def text(self) -> str:
        since_s = time.monotonic() - self._began
        why = f"; so far: {self.error}" if self.error else ""
        return f"asking {self._address.endpoint} about {self._address.key} for {since_s:.0f} s now{self.what}{why}"


_now: ContextVar[_Wait | None] = ContextVar("_now", default=None)


@contextlib.contextmanager
def waiting(address: DiskAddress) -> Iterator[None]:
    """Around an event loop that asks for things of a disk: what it waits for is told, if it takes long."""
    wait = _Wait(address)
    before = _now.set(wait)
    try:
        with telling(wait.text):
            yield
    finally:
        _now.reset(before)


def run(
    address: DiskAddress,
    credential: Credential,
    work: Callable[[], Awaitable[T]],
    *,
    needs: str = "r",
    silent: bool = False,
) -> T:
    """Run it in an event loop of its own. What it raises is told in the words of `explain`; needs: see there.

    silent: the caller shows how far it is, so a wait is not told here.
    """
    try:
        with contextlib.nullcontext() if silent else waiting(address):
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

    limit_s = BUDGET_S if budget_s is None else budget_s
    if wait := _now.get():
        wait.what, wait.error = f": {what}, which is given up after {limit_s:g} s", None

    async def attempt() -> T:
        try:
            return await call()
        except (ServiceError, TransportError) as error:
            if wait:
                wait.error = error
            raise to_store_error(error, what, modifies=modifies, conditional=conditional) from error

    return await Attempts(Random(), limit_s)(attempt)


async def read_footer(client: BlobClient, blob_size: int) -> VhdFooter | None:
    """The VHD footer that hides the blob's last page from the device; None if the device is the whole blob.

    As an attach with vhd=auto decides it.
    """
    at = blob_size - FOOTER_SIZE
    page = await again(lambda: client.get_range(at, FOOTER_SIZE, timeout_s=REQUEST_S), "reading the disk's last page")
    found = parse_footer(page)
    return found if found is not None and found.layout(blob_size) is not None else None
