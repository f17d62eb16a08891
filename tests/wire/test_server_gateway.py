"""Faults of what stands between client and service: each answers, alters or loses what it says it does."""

from __future__ import annotations

import http.client
import socket
import time
from urllib.parse import urlsplit

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.polling import eventually
from tests.wire.steered import NEW, OLD, PAGE, PATH, client, content


def raw_answer(server: PageBlobServer) -> bytes:
    """All that comes for an unsigned GET of PATH's first page until the connection ends, or half a second is over."""
    parts = urlsplit(server.endpoint)
    assert parts.port is not None
    with socket.create_connection((parts.hostname, parts.port), timeout=0.5) as sock:
        sock.sendall(f"GET {parts.path}/{PATH} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        found = b""
        try:
            while piece := sock.recv(65536):
                found += piece
        except TimeoutError:
            pass
        return found


@pytest.mark.parametrize("status", [200, 302, 307, 400, 404, 407, 502])
def test_a_gateway_answers_with_a_page_of_its_own_and_nothing_of_the_service(
    steered: PageBlobServer, status: int
) -> None:
    steered.fault("gateway", status=status)
    with client(steered) as rest:
        reply = rest.put(PATH, 0, NEW)
        assert rest.get(PATH, 0, PAGE).status == status
        assert rest("HEAD", PATH).body == b""
    assert reply.status == status
    assert reply.body.startswith(b"<html>")
    assert reply.headers["content-type"] == "text/html"
    assert [name for name in reply.headers if name.startswith("x-ms-")] == []
    assert ("location" in reply.headers) == (status in (302, 307))
    assert ("proxy-authenticate" in reply.headers) == (status == 407)
    stats = steered.stats()
    assert (stats["total_requests"], stats["faults"]) == (0, {"gateway": 3})
    assert content(steered) == OLD


def test_a_gateway_answers_whoever_asks_whatever_the_service_would_say(steered: PageBlobServer) -> None:
    steered.fault("gateway", status=404)
    with client(steered, key="bm90IHRoZSBrZXk=") as rest:
        reply = rest.get(PATH, 0, PAGE)
    assert (reply.status, reply.code) == (404, "")


def test_a_gateway_s_answer_after_the_write_was_done(steered: PageBlobServer) -> None:
    steered.fault("gateway", status=502, when="after")
    with client(steered) as rest:
        reply = rest.put(PATH, 0, NEW)
    assert (reply.status, reply.code) == (502, "")
    assert content(steered) == NEW


def test_who_follows_a_gateway_s_redirect_is_seen(steered: PageBlobServer) -> None:
    steered.fault("gateway", status=307, times=1)
    with client(steered) as rest:
        where = urlsplit(rest.get(PATH, 0, PAGE).headers["location"])
        assert f"{where.hostname}:{where.port}" == urlsplit(steered.endpoint).netloc
        connection = http.client.HTTPConnection(where.hostname or "", where.port)
        connection.request("GET", where.path)
        assert connection.getresponse().status >= 400
        connection.close()
    assert steered.stats()["total_requests"] == 1


@pytest.mark.parametrize("status", [100, 101, 102, 103])
def test_interim_answers_come_before_the_answer(steered: PageBlobServer, status: int) -> None:
    steered.fault("interim", status=status, count=3)
    answer = raw_answer(steered)
    first, second, third, last = answer.split(b"HTTP/1.1 ")[1:]
    assert first == second == third
    assert first.startswith(b"%d " % status)
    assert last.startswith(b"401 ")


def test_a_write_behind_interim_answers_is_done_once(steered: PageBlobServer) -> None:
    steered.fault("interim", status=100, count=2)
    with client(steered) as rest:
        assert rest.put(PATH, 0, NEW).status == 201  # http.client skips 100, and only that
    assert steered.stats()["requests"] == {"put_page": 1}
    assert content(steered) == NEW


def test_headers_are_replaced_added_or_left_out(steered: PageBlobServer) -> None:
    steered.fault("headers", headers={"Date": "Fri, 31 Dec 9999 23:59:59 GMT", "X-Odd": "1", "ETag": None})
    with client(steered) as rest:
        reply = rest.get(PATH, 0, PAGE)
    assert (reply.status, reply.body) == (206, OLD)
    assert (reply.headers["date"], reply.headers["x-odd"]) == ("Fri, 31 Dec 9999 23:59:59 GMT", "1")
    assert "etag" not in reply.headers


def test_a_gateway_s_date_is_that_of_refusals_too(steered: PageBlobServer) -> None:
    steered.fault("headers", headers={"Date": "Thu, 01 Jan 1970 00:00:00 GMT"})
    with client(steered, key="bm90IHRoZSBrZXk=") as rest:
        reply = rest.get(PATH, 0, PAGE)
    assert (reply.status, reply.code) == (403, "AuthenticationFailed")
    assert reply.headers["date"] == "Thu, 01 Jan 1970 00:00:00 GMT"


def test_an_answer_ends_with_its_connection(steered: PageBlobServer) -> None:
    steered.fault("close_delimited")
    with client(steered) as rest:
        reply = rest.get(PATH, 0, PAGE)
        assert (reply.status, reply.body, reply.headers["connection"]) == (206, OLD, "close")
        assert not {"content-length", "transfer-encoding"} & set(reply.headers)
    with client(steered) as rest:
        assert rest.put(PATH, 0, NEW).status == 201
    with client(steered) as rest:
        assert rest("HEAD", PATH).headers["content-length"] == str(1 << 20)
    assert content(steered) == NEW


def test_an_answer_that_ends_with_its_connection_too_soon(steered: PageBlobServer) -> None:
    steered.fault("close_delimited", missing=12)
    with client(steered) as rest:
        reply = rest.get(PATH, 0, PAGE)
    assert (reply.status, reply.body) == (206, OLD[:-12])


def test_a_rule_for_a_time_begins_with_its_first_request(steered: PageBlobServer) -> None:
    steered.fault("gateway", status=502, for_s=0.2)
    time.sleep(0.3)  # nothing came: it has not begun
    with client(steered) as rest:
        assert rest.get(PATH, 0, PAGE).status == 502
        eventually(lambda: rest.get(PATH, 0, PAGE).status == 206)
        assert rest.get(PATH, 0, PAGE).status == 206


def test_forgotten_connections_say_nothing_and_new_ones_are_served(steered: PageBlobServer) -> None:
    with client(steered, timeout_s=0.3) as old, client(steered) as new:
        assert old.get(PATH, 0, PAGE).status == 206
        assert steered.forget_connections() == 1
        with pytest.raises(TimeoutError):
            old.put(PATH, 0, NEW)
        assert new.get(PATH, 0, PAGE).body == OLD
        steered.outage("silent")
        steered.outage(None)  # which wakes the others, not those that are dead
        assert new.get(PATH, 0, PAGE).body == OLD
    assert content(steered) == OLD


def test_a_request_that_finds_its_connection_forgotten_is_not_done(steered: PageBlobServer) -> None:
    with client(steered, timeout_s=0.3) as first, client(steered, timeout_s=0.3) as second:
        assert (first.get(PATH, 0, PAGE).status, second.get(PATH, 0, PAGE).status) == (206, 206)
        steered.fault("forget", times=1)
        for rest in (first, second):
            with pytest.raises(TimeoutError):
                rest.put(PATH, 0, NEW)
    assert steered.stats()["forgotten"] == 2
    assert steered.stats()["writes_in_flight"] == 0
    assert content(steered) == OLD


def test_an_answer_on_a_forgotten_connection_is_lost(steered: PageBlobServer) -> None:
    steered.fault("delay", operation="write")
    with client(steered, timeout_s=0.3) as old:
        old.send("PUT", PATH, "comp=page", {"x-ms-page-write": "update", "x-ms-range": "bytes=0-511"}, NEW)
        eventually(lambda: steered.stats()["held"] == 1)
        assert steered.forget_connections() == 1
        assert steered.release() == 1
        with pytest.raises(TimeoutError):
            old.receive()
    assert content(steered) == NEW


def test_an_idle_connection_dies_without_a_word(steered: PageBlobServer) -> None:
    steered.configure(idle_death_s=0.1, idle_timeout_s=5)
    with client(steered, timeout_s=0.3) as rest:
        assert rest.get(PATH, 0, PAGE).status == 206
        eventually(lambda: steered.stats()["forgotten"] == 1)
        with pytest.raises(TimeoutError):
            rest.get(PATH, 0, PAGE)


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "gateway"},
        {"action": "gateway", "status": 100},
        {"action": "interim", "status": 200},
        {"action": "interim"},
        {"action": "error", "status": 102},
        {"action": "headers"},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(steered: PageBlobServer, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"needs|cannot have status"):
        steered.fault(**fields)  # type: ignore[arg-type]
    assert steered.faults() == []
