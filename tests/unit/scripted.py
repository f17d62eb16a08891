"""A server in the test's own process that does to each connection what the test says, byte by byte."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.azure.pool import HttpPool
from blobfuse_dysk.azure.signing import AnonymousSigner
from blobfuse_dysk.azure.wire import Buffer, Reply, Request
from blobfuse_dysk.disk import DiskAddress, Endpoint
from tests.unit.trusted import Trust

__all__ = ["Peer", "Script", "answer", "ask", "client_to", "forever", "gateways", "get", "pool_to", "scripted"]


class Peer:
    """One connection, from the server's side. number: 0 for the first that was made."""

    def __init__(self, stream: trio.abc.Stream, number: int) -> None:
        self.stream = stream
        self.number = number
        self._received = bytearray()

    async def request(self) -> bytes:
        """Receive one request and return its head; a body with Content-Length is received and dropped."""
        while b"\r\n\r\n" not in self._received:
            await self._more()
        head, _, rest = bytes(self._received).partition(b"\r\n\r\n")
        self._received[:] = rest
        length = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or 0)
        while len(self._received) < length:
            await self._more()
        del self._received[:length]
        return head

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def reset(self) -> None:
        """Close with RST."""
        stream = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stream.socket.close()

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise trio.EndOfChannel
        self._received += data


NOBODY = Proof("anonymous", "test")
Script = Callable[[Peer], Awaitable[None]]


def answer(body: bytes = b"", status: str = "200 OK", *headers: str) -> bytes:
    """A whole answer of the service, with Content-Length."""
    return gateways(body, status, "x-ms-request-id: 1", *headers)


def gateways(body: bytes = b"", status: str = "200 OK", *headers: str) -> bytes:
    """A whole answer of something on the way to the service, with Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def scripted(script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Endpoint]:
    """Run `script` for each connection; the connection closes when it returns. Yields where it listens."""
    made = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal made
        peer = Peer(trio.SSLStream(stream, tls, server_side=True) if tls else stream, made)
        made += 1
        try:
            await script(peer)
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client is gone
        finally:
            await trio.aclose_forcefully(peer.stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        yield Endpoint("https" if tls else "http", "127.0.0.1", port)
        nursery.cancel_scope.cancel()


def get(path: str = "/x", method: str = "GET", body: Buffer | None = None, most: int = 16 << 20) -> Request:
    return Request(method, path, "", path, "", "", "Host:h\n", body, most=most)


@asynccontextmanager
async def pool_to(script: Script, **options: float) -> AsyncIterator[HttpPool]:
    async with scripted(script) as endpoint, HttpPool(endpoint, **options) as pool:  # type: ignore[arg-type]
        yield pool


@asynccontextmanager
async def client_to(
    script: Script, *, checksum: bool = False, proof: Proof = NOBODY, trust: Trust | None = None
) -> AsyncIterator[BlobClient]:
    """trust: for a server with TLS."""
    async with scripted(script, tls=trust and trust.server) as endpoint:
        disk = DiskAddress("acc", "disks", "data", None, endpoint)
        credential = Credential("acc", proof, ca_file=trust and trust.ca_file)
        async with BlobClient(disk, credential, checksum=checksum) as client:
            yield client


async def ask(pool: HttpPool, request: Request | None = None, timeout_s: float = 20) -> Reply:
    return await pool.request(request or get(), AnonymousSigner(), trio.current_time() + timeout_s)


def forever(*answers: bytes) -> Script:
    """Answer each request of a connection with the next of these, again and again."""

    async def script(peer: Peer) -> None:
        while True:
            for data in answers:
                await peer.request()
                await peer.send(data)

    return script
