"""Each fault does what it says, to what it is meant for, as often as it is meant to."""

from __future__ import annotations

import http.client

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.polling import eventually
from tests.wire.rest import md5_of
from tests.wire.steered import NEW, OLD, PAGE, PATH, client, content


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "InvalidAuthenticationInfo"),
        (403, "AuthenticationFailed"),
        (404, "BlobNotFound"),
        (409, "LeaseAlreadyPresent"),
        (412, "ConditionNotMet"),
        (416, "InvalidRange"),
        (500, "OperationTimedOut"),
        (503, "ServerBusy"),
    ],
)
def test_an_error_answer_has_the_status_asked_for_and_does_nothing(
    steered: PageBlobServer, status: int, code: str
) -> None:
    steered.fault("error", status=status, operation="write")
    with client(steered) as rest:
        reply = rest.put(PATH, 0, NEW)
        assert (reply.status, reply.code) == (status, code)
        assert reply.xml.findtext("Code") == code
        assert rest.get(PATH, 0, PAGE).status == 206
    assert content(steered) == OLD


def test_error_with_retry_after_and_own_code(steered: PageBlobServer) -> None:
    steered.fault("error", status=503, code="IngressOverLimit", retry_after_s=7)
    with client(steered) as rest:
        reply = rest.put(PATH, 0, NEW)
    assert (reply.code, reply.headers["retry-after"]) == ("IngressOverLimit", "7")


def test_error_after_applying(steered: PageBlobServer) -> None:
    steered.fault("error", status=500, when="after")
    with client(steered) as rest:
        assert rest.put(PATH, 0, NEW).code == "OperationTimedOut"
    assert content(steered) == NEW


@pytest.mark.parametrize(("when", "left"), [("before", OLD), ("after", NEW)])
def test_a_reset_comes_before_or_after_the_write_is_done(steered: PageBlobServer, when: str, left: bytes) -> None:
    steered.fault("reset", when=when)
    with client(steered) as rest, pytest.raises(ConnectionResetError):
        rest.put(PATH, 0, NEW)
    assert content(steered) == left


@pytest.mark.parametrize(
    ("connection", "error"),
    [("close", http.client.RemoteDisconnected), ("reset", ConnectionResetError), ("open", TimeoutError)],
)
def test_a_lost_answer_is_of_a_write_that_was_done(
    steered: PageBlobServer, connection: str, error: type[Exception]
) -> None:
    steered.fault("lost", connection=connection)
    with client(steered, timeout_s=0.3) as rest, pytest.raises(error):
        rest.put(PATH, 0, NEW)
    assert content(steered) == NEW
    assert steered.stats()["writes_in_flight"] == 0


def test_late_is_applied_when_released(steered: PageBlobServer) -> None:
    steered.fault("late", operation="write", times=1)
    with client(steered) as rest, pytest.raises(ConnectionResetError):
        rest.put(PATH, 0, NEW)
    with client(steered) as rest:
        assert rest.get(PATH, 0, PAGE).body == OLD
        assert steered.stats()["writes_in_flight"] == 1
        assert steered.release() == 1
        assert rest.get(PATH, 0, PAGE).body == NEW
    stats = steered.stats()
    assert (stats["held_applied"], stats["writes_in_flight"], stats["held"]) == (1, 0, 0)


def test_late_is_applied_after_its_seconds(steered: PageBlobServer) -> None:
    steered.fault("late", operation="write", seconds=0.1, connection="close")
    with client(steered) as rest, pytest.raises(http.client.RemoteDisconnected):
        rest.put(PATH, 0, NEW)
    eventually(lambda: bool(steered.stats()["held_applied"]))
    assert content(steered) == NEW


def test_late_behind_an_error_answer(steered: PageBlobServer) -> None:
    steered.fault("late", operation="write", status=500)
    with client(steered) as rest:
        assert rest.put(PATH, 0, NEW).code == "OperationTimedOut"
        assert rest.get(PATH, 0, PAGE).body == OLD
        steered.release()
        assert rest.get(PATH, 0, PAGE).body == NEW


def test_late_is_refused_in_a_newer_epoch(steered: PageBlobServer) -> None:
    """What the epoch is for: a straggler lands no more once the sequence number was raised."""
    steered.fault("late", operation="write", times=1)
    with client(steered) as rest, pytest.raises(ConnectionResetError):
        rest.put(PATH, 0, NEW, x_ms_if_sequence_number_eq="0")
    with client(steered) as rest:
        raised = {"x-ms-sequence-number-action": "max", "x-ms-blob-sequence-number": "1"}
        assert rest("PUT", PATH, "comp=properties", raised).status == 200
        assert rest.put(PATH, 0, b"r" * PAGE, x_ms_if_sequence_number_eq="1").status == 201
    steered.release()
    stats = steered.stats()
    assert (stats["held_applied"], stats["held_refused"], stats["overlapping_writes"]) == (0, 1, 0)
    assert stats["codes"] == {"SequenceNumberConditionNotMet": 1}
    assert content(steered) == b"r" * PAGE


def test_a_request_that_is_held_waits_for_its_release(steered: PageBlobServer) -> None:
    steered.fault("delay", operation="write")
    with client(steered) as slow, client(steered) as other:
        slow.send("PUT", PATH, "comp=page", {"x-ms-page-write": "update", "x-ms-range": "bytes=0-511"}, NEW)
        eventually(lambda: steered.stats()["held"] == 1)
        assert other.get(PATH, 0, PAGE).body == OLD
        steered.release()
        assert slow.receive().status == 201
        assert other.get(PATH, 0, PAGE).body == NEW


def test_a_stalled_answer_stops_half_way_or_for_a_while(steered: PageBlobServer) -> None:
    steered.fault("stall", operation="read", times=1)
    with client(steered, timeout_s=0.3) as rest, pytest.raises(TimeoutError):
        rest.get(PATH, 0, 65536)
    with client(steered) as rest:
        steered.fault("stall", operation="read", seconds=0.05)
        assert rest.get(PATH, 0, PAGE).body == OLD


def test_a_short_answer_ends_too_soon(steered: PageBlobServer) -> None:
    steered.fault("short")
    with client(steered) as rest, pytest.raises(http.client.IncompleteRead) as cut:
        rest.get(PATH, 0, PAGE)
    assert cut.value.partial == OLD[: PAGE // 2]


def test_a_corrupt_answer_differs_in_one_byte_from_its_checksum(steered: PageBlobServer) -> None:
    steered.fault("corrupt", operation="read")
    with client(steered) as rest:
        reply = rest.get(PATH, 0, PAGE, x_ms_range_get_content_md5="true")
    assert len(reply.body) == PAGE
    assert sum(a != b for a, b in zip(reply.body, OLD, strict=True)) == 1
    assert reply.headers["content-md5"] == md5_of(OLD)


def test_corrupt_write_is_seen_with_a_checksum_only(steered: PageBlobServer) -> None:
    steered.fault("corrupt", operation="write")
    with client(steered) as rest:
        assert rest.put(PATH, 0, NEW, Content_MD5=md5_of(NEW)).code == "Md5Mismatch"
        assert rest.get(PATH, 0, PAGE).body == OLD
        assert rest.put(PATH, 0, NEW).status == 201
    assert content(steered) not in (OLD, NEW)


def test_a_wrong_etag_is_not_the_blob_s(steered: PageBlobServer) -> None:
    etag = steered.blob("disks", "disk")["etag"]
    steered.fault("wrong_etag")
    with client(steered) as rest:
        reply = rest.get(PATH, 0, PAGE)
    assert (reply.body, reply.headers["etag"] == etag) == (OLD, False)


def test_a_request_in_a_black_hole_is_not_done(steered: PageBlobServer) -> None:
    steered.fault("blackhole")
    with client(steered, timeout_s=0.3) as rest, pytest.raises(TimeoutError):
        rest.put(PATH, 0, NEW)
    assert content(steered) == OLD
    assert steered.stats()["writes_in_flight"] == 0


def test_skip_and_times(steered: PageBlobServer) -> None:
    steered.fault("error", status=503, skip=2, times=3)
    with client(steered) as rest:
        assert [rest.get(PATH, 0, PAGE).status for _ in range(7)] == [206, 206, 503, 503, 503, 206, 206]
    assert steered.faults()[0]["hits"] == 3
    assert steered.stats()["faults"] == {"error": 3}


def test_probability_is_repeatable() -> None:
    def struck() -> list[int]:
        with PageBlobServer(seed=11) as server:
            server.create("disks", "disk", PAGE)
            server.fault("error", status=503, probability=0.5)
            with client(server) as rest:
                return [rest.get(PATH, 0, PAGE).status for _ in range(40)]

    first = struck()
    assert first == struck()
    assert 5 < first.count(503) < 35


def test_matches_by_operation_blob_and_range(steered: PageBlobServer) -> None:
    steered.create("disks", "other", 1 << 20)
    steered.fault("error", status=503, operation=["put_page", "lease"], blob="disks/d*", offset=4096, length=PAGE)
    with client(steered) as rest:
        assert rest.get(PATH, 4096, PAGE).status == 206
        assert rest.put(PATH, 0, NEW).status == 201
        assert rest.clear(PATH, 4096, PAGE).status == 201
        assert rest.put("disks/other", 4096, NEW).status == 201
        assert rest.put(PATH, 4096, NEW).status == 503
        assert rest.put(PATH, 4096 - PAGE, NEW * 2).status == 503
        assert rest.put(PATH, 4096 + PAGE, NEW).status == 201


def test_matches_long_page_lists(steered: PageBlobServer) -> None:
    """A fragmented blob: the service runs into its own time limit when asked for too much at once."""
    steered.fault("error", status=500, operation="get_page_ranges", min_length=8192)
    with client(steered) as rest:
        assert rest("GET", PATH, "comp=pagelist").code == "OperationTimedOut"
        for length, status in ((8192, 500), (8191, 200), (4096, 200)):
            reply = rest("GET", PATH, "comp=pagelist", {"x-ms-range": f"bytes=512-{512 + length - 1}"})
            assert reply.status == status


def test_first_rule_decides_and_one_can_be_taken_back(steered: PageBlobServer) -> None:
    first = steered.fault("error", status=503)
    steered.fault("error", status=404)
    with client(steered) as rest:
        assert rest.get(PATH, 0, PAGE).status == 503
        steered.clear_faults(first)
        assert rest.get(PATH, 0, PAGE).status == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "explode"},
        {"action": "error"},
        {"action": "reset", "operation": "nothing"},
        {"action": "reset", "when": "later"},
        {"action": "lost", "connection": "half"},
        {"action": "reset", "probability": 2},
        {"action": "reset", "colour": "red"},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(steered: PageBlobServer, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"unknown|needs|not|unexpected"):
        steered.fault(**fields)  # type: ignore[arg-type]
    assert steered.faults() == []
