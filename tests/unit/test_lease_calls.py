"""The calls of lease and epoch one by one: how they end, and what is known of them then."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.azure.wire import Condition
from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.attempts import Attempts
from blobfuse_dysk.store.bloblease import BlobLease
from blobfuse_dysk.testing import SimBlob, SimClient
from tests.unit.stacks import LEASE


class Silent(SimClient):
    """Its requests never end, whatever their limit is."""

    async def _ask(self, *args: object) -> object:  # type: ignore[override]
        await trio.sleep_forever()


async def test_a_call_whose_client_keeps_no_limit_ends_and_may_have_been_carried_out(
    blob: SimBlob, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    lease = BlobLease(Silent(blob, nursery), timeout_s=10.0)
    for call, unknown in ((lease.acquire(LEASE, 60.0, Condition()), True), (lease.properties(), False)):
        started = trio.current_time()
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.kind is Kind.UNREACHABLE
        assert caught.value.unknown == unknown
        assert trio.current_time() - started < 15


def outcomes(*errors: StoreError | None) -> tuple[list[StoreError | None], Attempts]:
    return list(errors), Attempts(Random(0), 8.0)


async def test_whether_any_attempt_of_the_latest_call_may_land_is_known(autojump_clock: MockClock) -> None:
    lost, refused = StoreError("lost", Kind.UNREACHABLE, unknown=True), StoreError("busy", Kind.THROTTLED)
    left, attempts = outcomes(lost, refused, None, refused, None)

    async def call() -> None:
        await trio.lowlevel.checkpoint()
        error = left.pop(0)
        if error is not None:
            raise error

    await attempts(call)
    assert attempts.unknown
    await attempts(call)
    assert not attempts.unknown
    assert left == []


async def test_an_attempt_that_is_cancelled_may_land(autojump_clock: MockClock) -> None:
    attempts = Attempts(Random(0), 8.0)
    with trio.move_on_after(1):
        await attempts(trio.sleep_forever)
    assert attempts.unknown
