"""The types of the module in C; what they do stands at the top of exchange.c and heads.c."""

import hashlib
import ssl
from typing import overload

from trio.lowlevel import Task

from blobfuse_dysk.azure.plain import Exchange
from blobfuse_dysk.detached import Detached

MOST_BODY: int
"""Bytes of the longest range that `Line.start` takes."""

Waiter = Task | Detached | Exchange

class Ready:
    """The set of all lines of a pool; fileno() is readable when one of them has something."""

    def collect(self) -> list[Waiter]:
        """Receive what is there; return who waits for an exchange that has ended. Raises OSError."""
    def fileno(self) -> int: ...

class Line:
    """A connected, non-blocking socket. One exchange at a time."""

    @overload
    def __init__(self, ready: Ready, fd: int, /) -> None:
        """Raises OSError, and ValueError if there are too many."""
    @overload
    def __init__(
        self, ready: Ready, fd: int, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, most: int, /
    ) -> None:
        """With TLS, of which the handshake is done. most: bytes of a request that `start` sends, as one record."""
    def start(
        self, head: bytes, body: bytes | bytearray | memoryview | None, offset: int, length: int, waiter: Waiter, /
    ) -> int:
        """Send; return how many bytes the socket took. Only if that is all of them does the line wait for the answer.

        body: None for Get Blob. offset, length: of the range, in bytes; length is MOST_BODY at most. Raises OSError.

        Over TLS, all or 0: where that was not to be done at once; or HELD (tlsconnection.py).
        """
    def take(self) -> bytes | None:
        """What came of an exchange that has ended: the body, or None for an odd answer. Raises OSError, EOFError."""
    def begun(self) -> bytes:
        """What was read of an odd answer."""
    def heard(self) -> bool:
        """Whether anything of the last exchange's answer was received."""
    def stop(self) -> Waiter | None:
        """Wait no longer; return who waited, if anybody did. The connection is of no use afterwards."""
    def quiet(self) -> bool:
        """Whether there is nothing to read, not even the end of the stream; over TLS, a session ticket is something."""
    def close(self) -> None:
        """Leave the set; to be called before the socket is closed. Idempotent."""

class Heads:
    """Makes heads for one blob and one signer. None: has to be made by Python."""

    def __init__(
        self,
        get_start: str,
        put_start: str,
        get_end: str,
        put_end: str,
        version: str,
        authorization: str,
        inner: hashlib._Hash | None,
        outer: hashlib._Hash | None,
        /,
    ) -> None:
        """The starts as sent, the ends as signed, lines without their ends; see heads.c."""
    def get(self, date: str | None, offset: int, length: int, /) -> bytes | None:
        """Of Get Blob. Offsets and lengths in bytes."""
    def put(
        self, date: str | None, offset: int, length: int, lease_id: str | None, epoch: int | None, /
    ) -> bytes | None:
        """Of Put Page, update."""
