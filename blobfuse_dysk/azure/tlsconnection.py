"""A Connection over TLS. Certificate and host name are checked by Python's ssl, and so by the system's OpenSSL.

What does TLS does no I/O (ssl.SSLObject): it is fed with what the socket received, and what it has to say is taken from
it and sent. So it is known what the socket has taken, a record costs one system call, and native/exchange.c can do the
same with the same three objects.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import NamedTuple, cast

from trio.lowlevel import wait_readable, wait_writable

from blobfuse_dysk.azure.connection import Connection
from blobfuse_dysk.azure.framing import CutError
from blobfuse_dysk.azure.wire import Buffer

__all__ = ["HELD", "ONE_RECORD", "Tls", "TlsConnection"]

ONE_RECORD = 15 << 10
"""Bytes of a request that is sent at once; a TLS record takes 16 KiB, and joining this costs less than a second one."""
HELD = -1
"""In place of how many bytes of a request were sent: all of it is encrypted, and a rest of that is to be sent."""
_STEP = 64 << 10  # bytes that are encrypted, and decrypted, at once. Both buffers of a connection stay as large as that


class Tls(NamedTuple):
    """What does TLS, and what it reads from and writes to."""

    object: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    @classmethod
    def of(cls, context: ssl.SSLContext, host: str, session: ssl.SSLSession | None) -> Tls:
        """For one connection to a host, whose certificate is to name it. session: of an earlier one, to resume it."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        return cls(context.wrap_bio(incoming, outgoing, server_hostname=host, session=session), incoming, outgoing)


class TlsConnection(Connection):
    """See Connection; `handshake` comes before the first exchange."""

    __slots__ = ("_incoming", "_object", "_outgoing")

    def __init__(self, sock: socket.socket, tls: Tls) -> None:
        """tls: of this connected, non-blocking socket."""
        super().__init__(sock)
        self._object, self._incoming, self._outgoing = tls

    async def handshake(self) -> None:
        """Do the TLS handshake, which checks certificate and host name. Raises OSError (ssl.SSLError is one)."""
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._feed():
                    raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in the middle of the handshake") from None
            except ssl.SSLError:
                with suppress(OSError):  # the peer is told why, if the socket takes it
                    self._sock.send(self._outgoing.read())
                raise
            else:
                await self._flush()
                return

    @property
    def session(self) -> ssl.SSLSession | None:
        """For another connection to the same endpoint, in the same context; it has a ticket after the first answer."""
        return self._object.session

    def is_quiet(self) -> bool:
        """See Connection. Session tickets that wait to be read are the connection's own affair."""
        if super().is_quiet() and not self._is_fed():
            return True
        while True:
            try:
                self._object.read(1)
                return False
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return False
            try:
                data = self._sock.recv(_STEP)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self._incoming.write(data)

    def _is_fed(self) -> bool:
        """Whether there is something to decrypt, or decrypted already."""
        return bool(self._incoming.pending or self._object.pending())

    def _send_at_once(self, head: bytes, body: Buffer | None) -> int:
        """See Connection. Records are sent by `_send` alone."""
        return 0

    async def _send(self, head: bytes, body: Buffer | None, done: int) -> None:
        """See Connection. done: 0 or HELD."""
        if done == HELD:
            await self._flush()
        elif body is not None and len(head) + len(body) <= ONE_RECORD:
            await self._write(b"".join((head, body)))
        else:
            await self._write(head)
            if body is not None:
                await self._write(body)

    async def _write(self, data: Buffer) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._object.write(rest[:_STEP]) :]
            except ssl.SSLWantReadError:  # the peer has asked for another handshake
                await self._flush()
                if not await self._feed():
                    raise CutError.ended() from None
            else:
                await self._flush()

    async def _flush(self) -> None:
        """Send what TLS has to say."""
        while self._outgoing.pending:
            rest = memoryview(self._outgoing.read())
            while rest:
                try:
                    rest = rest[self._sock.send(rest) :]
                    self._sent = True
                except BlockingIOError:
                    await wait_writable(self._fd)

    async def _feed(self) -> bool:
        """Receive what comes next; False at the end of the stream."""
        while True:
            try:
                data = self._sock.recv(_STEP)
            except BlockingIOError:
                await wait_readable(self._fd)
            else:
                self._incoming.write(data)
                return bool(data)

    async def _wait_for_answer(self) -> None:
        if not self._is_fed():
            await wait_readable(self._fd)

    async def _receive(self, into: bytearray | memoryview) -> int:
        while True:
            if self._is_fed():
                try:
                    count = cast(int, self._object.read(len(into), into))  # with a buffer, it counts
                except ssl.SSLWantReadError:
                    await self._flush()
                else:
                    if not count:
                        raise CutError.ended()
                    self._answered = True
                    return count
            if not await self._feed():
                raise CutError.ended()
