"""dyskctl resize is killed after each of its requests was done, on the server; and then run again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.vhd import FOOTER_SIZE, Layout, footer, parse_footer
from tests.conftest import Service
from tests.polling import eventually
from tests.wire.test_management import make_container, sdk_blob

MIB = 1 << 20
OLD = 4 * MIB
DATA = b"d" * 512


def resize(service: Service, container: str, size: int) -> subprocess.Popen[str]:
    disk = f"{service.account}/{container}/data"
    return subprocess.Popen(
        [sys.executable, "-m", "blobfuse_dysk.cli.main", "resize", disk, f"{size // MIB}MiB", "--force"],
        env={**os.environ, "AZURE_STORAGE_CONNECTION_STRING": service.connection_string},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def make(service: Service, container: str) -> None:
    """A VHD of 4 MiB with two pages on it."""
    with sdk_blob(service, container) as blob:
        blob.create_page_blob(OLD + FOOTER_SIZE)
        for offset, page in ((0, DATA), (MIB, DATA), (OLD, footer(OLD))):
            blob.upload_page(page, offset=offset, length=512)


def check(service: Service, container: str, size: int) -> None:
    with sdk_blob(service, container) as blob:
        content = blob.download_blob().readall()
        found = blob.get_blob_properties()
    last = parse_footer(content[-FOOTER_SIZE:])
    assert last is not None and last.layout(len(content)) is Layout.BEHIND
    assert len(content) == size + FOOTER_SIZE
    assert content[:size] == DATA + bytes(MIB - 512) + DATA + bytes(size - MIB - 512)
    assert (found.lease.state, found.metadata) == ("available", {})


@pytest.mark.parametrize("size", [2 * MIB, 7 * MIB])
def test_both_services_resize(size: int, service: Service, container: str) -> None:
    make_container(service, container)
    make(service, container)
    process = resize(service, container, size)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, ""), err
    assert out.startswith(f"{service.account}/{container}/data: {size // MIB}MiB, was 4MiB")
    check(service, container, size)


@pytest.mark.long
@pytest.mark.parametrize("size", [2 * MIB, 7 * MIB])
def test_killed_at_any_request_it_is_finished_by_the_next(size: int, server: PageBlobServer, container: str) -> None:
    server.create(container, "other", MIB)
    requests = 0
    while True:
        make(server, container)
        fault = server.fault("lost", connection="open", skip=requests, times=1)
        process = resize(server, container, size)
        eventually(lambda: bool(server.faults()[0]["hits"]) or process.poll() is not None, 30)  # noqa: B023 - at once
        was_hit = bool(server.faults()[0]["hits"])
        server.clear_faults(fault)
        process.kill()
        process.communicate()
        server.elapse_leases(60)
        with sdk_blob(server, container) as blob:
            content = blob.download_blob().readall()
        assert content[: MIB + 512] == DATA + bytes(MIB - 512) + DATA
        again = resize(server, container, size)
        _, err = again.communicate(timeout=60)
        assert again.returncode == 0, err
        check(server, container, size)
        if not was_hit:
            break
        requests += 1
        server.remove(container, "data")
    assert requests > 10
