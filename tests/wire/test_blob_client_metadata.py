"""A user's metadata goes through an attach as it was: names keep their case, values every byte; at both services."""

from __future__ import annotations

import pytest
import trio

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.properties import Condition
from blobfuse_dysk.errors import ServiceError
from blobfuse_dysk.store.open import open_stack
from blobfuse_dysk.store.stack import StackOptions
from blobfuse_dysk.testing import PageBlobServer
from tests.conftest import Service
from tests.wire.clients import LEASE, T, address_of, by_key, client_of, new_disk
from tests.wire.rest import Rest

CASES = {"costCenter": "4711", "MicrosoftAzureCompute_OSState": "Generalized", "lower": "x", "_B1": "y"}
ODD = {
    "two": "two  blanks   and four",
    "quoted": 'a "quoted   string"  with  blanks',
    "open": 'an open " quote  and blanks',
    "tab": "a\tb \t c",
    "nbsp": "no\xa0break",
    "last": "\u00e0".encode().decode("latin-1"),  # ends with a byte that is a no-break space in Latin-1
    "shy": "soft\xadhyphen",
    "euro": "\u20ac 5".encode().decode("latin-1"),
    "next": "\x85line",
    "empty": "",
}


def metadata_of(rest: Rest, path: str) -> dict[str, str]:
    """As it stands in the answer's bytes, names in their own case."""
    rest.send("HEAD", path)
    answer = rest._connection.getresponse()
    answer.read()
    return {name[10:]: value for name, value in answer.getheaders() if name.lower().startswith("x-ms-meta-")}


@pytest.mark.parametrize("metadata", [CASES, ODD, *({name: value} for name, value in ODD.items())])
async def test_what_was_read_can_be_written_back_as_it_was(
    service: Service, container: str, metadata: dict[str, str]
) -> None:
    disk = new_disk(service, container)
    async with client_of(service, disk) as client:
        await client.set_metadata(metadata, lease_id=None, timeout_s=T)
        assert (await client.properties(timeout_s=T)).metadata == metadata
        await client.set_metadata((await client.properties(timeout_s=T)).metadata, lease_id=None, timeout_s=T)
        assert (await client.properties(timeout_s=T)).metadata == metadata
    with Rest(service.endpoint, service.account, service.key) as rest:
        seen = await trio.to_thread.run_sync(metadata_of, rest, f"{container}/data")
    assert seen.keys() == metadata.keys()


@pytest.mark.parametrize("metadata", [CASES, ODD])
async def test_an_attach_and_its_end_leave_the_users_metadata_as_it_is(
    service: Service, container: str, metadata: dict[str, str]
) -> None:
    disk = new_disk(service, container)
    async with client_of(service, disk) as client:
        await client.set_metadata(metadata, lease_id=None, timeout_s=T)
        async with open_stack(disk, by_key(service), StackOptions(node="here", cache="none")) as stack:
            await stack.store.write(0, bytes([1]) * 512)  # which waits for the name
            held = (await client.properties(timeout_s=T)).metadata
            assert {**held, **metadata} == held
            assert held["dysk_node"] == "here"
            await stack.release()
        assert (await client.properties(timeout_s=T)).metadata == metadata


async def test_an_attach_takes_the_contents_checksum_off_and_leaves_the_other_headers(
    service: Service, container: str
) -> None:
    disk = new_disk(service, container)
    kept = {
        "cache-control": "no-cache",
        "content-disposition": 'attachment; filename="disk  1.vhd"',
        "content-encoding": "identity",
        "content-language": "de",
        "content-type": "application/x-raw",
    }
    async with client_of(service, disk) as client:
        content = {**kept, "content-md5": "1B2M2Y8AsgTpgAmY7PhCfg=="}
        await client.set_content(content, lease_id=None, condition=Condition(), timeout_s=T)
        assert (await client.properties(timeout_s=T)).content == content
        async with open_stack(disk, by_key(service), StackOptions(node="here", cache="none")) as stack:
            await stack.store.write(0, bytes([1]) * 512)  # which waits for both
            held = await client.properties(timeout_s=T)
            assert held.content == kept
            assert held.metadata["dysk_node"] == "here"
            await stack.release()
        async with open_stack(disk, by_key(service), StackOptions(read_only=True, cache="none")):
            pass
        found = await client.properties(timeout_s=T)
        assert (found.content, found.metadata, found.lease_state) == (kept, {}, "available")


async def test_a_value_that_no_header_may_have_is_a_refusal(server: PageBlobServer, container: str) -> None:
    async with client_of(server, new_disk(server, container)) as client:
        for value in ("a\nb", "a\x00b", "a\x7f", "\u20ac"):
            with pytest.raises(ServiceError, match="no header may have"):
                await client.set_metadata({"a": value}, lease_id=None, timeout_s=T)


async def test_another_refusal_than_for_the_signature_is_not_tried_a_second_way(
    server: PageBlobServer, container: str
) -> None:
    disk = new_disk(server, container)
    async with client_of(server, disk) as client:
        with pytest.raises(ServiceError, match="LeaseNotPresent"):
            await client.set_metadata(ODD, lease_id=LEASE, timeout_s=T)
        assert server.stats()["requests"]["set_blob_metadata"] == 1
    async with BlobClient(address_of(server, container), by_key(server, "d3Jvbmc=")) as client:
        with pytest.raises(ServiceError, match="403"):
            await client.set_metadata(CASES, lease_id=None, timeout_s=T)
