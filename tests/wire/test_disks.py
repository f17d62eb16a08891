"""What the two services say of a disk, asked with no more rights than an attach has."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.disks.look import blob_properties, blob_size
from blobfuse_dysk.errors import CredentialError, NotFoundError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing.azurite import Azurite
from tests.conftest import Service
from tests.wire.clients import address_of, by_key, by_sas, new_disk
from tests.wire.sas import blob_sas
from tests.wire.test_management import make_container, sdk_blob

MIB = 1 << 20


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch, container: str) -> Callable[[Service], None]:
    """To be called with the service: from then on the credential is a SAS that reads one blob, and lists nothing."""

    def use(service: Service) -> None:
        sas = blob_sas(service.account, service.key, f"{container}/data", "r")
        monkeypatch.setattr(resolve, "resolve", lambda address, options: (address, by_sas(service, sas)))

    return use


def test_the_size_takes_no_right_to_list(service: Service, container: str, reader: Callable[[Service], None]) -> None:
    reader(service)
    assert blob_size(new_disk(service, container, 3 * MIB + 512), AttachOptions()) == 3 * MIB + 512
    with pytest.raises(CredentialError):
        blob_size(address_of(service, container, "data2"), AttachOptions())


def test_what_is_missing_is_named(service: Service, container: str, reader: Callable[[Service], None]) -> None:
    with pytest.raises(NotFoundError) as caught:
        blob_properties(address_of(service, container), by_key(service))
    assert caught.value.missing == "container"
    make_container(service, container)
    reader(service)
    with pytest.raises(NotFoundError) as caught:
        blob_size(address_of(service, container), AttachOptions())
    assert caught.value.missing == "disk"


def test_a_block_blob_has_no_size_as_a_disk(
    azurite: Azurite, container: str, reader: Callable[[Service], None]
) -> None:
    reader(azurite)
    make_container(azurite, container)
    with sdk_blob(azurite, container) as blob:
        blob.upload_blob(b"not a page blob")
    with pytest.raises(UsageError, match="is a block blob, not a page blob"):
        blob_size(address_of(azurite, container), AttachOptions())
