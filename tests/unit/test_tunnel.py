"""The data path through an HTTP proxy: its consent, its refusals, and what is no proxy at all."""

from __future__ import annotations

import socket

import pytest
import trio

from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.azure.explain import explain
from blobfuse_dysk.azure.pool import HttpPool
from blobfuse_dysk.azure.tls import tls_context
from blobfuse_dysk.disk import DiskAddress, Endpoint
from blobfuse_dysk.errors import TransportError
from blobfuse_dysk.proxies import Proxy
from tests.unit.scripted import Peer, Script, answer, ask, scripted

BLOB = Endpoint("https", "acc.blob.core.windows.net", 443)


async def refused(script: Script) -> TransportError:
    async with scripted(script) as place:
        proxy = Proxy("127.0.0.1", place.port, source="https_proxy")
        async with HttpPool(BLOB, ssl_context=tls_context(), proxy=proxy) as pool:
            with pytest.raises(TransportError) as caught:
                await ask(pool)
    return caught.value


async def test_the_proxy_is_asked_for_a_tunnel_and_then_carries_bytes() -> None:
    heads = []

    async def script(peer: Peer) -> None:
        heads.append(await peer.request())
        await peer.send(b"HTTP/1.1 200 ")
        await peer.send(b"Connection established\r\nVia: x\r\n\r\n")
        for _ in range(2):
            heads.append(await peer.request())
            await peer.send(answer(b"hello"))

    async with scripted(script) as place:
        proxy = Proxy("127.0.0.1", place.port, "user", "secret")
        async with HttpPool(Endpoint("http", "acc.test.invalid", 8080), proxy=proxy) as pool:
            assert (await ask(pool)).body == (await ask(pool)).body == b"hello"
    first = heads[0].decode().split("\r\n")
    assert first[0] == "CONNECT acc.test.invalid:8080 HTTP/1.1"
    assert first[1:] == ["Host: acc.test.invalid:8080", "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ="]
    assert [head.split(b"\r\n")[0] for head in heads[1:]] == [b"GET /x HTTP/1.1"] * 2
    assert b"Proxy-Authorization" not in heads[1] + heads[2], "the endpoint does not see it"


@pytest.mark.parametrize(
    ("said", "how", "remedy"),
    [
        (b"HTTP/1.1 407 Who\x1b are you\r\n\r\n", r"(HTTP 407 Who\x1b are you)", "USER:PASSWORD"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\ngo away !", "(HTTP 403 Forbidden)", "allow CONNECT"),
        (b"HTTP/1.0 502\r\n\r\n", "(HTTP 502)", "no way to it"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP", "is this an HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nmore", "sends more than its consent", "is this an HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 9999, "gives an answer that does not end", "is this an HTTP proxy"),
        (b"HTTP/1.1 200", "closed the connection", "no_proxy"),
        (b"", "closed the connection", "no_proxy"),
    ],
)
async def test_what_a_proxy_does_not_do_is_said_in_its_name(said: bytes, how: str, remedy: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if said:
            await peer.send(said)

    error = await refused(script)
    assert "named by https_proxy, " in str(error) and how in str(error)
    assert remedy in (error.remedy or "")
    assert not error.sent, "nothing of the request has left"


async def test_a_proxy_that_hangs_ends_with_the_limit_for_connecting() -> None:
    async def script(peer: Peer) -> None:
        await trio.sleep_forever()

    async with scripted(script) as place:
        proxy = Proxy("127.0.0.1", place.port)
        async with HttpPool(BLOB, ssl_context=tls_context(), proxy=proxy, connect_timeout_s=0.2) as pool:
            with pytest.raises(TransportError, match=r"through the proxy http://127.0.0.1:.*time limit") as caught:
                await ask(pool)
    assert not caught.value.sent


@pytest.mark.parametrize("host", ["127.0.0.1", "nosuchproxy.test.invalid"])
async def test_a_proxy_that_is_not_there_is_not_said_to_be_the_account(host: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = Proxy(host, unused.getsockname()[1], source="https_proxy")
        async with HttpPool(BLOB, ssl_context=tls_context(), proxy=proxy) as pool:
            with pytest.raises(TransportError, match=r"named by https_proxy, cannot be reached \(") as caught:
                await ask(pool)
    credential = Credential("acc", Proof("key", "/f", account_key="a2V5"))
    disk = DiskAddress.parse("https://acc.blob.core.windows.net/disks/data")
    assert explain(caught.value, disk, credential) is caught.value
