"""The two ends of a connection for exchange.py: as it is, through a toy in the place of ssl, and through ssl.

The toy is what native/tls.c may rely on of an ssl.SSLObject (tls.c has that at its top): it reads a record from
`incoming`, gives at most the rest of one, raises SSLWantReadError until one is whole, and may write by itself. It
encrypts nothing, so what an input says is what comes, and it does `meanwhile` in each call, which may be anything.
"""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from blobfuse_dysk.azure.tls import tls_context
from blobfuse_dysk.testing.server.certificates import make_certificates

__all__ = ["Far", "Plain", "Real", "Toy"]

_HOST = "127.0.0.1"
_BYE = (1 << 16) - 1  # in the place of a record's length


class Far(Protocol):
    """The far end. near: what a Line needs for TLS, or nothing."""

    near: tuple[Any, ...]

    def seal(self, data: bytes) -> bytes:
        """As it is sent: one record, if there are such; of 16 KiB at most."""

    def bye(self) -> bytes:
        """What says that no more comes."""

    def unread(self, received: bytes) -> bytes:
        """What the near end would still read, if that came last. Nobody reads it any more."""


class Plain:
    """No TLS. See Far."""

    near = ()

    def seal(self, data: bytes) -> bytes:
        """See Far."""
        return data

    def bye(self) -> bytes:
        """See Far."""
        return b""

    def unread(self, received: bytes) -> bytes:
        """See Far."""
        return received


class _Record:
    def __init__(self, incoming: ssl.MemoryBIO) -> None:
        self._incoming = incoming
        self._come = b""
        self._rest = b""

    def pending(self) -> int:
        return len(self._rest)

    def read(self, size: int, answer: Callable[[], None]) -> bytes:
        while not self._rest:
            self._receive(2)
            length = int.from_bytes(self._come[:2], "little")
            if length == _BYE:
                return b""
            self._receive(2 + length)
            self._rest, self._come = self._come[2:], b""
            if not self._rest:
                answer()
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def _receive(self, whole: int) -> None:
        self._come += self._incoming.read(max(0, whole - len(self._come)))
        if len(self._come) < whole:
            raise ssl.SSLWantReadError


class Toy:
    """See above, and Far. It stands for the ssl.SSLObject, too. meanwhile: None, or what the call is to return."""

    def __init__(self, meanwhile: Callable[[Toy], object], most: int) -> None:
        self._meanwhile = meanwhile
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._record = _Record(self._incoming)
        self._ended = False
        self.near = (self, self._incoming, self._outgoing, most)
        self.said = b""
        """All that went into `outgoing`, but for what came back."""

    def seal(self, data: bytes) -> bytes:
        """See Far. Of nothing, it is a record that has to be answered."""
        return len(data).to_bytes(2, "little") + data

    def bye(self) -> bytes:
        """See Far."""
        return _BYE.to_bytes(2, "little")

    def unread(self, received: bytes) -> bytes:
        """See Far."""
        self._incoming.write(received)
        found = b""
        with contextlib.suppress(ssl.SSLWantReadError):
            while piece := self._read(1 << 20):
                found += piece
        return found

    def read(self, size: int) -> object:
        """See ssl.SSLObject."""
        found = self._meanwhile(self)
        return self._read(size) if found is None else found

    def write(self, data: bytes) -> object:
        """See ssl.SSLObject."""
        found = self._meanwhile(self)
        if found is not None:
            return found
        self._say(data)
        return len(data)

    def pending(self) -> object:
        """See ssl.SSLObject."""
        found = self._meanwhile(self)
        return self._record.pending() if found is None else found

    def _read(self, size: int) -> bytes:
        if self._ended:
            return b""
        data = self._record.read(size, lambda: self._say(b"a"))
        self._ended = not data
        return data

    def _say(self, data: bytes) -> None:
        self.said += data
        self._outgoing.write(data)


@cache
def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    with tempfile.TemporaryDirectory() as directory:
        made = make_certificates(Path(directory), [_HOST], days=365)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(made.cert_file, made.key_file)
        return tls_context(made.ca_file), server


class Real:
    """TLS 1.3 by ssl, after its handshake. See Far."""

    def __init__(self, most: int) -> None:
        client, server = _contexts()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        near = client.wrap_bio(incoming, outgoing, server_hostname=_HOST)
        received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._far = server.wrap_bio(received, self._to_send, server_side=True)
        for _ in range(3):
            with contextlib.suppress(ssl.SSLWantReadError):
                near.do_handshake()
            received.write(outgoing.read())
            with contextlib.suppress(ssl.SSLWantReadError):
                self._far.do_handshake()
                break
            incoming.write(self._to_send.read())
        self.tickets = self._to_send.read()
        """That come after the handshake, and say nothing."""
        self.near = (near, incoming, outgoing, most)

    def seal(self, data: bytes) -> bytes:
        """See Far."""
        self._far.write(data)
        return self._to_send.read()

    def bye(self) -> bytes:
        """See Far."""
        with contextlib.suppress(ssl.SSLError):
            self._far.unwrap()
        return self._to_send.read()

    def unread(self, received: bytes) -> bytes:
        """See Far."""
        near, incoming, _, _ = self.near
        incoming.write(received)
        found = b""
        with contextlib.suppress(ssl.SSLWantReadError):
            while piece := near.read(1 << 20):
                found += piece
        return found
