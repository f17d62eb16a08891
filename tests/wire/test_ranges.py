"""disks/ranges.py against the two services: what is allocated, what changed, and who must not be believed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from typing import Any

import pytest

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks import ranges as module
from blobfuse_dysk.disks.ranges import Changed, allocated_ranges, changed_ranges, measure
from blobfuse_dysk.errors import DyskError, NotFoundError, StoreError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.testing.azurite import Azurite
from blobfuse_dysk.vhd import footer
from tests.conftest import Service
from tests.wire.disk_options import named
from tests.wire.page_lists import snapshot
from tests.wire.rest import Rest

PAGE = 512
MIB = 1 << 20
OPTIONS = AttachOptions()


@pytest.fixture
def rest(service: Service, container: str) -> Iterator[Rest]:
    """A connection, and a container with a page blob `data` of one MiB."""
    with Rest(service.endpoint, service.account, service.key) as found:
        assert found("PUT", container, "restype=container").status == 201
        assert found.create(f"{container}/data", MIB).status == 201
        yield found


@pytest.fixture
def own(server: PageBlobServer, container: str) -> Iterator[Rest]:
    """The same on the own server alone."""
    server.create(container, "data", MIB)
    with Rest(server.endpoint, server.account, server.key) as found:
        yield found


def in_small_answers(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Lists come in answers of at most `most` ranges; Azurite sends all it has nevertheless."""
    for name in ("page_ranges", "changed_ranges"):
        monkeypatch.setattr(BlobClient, name, partialmethod(getattr(BlobClient, name), max_results=most))


def at(disk: DiskAddress, time: str) -> DiskAddress:
    return replace(disk, snapshot=time)


# What is allocated.


def test_what_is_allocated(service: Service, container: str, rest: Rest) -> None:
    path, disk = f"{container}/data", named(service, container)
    assert list(allocated_ranges(disk, OPTIONS)) == []
    rest.put(path, 0, b"a" * 2 * PAGE)
    rest.put(path, 10 * PAGE, bytes(PAGE))
    before = snapshot(rest, path)
    rest.put(path, MIB - PAGE, b"b" * PAGE)
    assert list(allocated_ranges(disk, OPTIONS)) == [(0, 2 * PAGE), (10 * PAGE, PAGE), (MIB - PAGE, PAGE)]
    assert list(allocated_ranges(at(disk, before), OPTIONS)) == [(0, 2 * PAGE), (10 * PAGE, PAGE)]
    assert list(allocated_ranges(disk, OPTIONS, start=PAGE)) == [(PAGE, PAGE), (10 * PAGE, PAGE), (MIB - PAGE, PAGE)]
    assert list(allocated_ranges(disk, OPTIONS, start=MIB)) == []


def test_a_list_of_many_answers_is_whole(
    monkeypatch: pytest.MonkeyPatch, server: PageBlobServer, container: str, own: Rest
) -> None:
    in_small_answers(monkeypatch, 3)
    path, disk = f"{container}/data", named(server, container)
    written = [(page * PAGE, PAGE) for page in range(0, 40, 2)]
    for offset, _ in written:
        own.put(path, offset, b"a" * PAGE)
    assert list(allocated_ranges(disk, OPTIONS)) == written
    assert list(allocated_ranges(disk, OPTIONS, start=20 * PAGE)) == written[10:]
    before = snapshot(own, path)
    for page in range(0, 20, 2):
        own.put(path, page * PAGE, b"b" * PAGE)
        own.clear(path, (page + 20) * PAGE, PAGE)
    changed = [Changed(page * PAGE, PAGE, page >= 20) for page in range(0, 40, 2)]
    assert list(changed_ranges(disk, before, OPTIONS)) == changed
    assert list(changed_ranges(disk, before, OPTIONS, start=21 * PAGE)) == changed[11:]


def test_the_footer_of_a_vhd_is_no_part_of_the_device(service: Service, container: str, rest: Rest) -> None:
    path, disk = f"{container}/vm.vhd", named(service, container, "vm.vhd")
    assert rest.create(path, MIB + PAGE).status == 201
    rest.put(path, 0, b"a" * PAGE)
    rest.put(path, MIB - PAGE, b"a" * PAGE + footer(MIB))
    assert list(allocated_ranges(disk, OPTIONS)) == [(0, PAGE), (MIB - PAGE, PAGE)]
    found = measure(disk, OPTIONS)
    assert (found.size, found.blob_size) == (MIB, MIB + PAGE)


def test_the_disk_must_be_there_before_a_range_is_drawn(service: Service, container: str, rest: Rest) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        allocated_ranges(named(service, container, "none"), OPTIONS)
    with pytest.raises(NotFoundError, match="snapshot"):
        allocated_ranges(named(service, container, "data", "2026-01-01T00:00:00.0000000Z"), OPTIONS)


# What changed.


def test_a_copy_of_the_snapshot_and_the_changes_make_the_disk(
    monkeypatch: pytest.MonkeyPatch, server: PageBlobServer, container: str, own: Rest
) -> None:
    in_small_answers(monkeypatch, 5)
    path, disk = f"{container}/data", named(server, container)
    drawn = random.Random(4)

    def scribble() -> None:
        for _ in range(80):
            offset, length = drawn.randrange(MIB // PAGE - 8) * PAGE, drawn.randrange(1, 9) * PAGE
            if drawn.random() < 0.4:
                own.clear(path, offset, length)
            else:
                own.put(path, offset, drawn.randbytes(length))

    scribble()
    first = snapshot(own, path)
    copy = bytearray(own.get(path, 0, MIB).body)
    scribble()
    second = snapshot(own, path)
    wanted = own.get(path, 0, MIB).body
    scribble()
    for offset, length, cleared in changed_ranges(at(disk, second), at(disk, first), OPTIONS):
        new = bytes(length) if cleared else own("GET", path, f"snapshot={second}", rest_range(offset, length)).body
        copy[offset : offset + length] = new
    assert bytes(copy) == wanted
    for offset, length, cleared in changed_ranges(disk, second, OPTIONS):
        copy[offset : offset + length] = bytes(length) if cleared else own.get(path, offset, length).body
    assert bytes(copy) == own.get(path, 0, MIB).body


def rest_range(offset: int, length: int) -> dict[str, str]:
    return {"x-ms-range": f"bytes={offset}-{offset + length - 1}"}


def test_a_service_that_ignores_the_older_snapshot_is_refused(azurite: Azurite, container: str) -> None:
    """Azurite lists all that is allocated, and no page as cleared: what is gone would come back."""
    with Rest(azurite.endpoint, azurite.account, azurite.key) as rest:
        rest("PUT", container, "restype=container")
        rest.create(f"{container}/data", MIB)
        before = snapshot(rest, f"{container}/data")
    with pytest.raises(UsageError, match="ignores what changes are asked for since"):
        changed_ranges(named(azurite, container), before, OPTIONS)


def test_what_the_service_refuses_is_said_for_people(server: PageBlobServer, container: str, own: Rest) -> None:
    path, disk = f"{container}/data", named(server, container)
    first = snapshot(own, path)
    second = snapshot(own, path)
    with pytest.raises(UsageError, match="is newer than"):
        changed_ranges(at(disk, first), second, OPTIONS)
    with pytest.raises(NotFoundError, match="does not exist") as caught:
        changed_ranges(disk, "2026-01-01T00:00:00.0000000Z", OPTIONS)
    assert caught.value.missing == "snapshot"
    own.create(path, MIB)
    with pytest.raises(DyskError, match="was overwritten as a whole since") as error:
        changed_ranges(disk, first, OPTIONS)
    assert error.value.remedy


def test_the_older_state_must_be_a_snapshot_of_the_same_disk(server: PageBlobServer, container: str) -> None:
    disk = named(server, container)
    with pytest.raises(UsageError, match="not a snapshot's time"):
        changed_ranges(disk, "yesterday", OPTIONS)
    with pytest.raises(UsageError, match="is no snapshot"):
        changed_ranges(disk, disk, OPTIONS)
    with pytest.raises(UsageError, match="is no snapshot of"):
        changed_ranges(disk, named(server, container, "other", "2026-01-01T00:00:00.0000000Z"), OPTIONS)


def test_a_list_is_asked_for_again_when_its_answer_is_damaged_or_lost(
    server: PageBlobServer, container: str, own: Rest
) -> None:
    path, disk = f"{container}/data", named(server, container)
    before = snapshot(own, path)
    own.put(path, 0, b"a" * PAGE)
    for fault in ({"action": "short"}, {"action": "reset"}, {"action": "gateway", "status": 200}):
        server.clear_faults()
        server.fault(operation="get_page_ranges", skip=1, times=1, **fault)
        assert list(changed_ranges(disk, before, OPTIONS)) == [Changed(0, PAGE, False)], fault


def test_a_gateway_that_refuses_everything_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, server: PageBlobServer, container: str, own: Rest
) -> None:
    monkeypatch.setattr("blobfuse_dysk.disks.asking.BUDGET_S", 0.1)
    before = snapshot(own, f"{container}/data")
    server.fault("gateway", operation="get_page_ranges", status=409)
    with pytest.raises(DyskError, match="not the service's"):
        changed_ranges(named(server, container), before, OPTIONS)


def test_a_list_that_takes_too_long_is_asked_for_in_pieces(
    monkeypatch: pytest.MonkeyPatch, server: PageBlobServer, container: str, own: Rest
) -> None:
    monkeypatch.setattr(module, "_SMALLEST", 8 * PAGE)
    path, disk = f"{container}/data", named(server, container)
    before = snapshot(own, path)
    for page in range(0, 64, 8):
        own.put(path, page * PAGE, b"a" * 2 * PAGE)
    wanted = [(page * PAGE, 2 * PAGE) for page in range(0, 64, 8)]
    server.fault("error", operation="get_page_ranges", status=500, code="OperationTimedOut", times=7)
    assert list(allocated_ranges(disk, OPTIONS)) == wanted
    server.clear_faults()
    server.fault("error", operation="get_page_ranges", status=500, code="OperationTimedOut", skip=1, times=3)
    assert list(changed_ranges(disk, before, OPTIONS)) == [Changed(*each, False) for each in wanted]
    server.clear_faults()
    in_small_answers(monkeypatch, 2)
    server.fault("error", operation="get_page_ranges", status=500, code="OperationTimedOut", skip=2, times=2)
    assert list(allocated_ranges(disk, OPTIONS)) == wanted  # it goes on where the answers before ended


@pytest.mark.parametrize("body", ["again", "back"])
def test_markers_that_lead_nowhere_end_the_list_with_an_error(
    monkeypatch: pytest.MonkeyPatch, server: PageBlobServer, container: str, own: Rest, body: str
) -> None:
    from blobfuse_dysk.azure.wire import PageList

    async def page_ranges(self: BlobClient, offset: int, length: int, **more: Any) -> PageList:
        return PageList([(4 * PAGE, PAGE)] if body == "back" else [], "same")

    monkeypatch.setattr(BlobClient, "page_ranges", page_ranges)
    with pytest.raises(StoreError, match="goes back" if body == "back" else "markers that lead nowhere"):
        list(allocated_ranges(named(server, container), OPTIONS))


def test_a_refusal_for_another_reason_is_no_proof_that_the_service_looks(
    server: PageBlobServer, container: str, own: Rest
) -> None:
    before = snapshot(own, f"{container}/data")
    server.fault("error", operation="get_page_ranges", status=400, code="InvalidInput", times=1)
    with pytest.raises(DyskError, match="InvalidInput"):
        changed_ranges(named(server, container), before, OPTIONS)


def test_an_answer_without_ranges_is_not_the_end_of_a_list(
    monkeypatch: pytest.MonkeyPatch, server: PageBlobServer, container: str, own: Rest
) -> None:
    from blobfuse_dysk.azure.wire import PageList

    answers = {
        None: PageList([], "a"),
        "a": PageList([(0, PAGE)], "b"),
        "b": PageList([], "c"),
        "c": PageList([], None),
    }

    async def page_ranges(self: BlobClient, offset: int, length: int, *, marker: str | None, **more: Any) -> PageList:
        return answers[marker]

    monkeypatch.setattr(BlobClient, "page_ranges", page_ranges)
    assert list(allocated_ranges(named(server, container), OPTIONS)) == [(0, PAGE)]
