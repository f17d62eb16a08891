"""BlobClient against both services: every operation, what is refused, and every kind of credential."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator

import pytest
import trio
from azure.storage.blob import BlobClient as SdkBlobClient

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.pool import HttpPool
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import ServiceError, UsageError
from blobfuse_dysk.testing import PageBlobServer
from tests.conftest import Service
from tests.wire.clients import LEASE, T, address_of, by_key, by_sas, client_of, new_disk
from tests.wire.sas import account_sas, blob_sas

pytestmark = pytest.mark.usefixtures("way")

MIB = 1 << 20


@pytest.fixture
def disk(service: Service, container: str) -> DiskAddress:
    return new_disk(service, container)


@pytest.fixture
async def client(service: Service, disk: DiskAddress) -> AsyncIterator[BlobClient]:
    async with client_of(service, disk, checksum=True) as client:
        yield client


async def put(
    client: BlobClient, offset: int, data: bytes, lease_id: str | None = None, epoch: int | None = None
) -> None:
    await client.put_pages(offset, data, lease_id=lease_id, epoch=epoch, timeout_s=T)


async def refused(call: object) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await call  # type: ignore[misc]
    return caught.value


async def test_data_goes_both_ways(client: BlobClient) -> None:
    assert not any(await client.get_range(0, MIB, timeout_s=T))
    small, large = os.urandom(512), os.urandom(4 * MIB)
    await put(client, 512, small)
    await put(client, MIB, large)
    assert await client.get_range(512, 512, timeout_s=T) == small
    assert await client.get_range(MIB, 4 * MIB, timeout_s=T) == large
    whole = await client.get_range(0, 8 * MIB, timeout_s=T)
    assert whole == bytes(512) + small + bytes(MIB - 1024) + large + bytes(3 * MIB)
    await client.clear_pages(MIB, 4 * MIB, lease_id=None, epoch=None, timeout_s=T)
    assert not any(await client.get_range(MIB, 4 * MIB, timeout_s=T))


async def test_a_view_of_a_buffer_can_be_written(client: BlobClient) -> None:
    buffer = bytearray(os.urandom(4096))
    await client.put_pages(0, memoryview(buffer)[1024:2048], lease_id=None, epoch=None, timeout_s=T)
    assert await client.get_range(0, 1024, timeout_s=T) == buffer[1024:2048]


async def test_the_page_map(client: BlobClient) -> None:
    assert (await client.page_ranges(0, 8 * MIB, timeout_s=T)).ranges == []
    await put(client, 4096, bytes(512))
    await put(client, MIB, b"x" * 1024)
    found = await client.page_ranges(0, 8 * MIB, timeout_s=T)
    assert (found.ranges, found.marker) == ([(4096, 512), (MIB, 1024)], None)
    assert (await client.page_ranges(MIB + 512, 4096, timeout_s=T)).ranges == [(MIB + 512, 512)]
    await client.clear_pages(4096, 512, lease_id=None, epoch=None, timeout_s=T)
    assert (await client.page_ranges(0, MIB, timeout_s=T)).ranges == []


async def test_properties_and_metadata(client: BlobClient) -> None:
    found = await client.properties(timeout_s=T)
    assert (found.size, found.blob_type, found.sequence_number) == (8 * MIB, "PageBlob", 0)
    assert (found.lease_state, found.metadata) == ("available", {})
    metadata = {"dysk_node": "n 1", "dysk_since": "2026-01-01T00:00:00Z", "other": "x"}
    await client.set_metadata(metadata, lease_id=None, timeout_s=T)
    after = await client.properties(timeout_s=T)
    assert after.metadata == metadata
    assert after.etag != found.etag


async def test_a_write_of_another_epoch_is_refused(client: BlobClient) -> None:
    assert (await client.raise_sequence_number(5, lease_id=None, timeout_s=T)).number == 5
    assert (await client.raise_sequence_number(3, lease_id=None, timeout_s=T)).number == 5
    await put(client, 0, b"a" * 512, epoch=5)
    error = await refused(put(client, 0, b"b" * 512, epoch=4))
    assert (error.status, error.code) == (412, "SequenceNumberConditionNotMet")
    error = await refused(client.clear_pages(0, 512, lease_id=None, epoch=6, timeout_s=T))
    assert error.code == "SequenceNumberConditionNotMet"
    assert await client.get_range(0, 512, timeout_s=T) == b"a" * 512


def lease_duration(service: Service, container: str) -> str | None:
    """As the service's own client sees it."""
    with SdkBlobClient.from_connection_string(service.connection_string, container, "data") as blob:
        return blob.get_blob_properties().lease.duration


async def test_a_lease_is_taken_kept_and_given_back(service: Service, client: BlobClient, container: str) -> None:
    assert await client.acquire_lease(15, proposed_id=LEASE, timeout_s=T) == LEASE
    assert (
        await client.acquire_lease(60, proposed_id=LEASE, timeout_s=T) == LEASE
    )  # asked again, as after a lost answer
    other = LEASE.replace("1", "9")
    assert (await refused(client.acquire_lease(60, proposed_id=other, timeout_s=T))).code == "LeaseAlreadyPresent"
    await put(client, 0, b"a" * 512, lease_id=LEASE)
    assert (await refused(put(client, 0, b"b" * 512))).code == "LeaseIdMissing"
    assert (await refused(put(client, 0, b"b" * 512, lease_id=other))).status == 412
    assert (await refused(client.raise_sequence_number(1, lease_id=None, timeout_s=T))).code == "LeaseIdMissing"
    await client.renew_lease(LEASE, timeout_s=T)
    assert (await client.properties(timeout_s=T)).lease_state == "leased"
    assert lease_duration(service, container) == "fixed"
    await client.break_lease(timeout_s=T)
    assert (await client.properties(timeout_s=T)).lease_state == "broken"
    assert (await refused(client.renew_lease(LEASE, timeout_s=T))).status == 409
    await client.acquire_lease(-1, proposed_id=other, timeout_s=T)
    assert lease_duration(service, container) == "infinite"
    await client.release_lease(other, timeout_s=T)
    assert (await client.properties(timeout_s=T)).lease_state == "available"
    assert len(await client.acquire_lease(60, proposed_id=None, timeout_s=T)) == 36


async def test_what_is_out_of_range_or_not_there(service: Service, client: BlobClient, container: str) -> None:
    assert (await refused(put(client, 8 * MIB, bytes(512)))).status == 416
    assert (await refused(put(client, 100, bytes(512)))).status in (400, 416)
    for blob, where, code in (("none", container, "BlobNotFound"), ("data", f"{container}-none", "ContainerNotFound")):
        async with client_of(service, address_of(service, where, blob)) as missing:
            assert (await refused(missing.get_range(0, 512, timeout_s=T))).code == code
            assert (await refused(missing.properties(timeout_s=T))).status == 404
            assert (await refused(put(missing, 0, bytes(512)))).code == code


async def test_a_read_across_the_end_is_out_of_range(client: BlobClient) -> None:
    for offset in (8 * MIB - 512, 8 * MIB, 16 * MIB):  # the first is what a blob looks like that was made smaller
        error = await refused(client.get_range(offset, 1024, timeout_s=T))
        assert (error.status, error.code) == (416, "InvalidRange")


async def test_a_snapshot_is_read_as_it_was(service: Service, disk: DiskAddress, client: BlobClient) -> None:
    await put(client, 0, b"a" * 512)
    sdk = SdkBlobClient.from_connection_string(service.connection_string, disk.container, disk.blob)
    with sdk:
        time = str((await trio.to_thread.run_sync(sdk.create_snapshot))["snapshot"])
    await put(client, 0, b"b" * 512)
    address = address_of(service, disk.container, disk.blob, time)
    async with client_of(service, address) as old:
        assert await old.get_range(0, 512, timeout_s=T) == b"a" * 512
        assert (await old.properties(timeout_s=T)).size == 8 * MIB
        assert (await old.page_ranges(0, MIB, timeout_s=T)).ranges == [(0, 512)]
        if isinstance(service, PageBlobServer):  # Azurite does write, to the blob itself
            assert 400 <= (await refused(put(old, 0, b"c" * 512))).status < 500


@pytest.mark.parametrize("blob", ["a b/c+d%25~(ü).vhd", "x" * 200, "a'b!c*d;e:f@g&h=i,j$k"])
async def test_names_that_need_escaping(service: Service, container: str, blob: str) -> None:
    new_disk(service, container)
    address = address_of(service, container, blob)
    with SdkBlobClient.from_connection_string(service.connection_string, container, blob) as sdk:
        await trio.to_thread.run_sync(sdk.create_page_blob, 512)
    async with client_of(service, address) as client:
        await put(client, 0, b"x" * 512)
        assert await client.get_range(0, 512, timeout_s=T) == b"x" * 512
        assert (await client.page_ranges(0, 512, timeout_s=T)).ranges == [(0, 512)]


async def test_a_sas_grants_what_it_says(service: Service, disk: DiskAddress) -> None:
    path = f"{disk.container}/{disk.blob}"
    for sas in (blob_sas(service.account, service.key, path, "rw"), account_sas(service.account, service.key, "rw")):
        async with BlobClient(disk, by_sas(service, sas)) as client:
            await put(client, 0, b"x" * 512)
            assert await client.get_range(0, 512, timeout_s=T) == b"x" * 512
            assert (await client.page_ranges(0, MIB, timeout_s=T)).ranges == [(0, 512)]
            await client.acquire_lease(60, proposed_id=LEASE, timeout_s=T)
            await client.raise_sequence_number(1, lease_id=LEASE, timeout_s=T)
            await client.set_metadata({"dysk_node": "n"}, lease_id=LEASE, timeout_s=T)
            await client.release_lease(LEASE, timeout_s=T)
            await client.clear_pages(0, 512, lease_id=None, epoch=None, timeout_s=T)
    async with BlobClient(disk, by_sas(service, blob_sas(service.account, service.key, path, "r"))) as client:
        await client.get_range(0, 512, timeout_s=T)
        assert (await refused(put(client, 0, b"x" * 512))).status == 403
        assert (await refused(client.acquire_lease(60, proposed_id=LEASE, timeout_s=T))).status == 403


async def test_a_wrong_key_and_an_expired_sas(service: Service, disk: DiskAddress) -> None:
    expired = account_sas(service.account, service.key, "rw", end_s=-60)
    for credential in (
        by_key(service, "d3Jvbmc="),
        by_sas(service, expired),
        by_sas(service, "sv=2021-12-02&sig=eA%3D%3D"),
    ):
        async with BlobClient(disk, credential) as client:
            error = await refused(client.get_range(0, 512, timeout_s=T))
            assert error.status == 403
            assert "d3Jvbmc" not in error.line()
            assert "sig=" not in error.line()
            assert (await refused(client.properties(timeout_s=T))).status == 403


async def test_two_hundred_requests_at_a_time(service: Service, disk: DiskAddress) -> None:
    pages = [bytes([number]) * 512 for number in range(200)]
    async with client_of(service, disk) as client:
        async with trio.open_nursery() as nursery:
            for number, page in enumerate(pages):
                nursery.start_soon(put, client, number * 512, page)
        order = list(range(200))
        random.Random(1).shuffle(order)

        async def check(number: int) -> None:
            assert await client.get_range(number * 512, 512, timeout_s=T) == pages[number]

        async with trio.open_nursery() as nursery:
            for number in order:
                nursery.start_soon(check, number)


async def test_clients_can_share_connections(service: Service, disk: DiskAddress) -> None:
    assert disk.endpoint is not None
    async with HttpPool(disk.endpoint) as pool:
        for _ in range(3):
            async with client_of(service, disk, pool=pool) as client:
                await client.get_range(0, 512, timeout_s=T)
        assert pool.connections == 1


def test_no_secret_leaves_unencrypted(service: Service, container: str) -> None:
    address = DiskAddress.parse(f"http://acc.blob.core.windows.net/{container}/data")
    with pytest.raises(UsageError, match="plain HTTP"):
        BlobClient(address, by_key(service))
