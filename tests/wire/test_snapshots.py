"""Snapshots of disks at both services: made, listed, deleted, with the disk's lease in another's hands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import trio

from blobfuse_dysk.azure import management
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.azure.properties import BlobProperties, Condition
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.snapshot import (
    NAME,
    Snapshot,
    create_snapshot,
    delete_snapshot,
    list_snapshots,
    list_snapshots_page,
)
from blobfuse_dysk.errors import CredentialError, DyskError, NotFoundError, ServiceError, TransportError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing import PageBlobServer
from tests.conftest import Service
from tests.wire.clients import LEASE, T, by_key, by_sas, client_of, new_disk
from tests.wire.sas import blob_sas

MIB = 1 << 20
OPTIONS = AttachOptions()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[Service, str], None]:
    """To be called with the service, and a SAS if that is what there is: the credential that `resolve` finds."""

    def use(service: Service, sas: str = "") -> None:
        found = by_sas(service, sas) if sas else by_key(service)
        monkeypatch.setattr(resolve, "resolve", lambda address, options: (address, found))

    return use


@pytest.fixture
def disk(service: Service, container: str, known: Callable[..., None]) -> Iterator[DiskAddress]:
    known(service)
    yield new_disk(service, container, 3 * MIB)


def write(service: Service, disk: DiskAddress, text: bytes, lease_id: str | None = None) -> None:
    async def put() -> None:
        async with client_of(service, disk) as client:
            await client.put_pages(0, text.ljust(512), lease_id=lease_id, epoch=None, timeout_s=T)

    trio.run(put)


def read(service: Service, disk: DiskAddress) -> bytes:
    async def get() -> bytes:
        async with client_of(service, disk) as client:
            return bytes(await client.get_range(0, 512, timeout_s=T)).strip()

    return trio.run(get)


def ask(service: Service, disk: DiskAddress) -> BlobProperties:
    async def look() -> BlobProperties:
        async with client_of(service, disk) as client:
            return await client.properties(timeout_s=T)

    return trio.run(look)


def test_a_snapshot_keeps_what_was_there_and_says_what_it_is(service: Service, disk: DiskAddress) -> None:
    write(service, disk, b"before")
    made = create_snapshot(disk, OPTIONS, metadata={NAME: "nightly  one", "Owner": "me"})
    write(service, disk, b"after")
    assert read(service, made.disk) == b"before"
    assert (made.consistent, made.why, made.size, made.name) == ("crash", "not attached here", 3 * MIB, "nightly  one")
    assert made.disk == replace(disk, snapshot=made.time)
    assert list_snapshots(disk, OPTIONS) == [made]


def test_the_lease_of_another_is_in_nobodys_way(service: Service, disk: DiskAddress) -> None:
    async def lease() -> None:
        async with client_of(service, disk) as client:
            await client.acquire_lease(-1, proposed_id=LEASE, timeout_s=T)
            await client.set_metadata({"dysk_node": "vm7", "team": "blue"}, lease_id=LEASE, timeout_s=T)

    trio.run(lease)
    made = create_snapshot(disk, OPTIONS)
    assert made.why == "attached on vm7, not here"
    (listed,) = list_snapshots(disk, OPTIONS)
    assert listed.metadata == {"team": "blue"}  # of the disk, without who has it
    delete_snapshot(made.disk, OPTIONS)
    assert list_snapshots(disk, OPTIONS) == []
    assert ask(service, disk).lease_state == "leased"


def test_a_request_that_comes_late_makes_none_of_what_was_written_meanwhile(
    service: Service, disk: DiskAddress
) -> None:
    etag = ask(service, disk).etag

    async def take(condition: Condition, lease_id: str | None = None) -> str:
        async with client_of(service, disk) as client:
            return await client.snapshot({}, lease_id=lease_id, condition=condition, timeout_s=T)

    assert trio.run(take, Condition(if_match=etag))
    assert ask(service, disk).etag == etag  # so a snapshot is in no other's way
    write(service, disk, b"meanwhile")
    with pytest.raises(ServiceError) as caught:
        trio.run(take, Condition(if_match=etag))
    assert (caught.value.status, caught.value.code) == (412, "ConditionNotMet")
    assert len(list_snapshots(disk, OPTIONS)) == 1


def test_those_of_others_are_not_among_a_disks(service: Service, container: str, disk: DiskAddress) -> None:
    others = [replace(disk, blob=name) for name in ("dat", "data-2", "data/x")]
    for other in others:
        management.create_disk(other, by_key(service), MIB)
        create_snapshot(other, OPTIONS)
    mine = [create_snapshot(disk, OPTIONS) for _ in range(3)]
    assert list_snapshots(disk, OPTIONS) == mine
    found = list_snapshots(disk, OPTIONS, prefix_of_container=True)
    assert [each.disk.blob for each in found] == ["data", "data", "data", "data-2", "data/x"]


def test_a_container_is_listed_page_by_page(
    shared_server: PageBlobServer, container: str, known: Callable[..., None]
) -> None:
    known(shared_server)  # Azurite's markers are names: it leaves out snapshots of the blob at a page's end
    disk = new_disk(shared_server, container, MIB)
    for number in range(5):
        management.create_disk(replace(disk, blob=f"empty{number}"), by_key(shared_server), MIB)
    made = [create_snapshot(disk, OPTIONS) for _ in range(4)]
    management.create_disk(replace(disk, blob="last"), by_key(shared_server), MIB)
    made.append(create_snapshot(replace(disk, blob="last"), OPTIONS))
    found: list[Snapshot] = []
    marker, pages = None, 0
    while pages == 0 or marker:
        page, marker = list_snapshots_page(disk, OPTIONS, marker=marker, most=2)
        assert page or not marker
        found += page
        pages += 1
    assert found == made
    assert pages > 2
    with pytest.raises(ServiceError) as caught:
        list_snapshots_page(disk, OPTIONS, marker="x")
    assert caught.value.status == 400


def test_what_cannot_have_a_snapshot(service: Service, container: str, disk: DiskAddress) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        create_snapshot(replace(disk, blob="none"), OPTIONS)
    made = create_snapshot(disk, OPTIONS)
    with pytest.raises(UsageError, match="is a snapshot itself"):
        create_snapshot(made.disk, OPTIONS)

    async def begin_to_clone() -> None:
        async with client_of(service, disk) as client:
            await client.set_metadata({"Dysk_Incomplete": "1"}, lease_id=None, timeout_s=T)

    trio.run(begin_to_clone)
    with pytest.raises(DyskError, match="unfinished clone"):
        create_snapshot(disk, OPTIONS)
    assert list_snapshots(disk, OPTIONS) == [made]


def test_a_snapshot_that_is_gone(service: Service, disk: DiskAddress) -> None:
    made = create_snapshot(disk, OPTIONS)
    delete_snapshot(made.disk, OPTIONS)
    with pytest.raises(NotFoundError) as caught:
        delete_snapshot(made.disk, OPTIONS)
    assert caught.value.missing == "snapshot"
    with pytest.raises(UsageError, match="is a disk, not a snapshot"):
        delete_snapshot(disk, OPTIONS)
    assert ask(service, disk).size == 3 * MIB


def test_the_rights_of_a_node_make_one_and_do_not_list(
    shared_server: PageBlobServer, container: str, known: Callable[..., None]
) -> None:
    disk = new_disk(shared_server, container, MIB)
    known(shared_server, blob_sas(shared_server.account, shared_server.key, f"{container}/data", "rw"))
    made = create_snapshot(disk, OPTIONS)
    with pytest.raises(CredentialError):
        list_snapshots(disk, OPTIONS)
    known(shared_server)
    assert list_snapshots(disk, OPTIONS) == [made]


@pytest.mark.parametrize("rights", ["", "rw"])
@pytest.mark.parametrize("fault", [{"action": "lost"}, {"action": "error", "status": 500, "when": "after"}], ids=str)
def test_an_answer_that_is_lost_does_not_make_two(
    server: PageBlobServer, container: str, known: Callable[..., None], fault: dict[str, Any], rights: str
) -> None:
    disk = new_disk(server, container, MIB)
    known(server, blob_sas(server.account, server.key, f"{container}/data", rights) if rights else "")
    server.fault(operation="snapshot_blob", times=1, **fault)
    made = create_snapshot(disk, OPTIONS)
    known(server)
    found = list_snapshots(disk, OPTIONS)
    assert made in found
    # Who may not list asks again. What the first request made has the same id and the same content.
    assert len(found) == (2 if rights else 1)


def test_a_request_that_was_not_done_is_repeated(
    server: PageBlobServer, container: str, known: Callable[..., None]
) -> None:
    known(server)
    disk = new_disk(server, container, MIB)
    server.fault("reset", operation="snapshot_blob", times=2)
    made = create_snapshot(disk, OPTIONS)
    assert list_snapshots(disk, OPTIONS) == [made]
    server.fault("reset", operation="snapshot_blob", times=3)
    with pytest.raises(TransportError):
        create_snapshot(disk, OPTIONS)
    assert list_snapshots(disk, OPTIONS) == [made]


def test_one_that_shows_late_is_taken_back(server: PageBlobServer, container: str, known: Callable[..., None]) -> None:
    known(server)
    disk = new_disk(server, container, MIB)
    server.fault("lost", operation="snapshot_blob", times=1)
    server.fault("error", operation="list_blobs", times=1, status=403)  # it is not found when it is looked for first
    made = create_snapshot(disk, OPTIONS)
    assert list_snapshots(disk, OPTIONS) == [made]
    assert server.stats()["requests"]["snapshot_blob"] == 2
