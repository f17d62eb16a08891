"""account.py against both services: create, delete, list, with every kind of credential, and what goes wrong."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobClient as SdkBlobClient
from azure.storage.blob import BlobServiceClient

from blobfuse_dysk.azure import deletion, management
from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.azure.deletion import delete_disk
from blobfuse_dysk.azure.management import DiskRow, create_disk, list_disks
from blobfuse_dysk.disk import DiskAddress, Endpoint
from blobfuse_dysk.errors import CredentialError, DyskError, LeasedError, NotFoundError, TransportError, UsageError
from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.testing.server.certificates import make_certificates
from tests.conftest import Service
from tests.polling import eventually
from tests.wire.clients import LEASE, address_of, by_key, by_sas, by_token
from tests.wire.sas import account_sas, blob_sas, container_sas

MIB = 1 << 20


def sdk_blob(service: Service, container: str, blob: str = "data") -> SdkBlobClient:
    return SdkBlobClient.from_connection_string(service.connection_string, container, blob)


def make_container(service: Service, name: str) -> None:
    with BlobServiceClient.from_connection_string(service.connection_string) as sdk:
        sdk.create_container(name)


def test_create_makes_container_and_blob(service: Service, container: str) -> None:
    address = address_of(service, container)
    create_disk(address, by_key(service), MIB)
    with sdk_blob(service, container) as blob:
        found = blob.get_blob_properties()
        assert (found.size, found.blob_type) == (MIB, "PageBlob")
        assert list(blob.list_page_ranges()) == []


def test_an_existing_blob_is_refused_and_not_touched(service: Service, container: str) -> None:
    address = address_of(service, container)
    create_disk(address, by_key(service), MIB)
    with sdk_blob(service, container) as blob:
        blob.upload_page(b"x" * 512, offset=0, length=512)
        with pytest.raises(DyskError, match="exists already"):
            create_disk(address, by_key(service), 2 * MIB, bytes(512))
        assert blob.download_blob().readall() == b"x" * 512 + bytes(MIB - 512)


def test_a_footer_that_comes_late_overwrites_nothing_of_a_disk_that_was_used(
    server: PageBlobServer, container: str
) -> None:
    """The disk grew meanwhile, so what was its footer's place is one of data."""
    server.fault("late", operation="put_page", times=1, status=500, code="OperationTimedOut")
    create_disk(address_of(server, container), by_key(server), MIB + 512, bytes([1]) * 512)
    with sdk_blob(server, container) as blob:
        assert blob.download_blob(MIB, 512).readall() == bytes([1]) * 512  # the second attempt
        blob.set_sequence_number("max", "7")  # as each attach raises it
        blob.resize_blob(2 * MIB + 512)
        blob.upload_page(bytes([2]) * 512, offset=MIB, length=512)
        assert server.release() == 1
        eventually(lambda: server.stats()["held"] == 0)
        assert blob.download_blob(MIB, 512).readall() == bytes([2]) * 512


def test_the_footer_is_the_last_page(service: Service, container: str) -> None:
    footer = os.urandom(512)
    create_disk(address_of(service, container), by_key(service), MIB + 512, footer)
    with sdk_blob(service, container) as blob:
        assert blob.download_blob(MIB, 512).readall() == footer
        assert [(found.start, found.end) for found in blob.list_page_ranges()] == [(MIB, MIB + 511)]


def test_a_missing_container_can_be_an_error(service: Service, container: str) -> None:
    with pytest.raises(NotFoundError, match=f"container {container}"):
        create_disk(address_of(service, container), by_key(service), MIB, create_container=False)


def test_a_disk_that_was_deleted_is_gone(service: Service, container: str) -> None:
    address = address_of(service, container)
    create_disk(address, by_key(service), MIB)
    delete_disk(address, by_key(service))
    with pytest.raises(NotFoundError, match="does not exist"):
        delete_disk(address, by_key(service))


def test_a_leased_disk_is_deleted_by_its_holder_or_by_force(service: Service, container: str) -> None:
    address, credential = address_of(service, container), by_key(service)
    ways: list[dict[str, Any]] = [{"break_lease": True}, {"lease_id": LEASE}]
    for how in ways:
        create_disk(address, credential, MIB)
        with sdk_blob(service, container) as blob:
            blob.set_blob_metadata({"dysk_node": "n1", "dysk_since": "2026-01-01T00:00:00Z"})
            blob.acquire_lease(-1, lease_id=LEASE)
        with pytest.raises(LeasedError, match="leased by node n1 since 2026-01-01T00:00:00Z"):
            delete_disk(address, credential)
        delete_disk(address, credential, **how)
        with sdk_blob(service, container) as blob:
            assert not blob.exists()


def test_a_deletion_that_comes_late_deletes_no_later_disk_of_that_name(server: PageBlobServer, container: str) -> None:
    address, credential = address_of(server, container), by_key(server)
    create_disk(address, credential, MIB)
    server.fault("late", operation="delete_blob", times=1, status=500, code="OperationTimedOut")
    delete_disk(address, credential)
    create_disk(address, credential, MIB)
    assert server.release() == 1
    eventually(lambda: server.stats()["held"] == 0)
    with sdk_blob(server, container) as blob:
        assert blob.exists()


def test_who_may_delete_and_not_look_deletes(service: Service, container: str) -> None:
    address = address_of(service, container)
    create_disk(address, by_key(service), MIB)
    delete_disk(address, by_sas(service, blob_sas(service.account, service.key, f"{container}/data", "d")))
    with sdk_blob(service, container) as blob:
        assert not blob.exists()


def after_the_first_look(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> list[Any]:
    """Have the blob changed between the first look and the request to delete it; returns what was seen by each look."""
    look, looked = deletion._look, []

    def look_and_change(blob: Any) -> Any:
        looked.append(look(blob))
        if len(looked) == 1:
            change(blob)
        return looked[-1]

    monkeypatch.setattr(deletion, "_look", look_and_change)
    return looked


def test_a_disk_that_changes_while_it_is_deleted_is_looked_at_again(
    service: Service, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, credential = address_of(service, container), by_key(service)
    create_disk(address, credential, MIB)
    looked = after_the_first_look(monkeypatch, lambda blob: blob.upload_page(b"x" * 512, offset=0, length=512))
    delete_disk(address, credential)
    assert len(looked) == 2
    with sdk_blob(service, container) as blob:
        assert not blob.exists()


def test_another_disk_in_the_place_of_the_one_that_was_seen_is_not_deleted(
    service: Service, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, credential = address_of(service, container), by_key(service)
    create_disk(address, credential, MIB)

    def replace_it(blob: Any) -> None:
        blob.delete_blob()
        time.sleep(1.1)  # creation times are whole seconds
        create_disk(address, credential, MIB)

    after_the_first_look(monkeypatch, replace_it)
    with pytest.raises(DyskError, match="there is another one of that name now"):
        delete_disk(address, credential)
    with sdk_blob(service, container) as blob:
        assert blob.exists()


def test_a_disk_with_snapshots_is_not_deleted(service: Service, container: str) -> None:
    address = address_of(service, container)
    create_disk(address, by_key(service), MIB)
    with sdk_blob(service, container) as blob:
        blob.create_snapshot()
        with pytest.raises(UsageError, match="has snapshots") as caught:
            delete_disk(address, by_key(service))
        assert caught.value.remedy
        assert blob.exists()


def test_a_list_has_size_allocation_and_holder_of_each_disk(service: Service, container: str) -> None:
    address, credential = address_of(service, container), by_key(service)
    create_disk(address, credential, MIB)
    create_disk(address_of(service, container, "sub/other"), credential, 2 * MIB)
    with sdk_blob(service, container) as blob:
        blob.upload_page(b"x" * 1024, offset=4096, length=1024)
        written = {"dysk_node": "n1", "dysk_since": "2026-01-01T00:00:00Z"}
        blob.set_blob_metadata(written)
        blob.acquire_lease(-1)
    if not isinstance(service, PageBlobServer):
        with sdk_blob(service, container, "block") as blob:
            blob.upload_blob(b"not a page blob")
    name = f"{service.account}/{container}"
    first = DiskRow(f"{name}/data", MIB, 1024, "leased", "n1", "2026-01-01T00:00:00Z", written)
    second = DiskRow(f"{name}/sub/other", 2 * MIB, 0, "available", None, None)
    assert list_disks(address, credential, allocated=True) == [first, second]
    assert list_disks(address, credential) == [replace(row, allocated=None) for row in (first, second)]
    with pytest.raises(NotFoundError, match="container"):
        list_disks(address_of(service, f"{container}-none"), credential)


def test_a_sas_does_what_it_grants(service: Service, container: str) -> None:
    address = address_of(service, container)
    full = by_sas(service, account_sas(service.account, service.key, "rwdlc"))
    create_disk(address, full, MIB + 512, bytes(512))
    assert [row.disk for row in list_disks(address, full)] == [str(address)]
    delete_disk(address, full)
    own = by_sas(service, container_sas(service.account, service.key, container, "rwdlc"))
    create_disk(address, own, MIB)
    weak = by_sas(service, blob_sas(service.account, service.key, f"{container}/data", "r"))
    with pytest.raises(CredentialError, match=r"has no delete right \(sp=r\)"):
        delete_disk(address, weak)
    with pytest.raises(CredentialError, match="expired at"):
        delete_disk(address, by_sas(service, account_sas(service.account, service.key, "rwd", end_s=-3600)))
    delete_disk(address, own)


def test_a_wrong_key(service: Service, container: str) -> None:
    with pytest.raises(CredentialError, match="is not the key of account") as caught:
        create_disk(address_of(service, container), by_key(service, "d3Jvbmc="), MIB)
    assert "d3Jvbmc" not in caught.value.line()


def test_nothing_half_made_is_left(server: PageBlobServer, container: str) -> None:
    server.fault("error", operation="put_page", status=403, code="AuthorizationPermissionMismatch")
    with pytest.raises(DyskError):
        create_disk(address_of(server, container), by_key(server), MIB + 512, bytes(512))
    with pytest.raises(ValueError, match="BlobNotFound"):
        server.blob(container, "data")


def test_another_blob_type(azurite: Service, container: str) -> None:
    make_container(azurite, container)
    with sdk_blob(azurite, container) as blob:
        blob.upload_blob(b"a block blob")
    with pytest.raises(DyskError, match="exists already"):
        create_disk(address_of(azurite, container), by_key(azurite), MIB)
    assert list_disks(address_of(azurite, container), by_key(azurite)) == []


@pytest.fixture(scope="module")
def https() -> Iterator[PageBlobServer]:
    with PageBlobServer(https=True, tokens={"good.token": {}, "reader": {"permissions": "rl"}}) as running:
        yield running


def printing(token: str) -> tuple[str, ...]:
    answer = {"access_token": token, "expires_on": time.time() + 3600}
    return (sys.executable, "-c", f"print({json.dumps(answer)!r})")


def test_a_token_over_https(https: PageBlobServer, container: str) -> None:
    address = address_of(https, container)
    good = by_token(https, printing("good.token"), ca_file=https.ca_file)
    create_disk(address, good, MIB)
    assert len(list_disks(address, good)) == 1
    reader = by_token(https, printing("reader"), ca_file=https.ca_file)
    assert len(list_disks(address, reader)) == 1
    with pytest.raises(CredentialError, match="has no rights"):
        delete_disk(address, reader)
    delete_disk(address, good)
    failing = by_token(https, (sys.executable, "-c", "import sys; sys.exit('no identity')"), ca_file=https.ca_file)
    with pytest.raises(CredentialError, match="no identity"):
        create_disk(address, failing, MIB)


def test_a_certificate_that_is_not_trusted(https: PageBlobServer, container: str) -> None:
    with pytest.raises(TransportError, match="certificate") as caught:
        create_disk(address_of(https, container), by_key(https), MIB)
    assert "ca_file" in (caught.value.remedy or "")


def test_a_certificate_of_another_name_is_told_as_when_attaching(tmp_path: Path, container: str) -> None:
    made = make_certificates(tmp_path, ["elsewhere.test"])
    with (
        PageBlobServer(cert_file=made.cert_file, key_file=made.key_file) as server,
        pytest.raises(TransportError, match="its certificate is not accepted: IP address mismatch") as caught,
    ):
        create_disk(address_of(server, container), by_key(server, ca_file=made.ca_file), MIB)
    assert caught.value.remedy == "name the endpoint as its certificate does"


@pytest.mark.parametrize(("text", "why"), [(None, "No such file"), ("no certificate", "it holds no certificate")])
def test_authorities_that_cannot_be_read(
    https: PageBlobServer, container: str, tmp_path: Path, text: str | None, why: str
) -> None:
    path = tmp_path / "ca.pem"
    if text:
        path.write_text(text)
    with pytest.raises(CredentialError, match=why) as caught:
        list_disks(address_of(https, container), by_key(https, ca_file=str(path)))
    assert "ca_file" in (caught.value.remedy or "")


def test_a_list_names_no_blob(container: str) -> None:
    with PageBlobServer() as server:
        address = address_of(server, container)
    with pytest.raises(TransportError) as caught:
        list_disks(address, by_key(server))
    assert str(caught.value).startswith(f"list of {server.account}/{container}/*: no answer from ")


def test_a_clock_that_is_off(container: str) -> None:
    with (
        PageBlobServer(clock_offset_s=7200.0) as server,
        pytest.raises(CredentialError, match=r"clock is 7[12]") as caught,
    ):
        create_disk(address_of(server, container), by_key(server), MIB)
    assert "timedatectl" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("host", "kind", "message"),
    [
        ("127.0.0.1", TransportError, "is Azurite running there?"),
        ("no-such-account.invalid", DyskError, "DNS"),
    ],
)
def test_an_endpoint_where_nobody_listens_is_told_as_that(
    host: str, kind: type[DyskError], message: str, container: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(management, "_RETRIES", 0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = Endpoint("http", host, unused.getsockname()[1])
        credential = Credential("acc", Proof("key", "a test", account_key="a2V5"), allow_http=True)
        with pytest.raises(kind) as caught:
            create_disk(DiskAddress("acc", container, "data", endpoint=endpoint), credential, MIB)
    assert message in caught.value.line()
