"""The fixture of all service tests does what it says: Azurite runs, answers, and ends."""

from __future__ import annotations

import http.client

import pytest

from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.testing.azurite import Azurite


def test_it_answers_at_its_endpoint(azurite: Azurite) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", azurite.port, timeout=10)
    connection.request("GET", f"/{azurite.account}?comp=list")
    reply = connection.getresponse()
    connection.close()
    assert reply.status == 403
    assert reply.headers["Server"].startswith("Azurite-Blob/")


def test_nothing_listens_after_stop() -> None:
    with Azurite() as own:
        port = own.port
        assert own.pid > 0
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=10).connect()
    with pytest.raises(DyskError):
        _ = own.pid
