"""Conditions on lease, sequence number and metadata: what makes a request void at both services, and what does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.signing import http_date, parse_http_date
from blobfuse_dysk.azure.wire import Condition
from blobfuse_dysk.errors import ServiceError
from tests.conftest import Service
from tests.wire.clients import client_of, new_disk

T = 10.0
LEASE = "11111111-1111-1111-1111-111111111111"
OTHER_LEASE = "22222222-2222-2222-2222-222222222222"
STALE = Condition(if_match='"0x8D0000000000001"')

Call = Callable[[BlobClient, Condition], Awaitable[object]]
CALLS: dict[str, Call] = {
    "acquire": lambda client, condition: client.acquire_lease(60, proposed_id=LEASE, condition=condition, timeout_s=T),
    "raise": lambda client, condition: client.raise_sequence_number(
        9, lease_id=LEASE, condition=condition, timeout_s=T
    ),
    "metadata": lambda client, condition: client.set_metadata(
        {"a": "b"}, lease_id=LEASE, condition=condition, timeout_s=T
    ),
    "resize": lambda client, condition: client.resize(1 << 20, lease_id=LEASE, condition=condition, timeout_s=T),
    "release": lambda client, condition: client.release_lease(LEASE, condition=condition, timeout_s=T),
    "break": lambda client, condition: client.break_lease(condition=condition, timeout_s=T),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@pytest.fixture
async def client(service: Service, container: str) -> AsyncIterator[BlobClient]:
    """Of a disk that is leased."""
    async with client_of(service, new_disk(service, container)) as client:
        await client.acquire_lease(60, proposed_id=LEASE, timeout_s=T)
        yield client


async def refused(call: Awaitable[object]) -> None:
    with pytest.raises(ServiceError) as caught:
        await call
    assert (caught.value.status, caught.value.code) == (412, "ConditionNotMet")


@each_call
async def test_a_request_about_another_etag_is_void(call: Call, client: BlobClient) -> None:
    before = await client.properties(timeout_s=T)
    await refused(call(client, STALE))
    assert await client.properties(timeout_s=T) == before


@each_call
async def test_a_request_about_the_etag_that_the_blob_has_is_carried_out(call: Call, client: BlobClient) -> None:
    await call(client, Condition(if_match=(await client.properties(timeout_s=T)).etag))


@each_call
async def test_a_request_with_a_last_moment(call: Call, client: BlobClient) -> None:
    changed_at = parse_http_date((await client.properties(timeout_s=T)).last_modified)
    assert changed_at is not None
    await refused(call(client, Condition(if_unmodified_since=http_date(changed_at - 2))))
    await call(client, Condition(if_unmodified_since=http_date(changed_at + 3)))


async def test_what_changes_the_etag_and_what_does_not(client: BlobClient) -> None:
    async def etag() -> str:
        return (await client.properties(timeout_s=T)).etag

    last = await etag()
    await client.renew_lease(LEASE, timeout_s=T)
    await client.break_lease(timeout_s=T)
    await client.acquire_lease(15, proposed_id=LEASE, timeout_s=T)
    await client.release_lease(LEASE, timeout_s=T)
    await client.acquire_lease(60, proposed_id=LEASE, timeout_s=T)
    assert await etag() == last
    for number in (9, 9, 5):  # the second and third change nothing but that
        raised = await client.raise_sequence_number(number, lease_id=LEASE, timeout_s=T)
        assert raised.number == 9
        assert raised.etag == await etag() != last
        last = raised.etag
    written = await client.set_metadata({"a": "b"}, lease_id=LEASE, timeout_s=T)
    assert written == await etag() != last
    last = await etag()
    size = (await client.properties(timeout_s=T)).size
    await client.resize(size, lease_id=LEASE, condition=Condition(if_match=last), timeout_s=T)
    assert await etag() != last, "although it has the size already"
    written = await etag()
    await client.put_pages(0, bytes(512), lease_id=LEASE, epoch=9, timeout_s=T)
    assert await etag() != written
    written = await etag()
    await client.clear_pages(0, 512, lease_id=LEASE, epoch=9, timeout_s=T)
    assert await etag() != written


async def test_a_resize_needs_the_lease_and_leaves_everything_else_as_it_is(client: BlobClient) -> None:
    await client.raise_sequence_number(9, lease_id=LEASE, timeout_s=T)
    await client.put_pages(0, b"x" * 512, lease_id=LEASE, epoch=9, timeout_s=T)
    before = await client.properties(timeout_s=T)
    condition = Condition(if_match=before.etag)
    for lease_id in (None, OTHER_LEASE):
        with pytest.raises(ServiceError) as caught:
            await client.resize(before.size + 512, lease_id=lease_id, condition=condition, timeout_s=T)
        assert caught.value.status == 412 and caught.value.code.startswith("LeaseId")
    await client.resize(before.size + 4096, lease_id=LEASE, condition=condition, timeout_s=T)
    after = await client.properties(timeout_s=T)
    assert after.size == before.size + 4096
    assert (after.sequence_number, after.metadata, after.lease_state) == (9, before.metadata, "leased")
    assert await client.get_range(before.size - 512, 4608, timeout_s=T) == bytes(4608)
    assert (await client.page_ranges(0, after.size, timeout_s=T)).ranges == [(0, 512)]
    await client.put_pages(after.size - 512, b"y" * 512, lease_id=LEASE, epoch=9, timeout_s=T)
    assert await client.get_range(after.size - 512, 512, timeout_s=T) == b"y" * 512
