"""TLS: certificates and host names are checked, and everything else works as without it."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from blobfuse_dysk.azure.credential import access
from blobfuse_dysk.azure.pool import HttpPool
from blobfuse_dysk.azure.signing import AnonymousSigner
from blobfuse_dysk.azure.tls import tls_context
from blobfuse_dysk.azure.tlsconnection import TlsConnection
from blobfuse_dysk.azure.wire import Reply, Request
from blobfuse_dysk.disk import Endpoint
from blobfuse_dysk.errors import CredentialError, TransportError
from blobfuse_dysk.testing.server.certificates import make_certificates
from tests.unit.scripted import Peer, answer, scripted
from tests.unit.trusted import FarSide, Trust

PUT = Request("PUT", "/x", "", "/x", "", "", "Host:h\n", bytes(range(256)) * 20_000, most=4 << 20)
GET = Request("GET", "/x", "", "/x", "", "", "Host:h\n", most=4 << 20)


async def ask(pool: HttpPool, request: Request = GET, timeout_s: float = 20) -> Reply:
    return await pool.request(request, AnonymousSigner(), trio.current_time() + timeout_s)


async def big(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(answer(bytes(range(256)) * 8192))


async def test_large_bodies_both_ways_on_one_connection(certificates: Trust) -> None:
    ca_file, context = certificates
    async with scripted(big, tls=context) as endpoint, HttpPool(endpoint, ssl_context=tls_context(ca_file)) as pool:
        for request in (GET, PUT, GET):
            assert (await ask(pool, request)).body == bytes(range(256)) * 8192
        assert pool.connections == 1


async def test_a_small_body_goes_with_its_head(certificates: Trust) -> None:
    ca_file, context = certificates
    request = Request("PUT", "/x", "", "/x", "", "", "Host:h\n", bytes(512), most=4 << 20)
    async with scripted(big, tls=context) as endpoint, HttpPool(endpoint, ssl_context=tls_context(ca_file)) as pool:
        assert (await ask(pool, request, timeout_s=5)).status == 200


class _Choking(socket.socket):
    """Takes a part of a record, and breaks when it is to take more."""

    calls = 0

    def send(self, data, flags=0):  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.calls == 2:
            raise ConnectionResetError
        return 100


async def test_a_record_of_which_a_part_has_gone_counts_as_sent(certificates: Trust) -> None:
    ours, theirs = socket.socketpair()
    with theirs, _Choking(ours.family, ours.type, ours.proto, fileno=ours.detach()) as sock:
        sock.setblocking(False)
        theirs.shutdown(socket.SHUT_WR)
        connection = TlsConnection(sock, FarSide(certificates).tls)
        with pytest.raises(TransportError) as caught:
            await connection.exchange(b"PUT / HTTP/1.1\r\n\r\n", bytes(512), bytearray(4096), no_body=False)
        assert caught.value.sent


class _Noting(socket.socket):
    """Takes all, and notes how much that is each time."""

    sizes: list[int]

    def send(self, data, flags=0):  # type: ignore[no-untyped-def]
        self.sizes.append(len(data))
        return len(data)


async def test_a_large_body_is_encrypted_by_and_by(certificates: Trust) -> None:
    """What is encrypted at once stays in memory, for each connection."""
    ours, theirs = socket.socketpair()
    with theirs, _Noting(ours.family, ours.type, ours.proto, fileno=ours.detach()) as sock:
        sock.setblocking(False)
        sock.sizes = []
        theirs.shutdown(socket.SHUT_WR)
        connection = TlsConnection(sock, FarSide(certificates).tls)
        with pytest.raises(TransportError, match="connection lost before the answer"):
            await connection.exchange(b"PUT", bytes(1 << 20), bytearray(4096), no_body=False)
    assert len(sock.sizes) == 17
    assert max(sock.sizes) < 65 << 10


async def test_an_unknown_authority_is_refused_with_a_remedy(certificates: Trust) -> None:
    """The server is told as well."""
    told = []

    async def script(peer: Peer) -> None:
        try:
            await peer.request()
        except trio.BrokenResourceError as error:
            told.append(str(error.__cause__))

    async with scripted(script, tls=certificates.server) as endpoint, HttpPool(endpoint) as pool:
        with pytest.raises(TransportError, match="certificate is not accepted") as caught:
            await ask(pool)
        assert not caught.value.sent
        assert "ca_file" in (caught.value.remedy or "")
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert len(told) == 1
    assert "alert unknown ca" in told[0]


async def test_a_server_that_hangs_up_in_the_middle_of_the_handshake(
    certificates: Trust, autojump_clock: MockClock
) -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.receive_some(1 << 16)

    async with scripted(script) as found:
        endpoint = Endpoint("https", found.host, found.port)
        async with HttpPool(endpoint, ssl_context=tls_context(certificates.ca_file)) as pool:
            with pytest.raises(TransportError, match=r"cannot connect to .*EOF occurred") as caught:
                await ask(pool)
            assert not caught.value.sent


async def test_another_hosts_certificate_is_refused(certificates: Trust) -> None:
    ca_file, context = certificates
    async with scripted(big, tls=context) as endpoint:
        other = Endpoint("https", "localhost", endpoint.port)
        async with HttpPool(other, ssl_context=tls_context(ca_file)) as pool:
            with pytest.raises(TransportError, match="certificate is not accepted"):
                await ask(pool)


async def test_later_connections_resume_the_session(certificates: Trust) -> None:
    ca_file, context = certificates

    async def script(peer: Peer) -> None:
        await peer.request()
        assert isinstance(peer.stream, trio.SSLStream)
        await peer.send(answer(str(peer.stream.session_reused).encode()))
        await trio.aclose_forcefully(peer.stream)

    async with scripted(script, tls=context) as endpoint, HttpPool(endpoint, ssl_context=tls_context(ca_file)) as pool:
        assert (await ask(pool)).body == b"False"
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            assert (await ask(pool)).body == b"True"


async def test_a_server_without_tls() -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.receive_some(100)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with scripted(script) as plain, HttpPool(Endpoint("https", plain.host, plain.port)) as pool:
        with pytest.raises(TransportError, match="cannot connect to https://") as caught:
            await ask(pool)
        assert isinstance(caught.value.__cause__, ssl.SSLError)


async def test_a_cut_answer_and_a_stale_connection(certificates: Trust) -> None:
    ca_file, context = certificates

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.send(answer(b"0123456789")[:-1])
        else:
            await peer.send(answer(b"ok"))
            await peer.request()

    async with scripted(script, tls=context) as endpoint, HttpPool(endpoint, ssl_context=tls_context(ca_file)) as pool:
        with pytest.raises(TransportError) as caught:
            await ask(pool)
        assert (caught.value.sent, caught.value.stale) == (True, False)
        assert (await ask(pool)).body == b"ok"
        with pytest.raises(TransportError) as caught:
            await ask(pool)
        assert (caught.value.sent, caught.value.stale) == (True, True)


async def test_a_closed_idle_connection_is_dropped_before_use(certificates: Trust) -> None:
    ca_file, context = certificates
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(str(peer.number).encode()))
        if peer.number:
            await peer.request()
        await trio.aclose_forcefully(peer.stream)
        closed.set()

    async with scripted(script, tls=context) as endpoint, HttpPool(endpoint, ssl_context=tls_context(ca_file)) as pool:
        assert (await ask(pool)).body == b"0"
        await closed.wait()
        assert (await ask(pool)).body == b"1"


@pytest.mark.parametrize("handshake", [True, False])
async def test_a_peer_that_falls_silent_runs_into_the_time_limit(
    handshake: bool, certificates: Trust, autojump_clock: MockClock
) -> None:
    ca_file, context = certificates

    async def script(peer: Peer) -> None:
        if handshake:
            await peer.request()
        await trio.sleep_forever()

    async with scripted(script, tls=context if handshake else None) as found:
        endpoint = Endpoint("https", found.host, found.port)
        async with HttpPool(endpoint, ssl_context=tls_context(ca_file)) as pool:
            with pytest.raises(TransportError, match="time limit") as caught:
                await ask(pool, timeout_s=6)
            assert caught.value.sent == handshake


def test_a_ca_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pem", tmp_path):
        with pytest.raises(CredentialError, match="certificate authorities"):
            tls_context(str(path))
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(CredentialError, match="certificate authorities"):
        tls_context(str(tmp_path / "junk.pem"))


class Elsewhere:
    """Another process, which may read what this one may not even look at."""

    def __init__(self, ca_file: str) -> None:
        self._ca_file = ca_file

    def authorities(self, path: str) -> str:
        if path != "/only/root/ca.pem":
            raise FileNotFoundError(2, "No such file or directory")
        return Path(self._ca_file).read_text()


def test_authorities_that_only_another_process_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_certificates(tmp_path, ["localhost"])
    monkeypatch.setattr(access, "_delegate", Elsewhere(made.ca_file))
    assert len(tls_context("/only/root/ca.pem").get_ca_certs()) == 1
    with pytest.raises(CredentialError, match="No such file"):
        tls_context("/only/root/other.pem")
    assert len(tls_context().get_ca_certs()) != 1  # the system's are read by this process
