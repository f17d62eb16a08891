"""A page blob server that a test steers, and the page that it looks at."""

from __future__ import annotations

from blobfuse_dysk.testing import PageBlobServer
from tests.wire.rest import Rest

__all__ = ["NEW", "OLD", "PAGE", "PATH", "client", "content"]

PAGE = 512
OLD, NEW = b"o" * PAGE, b"n" * PAGE
PATH = "disks/disk"


def client(server: PageBlobServer, key: str | None = None, timeout_s: float = 20) -> Rest:
    """A connection of its own."""
    return Rest(server.endpoint, server.account, key or server.key, timeout_s=timeout_s)


def content(server: PageBlobServer) -> bytes:
    """The first page, read without faults."""
    server.clear_faults()
    with client(server) as rest:
        return rest.get(PATH, 0, PAGE).body
