"""Create, delete and list where something between us and the service answers: no redirect is followed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from blobfuse_dysk.azure.deletion import delete_disk
from blobfuse_dysk.azure.management import create_disk, list_disks
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import TransportError
from blobfuse_dysk.testing import PageBlobServer
from tests.wire.clients import by_key, new_disk

CALLS: list[Callable[[DiskAddress, PageBlobServer], object]] = [
    lambda disk, server: create_disk(disk, by_key(server), 1 << 20),
    lambda disk, server: delete_disk(disk, by_key(server)),
    lambda disk, server: list_disks(disk, by_key(server)),
]


class Gateway:
    """Answers everything alike. location: where redirects lead. code: of the service, for the first answer only."""

    def __init__(self, status: int, location: str, code: str = "") -> None:
        self.asked: list[str] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                gateway.asked.append(self.path)
                if code and len(gateway.asked) > 1:
                    self.close_connection = True
                    return
                body = b"<html><body>Please log in</body></html>"
                if code:
                    body = f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Location", location + self.path)
                self.send_header("Content-Type", "application/xml")
                if code:
                    self.send_header("x-ms-error-code", code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_DELETE = do_HEAD = answer

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Gateway:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def target(server: PageBlobServer, container: str) -> Iterator[DiskAddress]:
    yield new_disk(server, container)
    assert server.blob(container, "data"), "what the gateway named was not touched"


@pytest.mark.parametrize("call", CALLS[1:], ids=["delete", "list"])
def test_a_gateways_502_is_tried_once_more(
    server: PageBlobServer,
    target: DiskAddress,
    capfd: pytest.CaptureFixture[str],
    call: Callable[[DiskAddress, PageBlobServer], object],
) -> None:
    with Gateway(502, server.url) as gateway:
        with pytest.raises(TransportError, match="HTTP 502, which is not the blob service's own"):
            call(DiskAddress.parse(f"{gateway.url}/{server.account}{target.path}"), server)
        assert len(gateway.asked) == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("call", CALLS, ids=["create", "delete", "list"])
@pytest.mark.parametrize("status", [200, 301, 302, 307, 308, 400, 403, 404, 407])
def test_an_answer_that_is_not_the_services_is_said_to_be_that(
    server: PageBlobServer,
    target: DiskAddress,
    capfd: pytest.CaptureFixture[str],
    status: int,
    call: Callable[[DiskAddress, PageBlobServer], object],
) -> None:
    server.reset_stats()
    with Gateway(status, server.url) as gateway:
        disk = DiskAddress.parse(f"{gateway.url}/{server.account}{target.path}")
        with pytest.raises(TransportError) as caught:
            call(disk, server)
    assert ("redirects, which is not followed" if 300 <= status < 400 else "is not one of the blob") in str(
        caught.value
    )
    assert "a gateway" in (caught.value.remedy or "")
    assert len(gateway.asked) == 1
    assert server.stats()["requests"] == {}, "no redirect was followed"
    assert capfd.readouterr() == ("", "")


def test_an_earlier_answer_is_not_the_reason_of_a_lost_one(server: PageBlobServer, target: DiskAddress) -> None:
    """Create makes the container when it is told that there is none; here nothing answers any more then."""
    with Gateway(404, server.url, "ContainerNotFound") as gateway:
        disk = DiskAddress.parse(f"{gateway.url}/{server.account}{target.path}")
        with pytest.raises(TransportError, match="no answer from") as caught:
            create_disk(disk, by_key(server), 1 << 20)
    assert "ContainerNotFound" not in caught.value.line()
    assert len(gateway.asked) > 1
