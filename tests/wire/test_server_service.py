"""The server as a service: details of HTTP, lists in several answers, copies, the control port."""

from __future__ import annotations

import socket

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.wire.rest import Rest

PAGE = 512
PATH = "disks/disk"


def client(server: PageBlobServer, auth: str = "key", timeout_s: float = 20) -> Rest:
    """A connection of its own."""
    return Rest(server.endpoint, server.account, server.key, auth=auth, ca_file=server.ca_file, timeout_s=timeout_s)


def raw(server: PageBlobServer, data: bytes) -> bytes:
    """Send bytes as they are, and read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        found = b""
        while piece := sock.recv(65536):
            found += piece
        return found


def test_pipelined_requests_are_answered_in_order(shared_server: PageBlobServer) -> None:
    lines = [
        f"GET /nosuchaccount/c{number}/b HTTP/1.1\r\nHost: x\r\nx-ms-client-request-id: {number}\r\n\r\n"
        for number in range(3000)
    ]
    found = raw(
        shared_server, ("".join(lines) + "GET /a/b/c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").encode()
    )
    ids = [line.split()[1] for line in found.splitlines() if line.startswith(b"x-ms-client-request-id")]
    assert ids == [str(number).encode() for number in range(3000)]
    assert found.count(b"HTTP/1.1 404") == 3001


def test_pipelined_requests_wait_for_a_slow_one(server: PageBlobServer) -> None:
    server.create("disks", "disk", PAGE)
    server.fault("delay", seconds=0.05, times=1)
    with client(server) as rest:
        assert [rest.get(PATH, 0, PAGE).status for _ in range(3)] == [206] * 3


@pytest.mark.parametrize("garbage", [b"hello\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_garbage_is_refused(shared_server: PageBlobServer, garbage: bytes) -> None:
    assert raw(shared_server, garbage).startswith(b"HTTP/1.1 400")


def test_a_client_that_waits_for_100_continue_is_told_to_go_on(shared_server: PageBlobServer) -> None:
    head = b"PUT /a/b/c HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    assert raw(shared_server, head + b"abc").startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 ")


def test_head_of_a_missing_blob_has_no_body(shared_server: PageBlobServer, container: str) -> None:
    with client(shared_server) as rest:
        for _ in range(2):  # a body would spoil the second answer
            reply = rest("HEAD", f"{container}/none")
            assert (reply.status, reply.code, reply.body) == (404, "ContainerNotFound", b"")


def test_idle_connections_are_closed(server: PageBlobServer) -> None:
    server.create("disks", "disk", PAGE)
    server.configure(idle_timeout_s=0.1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        assert sock.recv(1) == b""


def test_account_in_the_host_name(shared_server: PageBlobServer) -> None:
    head = f"HEAD /c/b HTTP/1.1\r\nHost: {shared_server.account}.blob.dysk.test:{shared_server.port}\r\n"
    known = raw(shared_server, f"{head}Connection: close\r\n\r\n".encode())
    assert b"NoAuthenticationInformation" in known
    unknown = raw(shared_server, head.replace(shared_server.account, "other").encode() + b"Connection: close\r\n\r\n")
    assert b"ResourceNotFound" in unknown


def test_whole_page_lists_by_marker(shared_server: PageBlobServer, container: str) -> None:
    shared_server.create(container, "disk", 1 << 20)
    path = f"{container}/disk"
    wanted = [(page * PAGE, page * PAGE + PAGE - 1) for page in range(0, 50, 2)]
    with client(shared_server) as rest:
        for start, _ in wanted:
            assert rest.put(path, start, bytes(PAGE)).status == 201
        found, marker, answers = [], "", 0
        while True:
            query = "comp=pagelist&maxresults=4" + (f"&marker={marker}" if marker else "")
            reply = rest("GET", path, query, {"x-ms-range": f"bytes={4 * PAGE}-{45 * PAGE - 1}"})
            ranges = reply.page_ranges()
            assert len(ranges) <= 4
            found += ranges
            answers += 1
            marker = reply.xml.findtext("NextMarker") or ""
            if not marker:
                break
        assert found == wanted[2:23]
        assert answers == 6
        assert rest("GET", path, "comp=pagelist&maxresults=0").code == "OutOfRangeQueryParameterValue"
        assert rest("GET", path, "comp=pagelist&marker=x").code == "InvalidQueryParameterValue"


def test_snapshots_over_several_lists(shared_server: PageBlobServer, container: str) -> None:
    with client(shared_server) as rest:
        for name in ("a", "b"):
            shared_server.create(container, name, PAGE)
            for _ in range(2):
                assert rest("PUT", f"{container}/{name}", "comp=snapshot").status == 201
        found, marker = [], ""
        while True:
            query = f"comp=list&include=snapshots&marker={marker}&maxresults=2&restype=container"
            listed = rest("GET", container, query).xml
            found += [(each.findtext("Name"), each.find("Snapshot") is not None) for each in listed.iter("Blob")]
            marker = listed.findtext("NextMarker") or ""
            if not marker:
                break
    assert found == [("a", True), ("a", True), ("a", False), ("b", True), ("b", True), ("b", False)]


def test_copy_of_a_snapshot(shared_server: PageBlobServer, container: str) -> None:
    source = shared_server.create(container, "disk", 1 << 20, sequence_number=5)
    with client(shared_server) as rest:
        assert rest.put(f"{container}/disk", 4096, b"a" * PAGE).status == 201
        taken = rest("PUT", f"{container}/disk", "comp=snapshot").headers["x-ms-snapshot"]
        assert rest.clear(f"{container}/disk", 4096, PAGE).status == 201
        copy = rest("PUT", f"{container}/copy", headers={"x-ms-copy-source": f"{source}?snapshot={taken}"})
        assert (copy.status, copy.headers["x-ms-copy-status"]) == (202, "success")
        assert rest.get(f"{container}/copy", 4096, PAGE).body == b"a" * PAGE
        assert rest("GET", f"{container}/copy", "comp=pagelist").page_ranges() == [(4096, 4096 + PAGE - 1)]
        missing = rest("PUT", f"{container}/copy", headers={"x-ms-copy-source": source + "-none"})
        assert missing.code == "CannotVerifyCopySource"


def test_a_pending_copy_reads_as_zeros_and_takes_no_change_until_it_ends(
    server: PageBlobServer, container: str
) -> None:
    """As a copy from another account: https://learn.microsoft.com/rest/api/storageservices/copy-blob, "Remarks"."""
    source = server.create(container, "disk", 1 << 20)
    server.configure(copies="pending")
    there = f"{container}/copy"
    with client(server) as rest:
        assert rest.put(f"{container}/disk", 4096, b"a" * PAGE).status == 201
        made = rest("PUT", there, headers={"x-ms-copy-source": source})
        assert (made.status, made.headers["x-ms-copy-status"]) == (202, "pending")
        assert rest("HEAD", there).headers["x-ms-copy-progress"] == f"0/{1 << 20}"
        assert not any(rest.get(there, 4096, PAGE).body)
        assert rest.put(there, 0, bytes(PAGE)).code == "PendingCopyOperation"
        assert rest("PUT", there, "comp=metadata").code == "PendingCopyOperation"
        assert rest("PUT", there, headers={"x-ms-copy-source": source}).code == "PendingCopyOperation"
        server.copy(container, "copy", "success", 1 << 20)
        assert rest.get(there, 4096, PAGE).body == b"a" * PAGE
        assert rest.put(there, 0, bytes(PAGE)).status == 201
        assert rest("HEAD", there).headers["x-ms-copy-status"] == "success"
        number = {"x-ms-sequence-number-action": "increment"}
        assert rest("PUT", there, "comp=properties", number).status == 200
        assert "x-ms-copy-status" not in rest("HEAD", there).headers, "it tells of blobs that are as they were copied"
    with pytest.raises(ValueError, match="a copy is not 'half'"):
        server.copy(container, "copy", "half")
    with pytest.raises(ValueError, match="copies is 'never'"):
        server.configure(copies="never")


def test_control_refuses_what_it_does_not_know(shared_server: PageBlobServer) -> None:
    with pytest.raises(ValueError, match="ContainerNotFound"):
        shared_server.blob("nowhere", "nothing")
    with pytest.raises(ValueError, match="multiple of 512"):
        shared_server.create("disks", "odd", 100)


def test_metadata_that_no_header_has_is_refused_and_utf8_is_given_by_its_bytes(shared_server: PageBlobServer) -> None:
    """It was taken, and each request for the blob had a bare 400 for an answer."""
    with pytest.raises(ValueError, match=r"metadata price: '5 €' has a character that is no byte"):
        shared_server.create("disks", "euro", 512, metadata={"price": "5 €"})
    with pytest.raises(ValueError, match=r"(Blob|Container)NotFound"):
        shared_server.blob("disks", "euro")
    shared_server.create("disks", "euro", 512, metadata={"price": "5 €".encode().decode("latin-1")})
    with client(shared_server) as rest:
        assert rest("HEAD", "disks/euro").headers["x-ms-meta-price"].encode("latin-1").decode() == "5 €"


def test_start_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="did not start"), PageBlobServer(colour="red"):
        pass
    assert "unknown option 'colour'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "a server needs an account"),
        (["--account", "name"], "an --account is not NAME=KEY"),
        (["--account", "name=k"], "key of account name is not base64"),
        (["--account", "name=YWJj", "--cert-file", "/no/such"], "cert_file '/no/such' is no file"),
        (["--account", "name=YWJj", "--tier", "P99"], "tier 'P99' is none of"),
    ],
)
def test_a_command_line_that_cannot_be_taken(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    from blobfuse_dysk.testing.server.__main__ import main

    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 1
    assert says in capsys.readouterr().err
