"""DiskClient against the two services: what each operation does, and what it is refused for."""

from __future__ import annotations

import pytest

from blobfuse_dysk.azure.diskclient import DiskClient
from blobfuse_dysk.azure.properties import Condition
from blobfuse_dysk.errors import ServiceError
from tests.conftest import Service
from tests.wire.clients import T, address_of, by_key


async def refused(code: str, call: object) -> None:
    with pytest.raises(ServiceError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.code == code


async def test_a_disk_is_made_where_none_is_and_deleted_as_it_was_looked_at(service: Service, container: str) -> None:
    async with DiskClient(address_of(service, container), by_key(service)) as client:
        await refused("ContainerNotFound", client.create(512, {}, tier=None, timeout_s=T))
        await client.create_container(timeout_s=T)
        await refused("ContainerAlreadyExists", client.create_container(timeout_s=T))
        await client.create(1024, {"team": "red"}, tier=None, timeout_s=T)
        found = await client.properties(timeout_s=T)
        assert (found.size, found.metadata) == (1024, {"team": "red"})
        await refused("BlobAlreadyExists", client.create(512, {}, tier=None, timeout_s=T))
        await client.put_pages(0, b"a" * 512, lease_id=None, epoch=None, timeout_s=T)
        await refused("ConditionNotMet", client.delete(condition=Condition(if_match=found.etag), timeout_s=T))
        found = await client.properties(timeout_s=T)
        await client.delete(condition=Condition(if_match=found.etag), timeout_s=T)
        with pytest.raises(ServiceError) as caught:
            await client.properties(timeout_s=T)
        assert caught.value.status == 404


async def test_a_client_of_a_snapshot_reads_and_deletes_that(service: Service, container: str) -> None:
    async with DiskClient(address_of(service, container), by_key(service)) as client:
        await client.create_container(timeout_s=T)
        await client.create(512, {}, tier=None, timeout_s=T)
        await client.put_pages(0, b"a" * 512, lease_id=None, epoch=None, timeout_s=T)
        before = client.at(await client.snapshot({}, lease_id=None, timeout_s=T))
        await client.put_pages(0, b"b" * 512, lease_id=None, epoch=None, timeout_s=T)
        assert await before.get_range(0, 512, timeout_s=T) == b"a" * 512
        await before.delete(timeout_s=T)
        assert await client.get_range(0, 512, timeout_s=T) == b"b" * 512
