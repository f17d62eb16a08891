"""The server when it is slow, limited, gone for a while, or started again; and time made to pass."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.polling import eventually
from tests.wire.rest import Reply, Rest

PAGE = 512
PATH = "disks/disk"


def client(server: PageBlobServer, auth: str = "key", timeout_s: float = 20) -> Rest:
    """A connection of its own."""
    return Rest(server.endpoint, server.account, server.key, auth=auth, ca_file=server.ca_file, timeout_s=timeout_s)


def read(server: PageBlobServer, auth: str = "key", timeout_s: float = 20) -> Reply:
    """One page over a new connection."""
    with client(server, auth, timeout_s) as rest:
        return rest.get(PATH, 0, PAGE)


def test_lease_time_can_be_made_to_pass(server: PageBlobServer) -> None:
    server.create("disks", "disk", PAGE)
    with client(server) as rest:
        assert rest.lease(PATH, "acquire", duration="60").status == 201
        server.elapse_leases(59)
        assert server.blob("disks", "disk")["lease"]["state"] == "leased"
        server.elapse_leases(1)
        assert rest("HEAD", PATH).headers["x-ms-lease-state"] == "expired"


def test_in_a_silent_outage_nothing_is_answered_and_nothing_done(server: PageBlobServer) -> None:
    server.create("disks", "disk", PAGE)
    with client(server, timeout_s=10) as before:
        assert before.get(PATH, 0, PAGE).status == 206
        server.outage("silent")
        before.send("GET", PATH, headers={"x-ms-range": "bytes=0-511"})
        with pytest.raises(TimeoutError):
            read(server, timeout_s=0.3)
        assert server.stats()["requests"]["get_blob"] == 1
        server.outage(None)
        assert before.receive().status == 206
        assert read(server).status == 206


def test_outage_holds_back_what_was_due(server: PageBlobServer) -> None:
    server.create("disks", "disk", PAGE)
    server.fault("delay", times=1)
    with client(server) as rest:
        rest.send("GET", PATH, headers={"x-ms-range": "bytes=0-511"})
        eventually(lambda: server.stats()["held"] == 1)
        server.outage("silent")
        server.release()
        assert server.stats()["requests"] == {"get_blob": 1}
        server.outage(None)
        assert rest.receive().status == 206


def test_in_a_refusing_outage_connections_are_reset(server: PageBlobServer) -> None:
    server.create("disks", "disk", PAGE)
    with client(server) as before:
        assert before.get(PATH, 0, PAGE).status == 206
        server.outage("refuse")
        with pytest.raises(ConnectionResetError):
            before.get(PATH, 0, PAGE)
        with pytest.raises(ConnectionRefusedError):
            read(server)
        server.outage("silent")
        with pytest.raises(TimeoutError):
            read(server, timeout_s=0.3)
        server.outage(None)
        assert read(server).status == 206
        with pytest.raises(ValueError, match="outage"):
            server.outage("loud")


def test_refusing_outage_reaches_a_connection_whose_handshake_is_under_way() -> None:
    with PageBlobServer(https=True) as server:
        url = urlsplit(server.endpoint)
        received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=server.ca_file)
        tls = context.wrap_bio(received, to_send, server_hostname=url.hostname)
        with (
            socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as sock,
            pytest.raises(ConnectionError),
        ):
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            sock.sendall(to_send.read())
            received.write(sock.recv(1 << 16))  # so the server has the connection in hand
            server.outage("refuse")
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    received.write(sock.recv(1 << 16))
            tls.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            sock.sendall(to_send.read())
            if not sock.recv(1):
                raise ConnectionResetError


def test_tier_refuses_what_is_above_its_limit(server: PageBlobServer) -> None:
    server.create("disks", "disk", 1 << 20)
    server.configure(tier="0.001/1")
    with client(server) as rest:
        assert rest.get(PATH, 0, PAGE).status == 206
        refused = rest.get(PATH, 0, PAGE)
        assert (refused.status, refused.code) == (503, "ServerBusy")
        assert rest("HEAD", PATH).status == 200
        server.configure(tier=None)
        assert rest.get(PATH, 0, PAGE).status == 206


def test_beyond_a_tier_s_limit_answers_are_delayed(server: PageBlobServer) -> None:
    server.create("disks", "disk", 1 << 20)
    server.configure(tier="0.001/1", throttle="delay")
    assert read(server).status == 206
    with pytest.raises(TimeoutError):
        read(server, timeout_s=0.3)
    assert server.stats()["requests"] == {"get_blob": 1}


def test_an_answer_takes_as_long_as_the_latency_says(server: PageBlobServer) -> None:
    server.create("disks", "disk", 1 << 20)
    server.configure(latency_ms=1e6)
    with pytest.raises(TimeoutError):
        read(server, timeout_s=0.3)
    server.configure(latency_ms="lognormal:1,0.5")
    assert read(server).status == 206


@pytest.mark.parametrize(
    "changes",
    [{"latency_ms": "often"}, {"latency_ms": -1}, {"tier": "P99"}, {"tier": "0/1"}, {"throttle": "maybe"}, {"port": 1}],
)
def test_malformed_changes_change_nothing(server: PageBlobServer, changes: dict[str, object]) -> None:
    server.create("disks", "disk", 1 << 20)
    with pytest.raises(ValueError, match=r"latency|tier|throttle|port|convert"):
        server.configure(**{"tier": "0.001/1", **changes})  # type: ignore[arg-type]
    assert [read(server).status for _ in range(2)] == [206, 206]


def test_killed_server_comes_back_as_it_was(tmp_path: Path) -> None:
    with PageBlobServer(directory=str(tmp_path / "data")) as server:
        with client(server) as rest:
            assert rest("PUT", "disks", "restype=container").status == 201
            assert rest.create(PATH, 1 << 40, x_ms_meta_a="b").status == 201
            assert rest.put(PATH, 1 << 39, b"x" * PAGE).status == 201
            taken = rest("PUT", PATH, "comp=snapshot").headers["x-ms-snapshot"]
            lease_id = rest.lease(PATH, "acquire", duration="60").headers["x-ms-lease-id"]
            raised = {"x-ms-sequence-number-action": "max", "x-ms-blob-sequence-number": "9", "x-ms-lease-id": lease_id}
            assert rest("PUT", PATH, "comp=properties", raised).status == 200
            assert rest.clear(PATH, 1 << 39, PAGE, x_ms_lease_id=lease_id).status == 201
        port, before = server.port, server.blob("disks", "disk")
        server.kill()
        server.start()
        assert server.port == port
        after = server.blob("disks", "disk")
        assert {**after, "etag": ""} == {**before, "etag": ""}
        with client(server) as rest:
            query = f"snapshot={taken}"
            assert rest.get(PATH, 1 << 39, PAGE, query).body == b"x" * PAGE
            assert rest("GET", PATH, f"comp=pagelist&{query}").page_ranges() == [(1 << 39, (1 << 39) + 511)]
            assert rest("GET", PATH, "comp=pagelist").page_ranges() == []
            assert rest.lease(PATH, "renew", id=lease_id).status == 200
            assert rest("PUT", "more", "restype=container").status == 201
        server.restart()
        server.remove("disks", "disk")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["state.json"]


def test_paused_server_answers_when_resumed(server: PageBlobServer) -> None:
    server.create("disks", "disk", PAGE)
    server.pause()
    with pytest.raises(TimeoutError):
        read(server, timeout_s=0.3)
    server.resume()
    assert read(server).status == 206
