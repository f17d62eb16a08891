"""Disks with all that they can have: metadata, tags, a tier, a footer, snapshots; made, looked at, listed, deleted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from blobfuse_dysk.azure import management
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.create import create_disk
from blobfuse_dysk.disks.delete import delete_disk
from blobfuse_dysk.disks.fence import fence
from blobfuse_dysk.disks.look import get_disk, list_disks, list_disks_page
from blobfuse_dysk.disks.tier import set_tier
from blobfuse_dysk.errors import (
    CredentialError,
    DyskError,
    HasSnapshotsError,
    LeasedError,
    NotFoundError,
    TransportError,
    UsageError,
)
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.testing.azurite import Azurite
from tests.conftest import Service
from tests.polling import eventually
from tests.wire.clients import LEASE, address_of, by_key, by_sas
from tests.wire.sas import account_sas
from tests.wire.test_management import make_container, sdk_blob

MIB = 1 << 20
GIB = 1 << 30
OPTIONS = AttachOptions()


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Callable[[Service], None]:
    """To be called with the service: from then on its key is the credential of every disk."""

    def use(service: Service) -> None:
        monkeypatch.setattr(resolve, "resolve", lambda address, options: (address, by_key(service)))

    return use


@pytest.fixture
def disk(service: Service, container: str, reached: Callable[[Service], None]) -> DiskAddress:
    """The address of a disk that is not there yet, on both services."""
    reached(service)
    return address_of(service, container)


@pytest.fixture(scope="module")
def premium() -> Iterator[PageBlobServer]:
    with PageBlobServer(sku="Premium_LRS") as running:
        yield running


def test_a_disk_has_from_its_beginning_what_it_was_created_with(service: Service, disk: DiskAddress) -> None:
    metadata = {"dysk_volume": "pvc-1 of x", "Owner": "anna"}
    assert create_disk(disk, 3 * MIB, OPTIONS, vhd=True, metadata=metadata, tags={"team": "a b/c", "n": ""}) == (
        3 * MIB + 512
    )
    found = get_disk(disk, OPTIONS, allocated=True)
    assert (found.disk, found.size, found.blob_size, found.vhd) == (disk, 3 * MIB, 3 * MIB + 512, True)
    assert found.metadata == metadata
    assert (found.lease_state, found.holder, found.since, found.snapshot) == ("available", None, None, None)
    assert (found.tier, found.copy_status, found.incomplete, found.allocated) == (None, None, False, 512)
    assert found.created and found.etag
    with sdk_blob(service, disk.container) as blob:
        assert blob.get_blob_tags() == {"team": "a b/c", "n": ""}


def test_a_look_takes_the_right_to_read_and_no_more(
    service: Service, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = address_of(service, container)
    management.create_disk(disk, by_key(service), MIB)
    sas = by_sas(service, account_sas(service.account, service.key, "r"))
    monkeypatch.setattr(resolve, "resolve", lambda address, options: (address, sas))
    found = get_disk(disk, OPTIONS)
    assert (found.size, found.vhd, found.allocated) == (MIB, False, None)
    with pytest.raises(NotFoundError, match="does not exist"):
        get_disk(replace(disk, blob="other"), OPTIONS)
    with pytest.raises(CredentialError):
        set_tier(disk, OPTIONS, "P10")


def test_who_has_it_is_told(service: Service, disk: DiskAddress) -> None:
    create_disk(disk, MIB, OPTIONS)
    with sdk_blob(service, disk.container) as blob:
        blob.set_blob_metadata({"Dysk_Node": "n1", "dysk_since": "2026-01-01T00:00:00Z", "dysk_incomplete": "1"})
        blob.acquire_lease(-1)
        taken = str(blob.create_snapshot(metadata={"a": "b"})["snapshot"])
    found = get_disk(disk, OPTIONS)
    assert (found.lease_state, found.holder, found.since) == ("leased", "n1", "2026-01-01T00:00:00Z")
    assert found.incomplete
    assert [(row.disk, row.incomplete) for row in list_disks(replace(disk, blob="*"), OPTIONS)] == [(disk.key, True)]
    of_then = get_disk(replace(disk, snapshot=taken), OPTIONS)
    assert (of_then.snapshot, of_then.metadata, of_then.holder) == (taken, {"a": "b"}, None)


def test_another_kind_of_blob_is_no_disk(azurite: Azurite, container: str, reached: Callable[[Service], None]) -> None:
    reached(azurite)
    make_container(azurite, container)
    with sdk_blob(azurite, container) as blob:
        blob.upload_blob(b"not a page blob")
    with pytest.raises(UsageError, match="is a block blob, not a page blob"):
        get_disk(address_of(azurite, container), OPTIONS)


def test_tags_take_a_right_of_their_own(
    shared_server: PageBlobServer, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_container(shared_server, container)
    sas = by_sas(shared_server, account_sas(shared_server.account, shared_server.key, "rwc"))
    monkeypatch.setattr(resolve, "resolve", lambda address, options: (address, sas))
    disk = address_of(shared_server, container)
    with pytest.raises(CredentialError, match="no tag right"):
        create_disk(disk, MIB, OPTIONS, tags={"a": "b"})
    create_disk(disk, MIB, OPTIONS)


def test_a_tier_is_set_and_raised_and_never_lowered(
    premium: PageBlobServer, container: str, reached: Callable[[Service], None]
) -> None:
    reached(premium)
    disk, other = address_of(premium, container), address_of(premium, container, "other")
    create_disk(disk, GIB, OPTIONS, tier="p10")
    assert get_disk(disk, OPTIONS).tier == "P10"
    create_disk(other, 40 * GIB, OPTIONS)
    assert get_disk(other, OPTIONS).tier == "P6"
    for tier in ("P15", "P20", "P80"):
        assert set_tier(disk, OPTIONS, tier.lower()) == tier
        assert get_disk(disk, OPTIONS).tier == tier
    with pytest.raises(UsageError, match="can only be raised"):
        set_tier(disk, OPTIONS, "P70")
    with pytest.raises(UsageError, match="larger than this tier allows"):
        set_tier(other, OPTIONS, "P4")
    with pytest.raises(NotFoundError):
        set_tier(replace(disk, blob="none"), OPTIONS, "P10")


def test_an_account_without_tiers_makes_no_disk_with_one(disk: DiskAddress) -> None:
    with pytest.raises(UsageError, match="only those of Premium accounts do") as caught:
        create_disk(disk, MIB, OPTIONS, tier="P10", vhd=True)
    assert caught.value.remedy
    with pytest.raises(NotFoundError):
        get_disk(disk, OPTIONS)
    create_disk(disk, MIB, OPTIONS)
    with pytest.raises(UsageError, match="only those of Premium accounts do"):
        set_tier(disk, OPTIONS, "P10")


def test_a_disk_with_snapshots_goes_with_them_if_that_is_agreed_to(service: Service, disk: DiskAddress) -> None:
    create_disk(disk, MIB, OPTIONS)
    with sdk_blob(service, disk.container) as blob:
        taken = str(blob.create_snapshot()["snapshot"])
        blob.acquire_lease(-1)
        with pytest.raises(LeasedError):
            delete_disk(disk, OPTIONS, snapshots=True)
        with pytest.raises(HasSnapshotsError):
            delete_disk(disk, OPTIONS, break_lease=True)
        delete_disk(disk, OPTIONS, snapshots=True, break_lease=True)
        assert not blob.exists()
    with pytest.raises(NotFoundError):
        get_disk(replace(disk, snapshot=taken), OPTIONS)


def test_a_list_comes_in_pieces_on_the_server(
    shared_server: PageBlobServer, container: str, reached: Callable[[Service], None]
) -> None:
    reached(shared_server)
    names = sorted(f"{kind}-{number}" for kind in ("a", "b") for number in range(5))
    for name in names:
        create_disk(address_of(shared_server, container, name), MIB, OPTIONS)
    disk = address_of(shared_server, container)
    found, marker, pieces = [], "", 0
    while True:
        rows, marker = list_disks_page(disk, OPTIONS, marker=marker, most=3)
        assert len(rows) <= 3
        found += [row.disk.rpartition("/")[2] for row in rows]
        pieces += 1
        if not marker:
            break
    assert (found, pieces) == (names, 4)
    with pytest.raises(UsageError, match="no marker"):
        list_disks_page(disk, OPTIONS, marker="%%%")
    with pytest.raises(UsageError):
        list_disks_page(disk, OPTIONS, most=0)


def test_a_list_can_be_of_names_with_a_beginning(service: Service, disk: DiskAddress) -> None:
    for name in ("a-1", "b-1", "a-2"):
        create_disk(replace(disk, blob=name), MIB, OPTIONS)
    rows, marker = list_disks_page(disk, OPTIONS, prefix="a-")
    assert ([row.disk.rpartition("/")[2] for row in rows], marker) == (["a-1", "a-2"], "")
    assert list_disks_page(disk, OPTIONS, prefix="c") == ([], "")


def test_a_footer_that_came_although_nobody_heard_of_it_leaves_no_disk(
    server: PageBlobServer, container: str, reached: Callable[[Service], None]
) -> None:
    reached(server)
    server.fault("reset", operation="put_page", when="after")
    with pytest.raises(TransportError):
        create_disk(address_of(server, container), MIB, OPTIONS, vhd=True)
    assert server.faults()[0]["hits"] == 2, "the request was repeated"
    with pytest.raises(ValueError, match="BlobNotFound"):
        server.blob(container, "data")


def test_what_another_attached_meanwhile_is_not_taken_back(
    server: PageBlobServer, container: str, reached: Callable[[Service], None]
) -> None:
    reached(server)
    disk = address_of(server, container)
    server.fault("error", operation="put_page", status=403, code="AuthorizationFailure")
    held_up = server.fault("delay", operation="delete_blob")
    failed: list[DyskError] = []

    def create() -> None:
        try:
            create_disk(disk, MIB, OPTIONS, vhd=True)
        except DyskError as error:
            failed.append(error)

    thread = threading.Thread(target=create)
    thread.start()
    with sdk_blob(server, container) as blob:
        eventually(lambda: bool(server.faults()[-1]["hits"]))
        blob.set_sequence_number("max", str(1 << 41))
        server.clear_faults(held_up)
        server.release()
        thread.join(30)
        assert failed
        assert blob.exists()


def test_a_disk_is_taken_from_the_node_that_has_it_and_from_no_other(service: Service, disk: DiskAddress) -> None:
    create_disk(disk, MIB, OPTIONS, metadata={"team": "a"})
    assert not fence(disk, OPTIONS, node="one")
    assert not fence(replace(disk, snapshot="2026-01-31T12:00:00.0000000Z"), OPTIONS, node="one")
    number = (1 << 40) + (5 << 20) + 7
    with sdk_blob(service, disk.container) as blob:
        signed = {"team": "a", "dysk_node": "one", "dysk_since": "2026-01-01T00:00:00Z", "dysk_tag": "5"}
        blob.set_sequence_number("update", str(number))
        blob.set_blob_metadata(signed)
        blob.acquire_lease(60, lease_id=LEASE)
        before = blob.get_blob_properties().etag
        assert not fence(disk, OPTIONS, node="two")
        assert blob.get_blob_properties().etag == before
        assert fence(disk, OPTIONS, node="one")
        after = blob.get_blob_properties()
        assert (after.lease.state, after.metadata) == ("available", {"team": "a"})
        assert (after.page_blob_sequence_number or 0) >> 40 == 2
        assert not fence(disk, OPTIONS, node="one")
        blob.acquire_lease(15)
        with pytest.raises(LeasedError, match="has not written its name"):
            fence(disk, OPTIONS, node="one")
    with pytest.raises(NotFoundError):
        fence(replace(disk, blob="none"), OPTIONS, node="one")
