"""The secondary of an account that is replicated to be read there: disks are read, and nothing is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.credential.resolve import resolve
from blobfuse_dysk.disk import DiskAddress, Endpoint
from blobfuse_dysk.disks.create import create_disk
from blobfuse_dysk.disks.delete import delete_disk
from blobfuse_dysk.errors import CredentialError, ServiceError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store.open import errors_for_people, open_stack
from blobfuse_dysk.store.stack import StackOptions
from blobfuse_dysk.testing import PageBlobServer
from tests.conftest import Service
from tests.wire.clients import T, by_key, by_sas, client_of, new_disk
from tests.wire.sas import account_sas


def at_secondary(address: DiskAddress) -> DiskAddress:
    """As the URL that a user would copy names it."""
    assert address.endpoint is not None
    found = DiskAddress.parse(f"{address.endpoint}-secondary{address.path}")
    assert isinstance(found.endpoint, Endpoint)
    return found


@pytest.mark.parametrize("kind", ["key", "sas"])
async def test_a_disk_is_read_at_the_secondary(service: Service, container: str, kind: str) -> None:
    disk = new_disk(service, container)
    async with client_of(service, disk) as client:
        await client.put_pages(512, b"a" * 512, lease_id=None, epoch=None, timeout_s=T)
    credential: Credential = by_key(service)
    if kind == "sas":
        credential = by_sas(service, account_sas(service.account, service.key, "r"))
    options = StackOptions(read_only=True, cache="none")
    async with open_stack(at_secondary(disk), credential, options) as stack:
        assert bytes(await stack.store.read(0, 1024)) == bytes(512) + b"a" * 512
        assert await stack.store.extents(0, 1024)


async def test_the_secondary_takes_no_write(server: PageBlobServer, container: str) -> None:
    disk = at_secondary(new_disk(server, container))
    async with client_of(server, disk) as client:
        with pytest.raises(ServiceError, match="InsufficientAccountPermissions") as caught:
            await client.put_pages(0, bytes(512), lease_id=None, epoch=None, timeout_s=T)
    with pytest.raises(CredentialError, match="does not allow"), errors_for_people(disk, None, read_only=False):
        async with open_stack(disk, by_key(server), StackOptions(node="here", cache="none")):
            raise AssertionError("attached")
    assert caught.value.status == 403


def test_nothing_is_created_or_deleted_there(server: PageBlobServer, container: str) -> None:
    disk = replace(at_secondary(new_disk(server, container)), account_key=server.key)
    for call in (lambda: create_disk(disk, 1 << 20, AttachOptions()), lambda: delete_disk(disk, AttachOptions())):
        with pytest.raises(UsageError, match="which can only be read"):
            call()


def test_a_credential_file_of_the_account_is_for_its_secondary_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYSK_CONFIG_DIR", str(tmp_path))
    file = tmp_path / "mystore.conf"
    file.write_text("account_key = a2V5\n")
    file.chmod(0o600)
    disk = DiskAddress.parse("https://mystore-secondary.blob.core.windows.net/disks/data")
    address, credential = resolve(disk, AttachOptions(read_only=True))
    assert (address.account, credential.account) == ("mystore", "mystore")
    assert address.is_secondary
