"""The far side of a TLS connection, in memory: what it sends is in the test's hands, byte by byte."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from blobfuse_dysk.azure.tls import tls_context
from blobfuse_dysk.azure.tlsconnection import Tls
from blobfuse_dysk.testing.server.certificates import make_certificates

__all__ = ["FarSide", "Trust", "make_trust"]

HOST = "127.0.0.1"


class Trust(NamedTuple):
    """The authority's file, and a server's context with a certificate for 127.0.0.1."""

    ca_file: str
    server: ssl.SSLContext


def make_trust(directory: Path) -> Trust:
    made = make_certificates(directory, [HOST])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert_file, made.key_file)
    context.post_handshake_auth, context.verify_mode = True, ssl.CERT_OPTIONAL  # for `ask_who`; nothing is asked before
    return Trust(made.ca_file, context)


class FarSide:
    """A server after its handshake with `tls`, the near side. late: its session tickets, not delivered yet."""

    def __init__(self, trust: Trust, *, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        context = tls_context(trust.ca_file)
        context.maximum_version = version
        context.post_handshake_auth = True
        self.tls = Tls.of(context, HOST, None)
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = trust.server.wrap_bio(self._received, self._to_send, server_side=True)
        for _ in range(3):
            with suppress(ssl.SSLWantReadError):
                self.tls.object.do_handshake()
            self._received.write(self.tls.outgoing.read())
            with suppress(ssl.SSLWantReadError):
                self._object.do_handshake()
                break
            self.tls.incoming.write(self._to_send.read())
        self.late = self._to_send.read()
        if version < ssl.TLSVersion.TLSv1_3:  # there they come with the handshake
            self.tls.incoming.write(self.late)
            self.tls.object.do_handshake()
            self.late = b""

    def seal(self, data: bytes) -> bytes:
        """Encrypt: one record, of at most 16 KiB."""
        self._object.write(data)
        return self._to_send.read()

    def bye(self) -> bytes:
        """Say that no more comes (close_notify)."""
        with suppress(ssl.SSLWantReadError):
            self._object.unwrap()
        return self._to_send.read()

    def ask_who(self) -> bytes:
        """Ask for the near side's certificate, to which its TLS has to answer, whatever else is going on."""
        self._object.verify_client_post_handshake()
        self._object.do_handshake()
        return self._to_send.read()

    def open(self, data: bytes) -> bytes:
        """Decrypt what the near side sent, all of it."""
        self._received.write(data)
        found = b""
        with suppress(ssl.SSLWantReadError):
            while piece := self._object.read(1 << 20):
                found += piece
        return found
