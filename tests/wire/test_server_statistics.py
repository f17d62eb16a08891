"""What the server counts."""

from __future__ import annotations

from blobfuse_dysk.testing import PageBlobServer
from tests.polling import eventually
from tests.wire.rest import Rest

PAGE = 512
DATA = b"d" * PAGE
PATH = "disks/disk"
UPDATE = {"x-ms-page-write": "update", "x-ms-range": "bytes=0-511"}


def client(server: PageBlobServer) -> Rest:
    """A connection of its own."""
    return Rest(server.endpoint, server.account, server.key)


def test_requests_bytes_and_codes(server: PageBlobServer) -> None:
    server.create("disks", "disk", 1 << 20)
    with client(server) as rest:
        rest.put(PATH, 0, DATA * 4)
        rest.clear(PATH, 0, PAGE)
        rest.get(PATH, 0, 3 * PAGE)
        rest.get(PATH, 1 << 30, PAGE)
        rest("GET", PATH, "comp=pagelist")
        rest.lease(PATH, "acquire", duration="15")
        rest("GET", "nowhere/nothing")
        rest("PATCH", PATH)
    stats = server.stats()
    assert stats["requests"] == {
        "put_page": 1,
        "clear_page": 1,
        "get_blob": 3,
        "get_page_ranges": 1,
        "lease_acquire": 1,
        "unknown": 1,
    }
    assert stats["codes"] == {"InvalidRange": 1, "ContainerNotFound": 1, "UnsupportedHttpVerb": 1}
    assert stats["statuses"] == {"201": 3, "206": 1, "416": 1, "200": 1, "404": 1, "405": 1}
    assert stats["total_requests"] == 8
    blob = stats["blobs"]["devstoreaccount1/disks/disk"]
    assert (blob["bytes_written"], blob["bytes_read"]) == (4 * PAGE, 3 * PAGE)
    assert blob["requests"]["get_blob"] == 2
    server.reset_stats()
    assert server.stats()["total_requests"] == 0


def test_writes_without_lease_or_epoch(server: PageBlobServer) -> None:
    server.create("disks", "disk", 1 << 20)
    with client(server) as rest:
        lease_id = rest.lease(PATH, "acquire", duration="-1").headers["x-ms-lease-id"]
        rest.put(PATH, 0, DATA, x_ms_lease_id=lease_id, x_ms_if_sequence_number_eq="0")
        assert (server.stats()["writes_without_lease"], server.stats()["writes_without_epoch"]) == (0, 0)
        rest.put(PATH, 0, DATA, x_ms_lease_id=lease_id)
        rest.clear(PATH, PAGE, PAGE, x_ms_if_sequence_number_eq="0")
    stats = server.stats()
    assert (stats["writes_without_lease"], stats["writes_without_epoch"]) == (1, 1)
    assert [(each["offset"], each["lease"], each["epoch"]) for each in stats["without_examples"]] == [
        (0, True, None),
        (PAGE, False, 0),
    ]
    assert stats["condition_failures"] == 1


def test_writes_that_overlap_in_flight_are_counted(server: PageBlobServer) -> None:
    server.create("disks", "disk", 1 << 20)
    server.fault("delay", operation="write", offset=0, length=4 * PAGE)
    with client(server) as first, client(server) as second, client(server) as third:
        first.send("PUT", PATH, "comp=page", UPDATE, DATA)
        eventually(lambda: server.stats()["writes_in_flight"] == 1)
        third.send("PUT", PATH, "comp=page", {**UPDATE, "x-ms-range": "bytes=512-1023"}, DATA)
        eventually(lambda: server.stats()["writes_in_flight"] == 2)
        assert server.stats()["overlapping_writes"] == 0
        second.send("PUT", PATH, "comp=page", {**UPDATE, "x-ms-range": "bytes=0-1023"}, DATA * 2)
        eventually(lambda: server.stats()["writes_in_flight"] == 3)
        server.release()
        assert [each.receive().status for each in (first, second, third)] == [201] * 3
    stats = server.stats()
    assert (stats["overlapping_writes"], stats["writes_in_flight"]) == (2, 0)
    assert stats["overlap_examples"][0] == {
        "blob": "devstoreaccount1/disks/disk",
        "first": {"offset": 0, "length": PAGE, "epoch": None, "clears": False},
        "second": {"offset": 0, "length": 2 * PAGE, "epoch": None, "clears": False},
    }
    assert stats["blobs"]["devstoreaccount1/disks/disk"]["max_writes_in_flight"] == 3


def test_a_write_of_an_old_epoch_overlaps_nothing(server: PageBlobServer) -> None:
    server.create("disks", "disk", 1 << 20)
    server.fault("late", operation="write", times=2, connection="close", seconds=None)
    for epoch in ("0", "0"):
        with client(server) as rest:
            rest.send("PUT", PATH, "comp=page", {**UPDATE, "x-ms-if-sequence-number-eq": epoch}, DATA)
            eventually(lambda: server.stats()["faults"].get("late", 0) > 0)
    eventually(lambda: server.stats()["overlapping_writes"] == 1)
    with client(server) as rest:
        rest("PUT", PATH, "comp=properties", {"x-ms-sequence-number-action": "increment"})
        rest.put(PATH, 0, DATA, x_ms_if_sequence_number_eq="1")
    assert server.stats()["overlapping_writes"] == 1


def test_a_straggler_of_an_old_epoch_overlaps_nothing(server: PageBlobServer) -> None:
    """As when the former writer of a disk that was taken over still sends: refused, so it can harm nobody."""
    server.create("disks", "disk", 1 << 20)
    with client(server) as rest, client(server) as straggler:
        rest("PUT", PATH, "comp=properties", {"x-ms-sequence-number-action": "increment"})
        server.fault("delay", operation="write", times=1)
        rest.send("PUT", PATH, "comp=page", {**UPDATE, "x-ms-if-sequence-number-eq": "1"}, DATA)
        eventually(lambda: server.stats()["writes_in_flight"] == 1)
        old = straggler("PUT", PATH, "comp=page", {**UPDATE, "x-ms-if-sequence-number-eq": "0"}, DATA)
        assert old.status == 412
        server.release()
        assert rest.receive().status == 201
    assert server.stats()["overlapping_writes"] == 0
