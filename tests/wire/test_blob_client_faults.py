"""BlobClient against a server that misbehaves on order, has another clock, speaks TLS, or takes tokens."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.credential.credential import NO_CREDENTIAL, Credential, Proof
from blobfuse_dysk.azure.credential.file import read_conf
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import ServiceError, TransportError
from blobfuse_dysk.testing import PageBlobServer
from tests.wire.clients import T, address_of, by_key, by_sas, by_token, client_of, new_disk
from tests.wire.sas import account_sas

pytestmark = pytest.mark.usefixtures("way")

NEW_KEY = "bmV3LWtleS1uZXcta2V5"


@pytest.fixture
def disk(server: PageBlobServer) -> DiskAddress:
    server.create("disks", "data", 8 << 20)
    return address_of(server, "disks")


@pytest.fixture(scope="module")
def https() -> Iterator[PageBlobServer]:
    with PageBlobServer(
        https=True, tokens={"good.token": {}, "new.token": {}, "reader": {"permissions": "rl"}}
    ) as running:
        running.create("disks", "data", 8 << 20)
        yield running


def printing(token: str, life_s: float = 3600) -> tuple[str, ...]:
    """A token command."""
    return (sys.executable, "-c", f"print({json.dumps({'access_token': token, 'expires_on': time.time() + life_s})!r})")


async def put(client: BlobClient, offset: int = 0, data: bytes = bytes(512), timeout_s: float = T) -> None:
    await client.put_pages(offset, data, lease_id=None, epoch=None, timeout_s=timeout_s)


async def lost(call: Any) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await call
    return caught.value


async def refused(call: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "short", "operation": "read"},
        {"action": "reset", "operation": "read"},
        {"action": "reset", "operation": "read", "when": "after"},
        {"action": "lost", "operation": "read"},
        {"action": "corrupt", "operation": "read"},
    ],
    ids=lambda fault: "-".join(fault.values()),
)
async def test_a_damaged_read_is_noticed(server: PageBlobServer, disk: DiskAddress, fault: dict[str, str]) -> None:
    data = os.urandom(65536)
    async with client_of(server, disk, checksum=True) as client:
        await put(client, 0, data)
        server.fault(**fault, times=1)
        error = await lost(client.get_range(0, 65536, timeout_s=T))
        assert error.sent
        assert str(disk) in str(error)
        assert await client.get_range(0, 65536, timeout_s=T) == data


async def test_a_write_that_arrives_damaged_is_refused(server: PageBlobServer, disk: DiskAddress) -> None:
    async with client_of(server, disk, checksum=True) as client:
        server.fault("corrupt", operation="write", times=1)
        assert (await refused(put(client))).code == "Md5Mismatch"


async def test_a_wrong_etag_harms_nothing(server: PageBlobServer, disk: DiskAddress) -> None:
    async with client_of(server, disk) as client:
        server.fault("wrong_etag")
        await put(client, 0, b"x" * 512)
        assert await client.get_range(0, 512, timeout_s=T) == b"x" * 512


async def test_refusals_on_order(server: PageBlobServer, disk: DiskAddress) -> None:
    async with client_of(server, disk) as client:
        for status, code in ((500, "OperationTimedOut"), (404, "BlobNotFound"), (403, "AuthenticationFailed")):
            fault = server.fault("error", status=status, code=code)
            error = await refused(put(client))
            assert (error.status, error.code) == (status, code)
            server.clear_faults(fault)
        server.fault("error", status=503, code="ServerBusy", retry_after_s=7)
        assert (await refused(client.get_range(0, 512, timeout_s=T))).retry_after_s == 7.0


@pytest.mark.parametrize("action", ["stall", "blackhole"])
async def test_a_request_that_gets_no_answer_ends_at_its_time_limit(
    server: PageBlobServer, disk: DiskAddress, action: str
) -> None:
    async with client_of(server, disk) as client:
        server.fault(action, operation="read", times=1)
        error = await lost(client.get_range(0, 65536, timeout_s=0.3))
        assert (error.sent, error.stale) == (True, False)
        assert not any(await client.get_range(0, 65536, timeout_s=T))


async def test_cancelled_calls_leave_the_client_usable(server: PageBlobServer, disk: DiskAddress) -> None:
    async with client_of(server, disk) as client:
        fault = server.fault("delay", operation="read")
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(lambda: client.get_range(0, 512, timeout_s=T), name=str(number))
            with trio.fail_after(T):
                while server.faults()[0]["hits"] < 20:  # noqa: ASYNC110 (of another process)
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        server.clear_faults(fault)
        server.release()
        assert not any(await client.get_range(0, 512, timeout_s=T))


async def test_a_server_that_restarts(tmp_path: Path) -> None:
    with PageBlobServer(directory=str(tmp_path)) as server:
        disk = new_disk(server, "disks")
        async with client_of(server, disk) as client:
            await put(client, 0, b"x" * 512)
            await trio.to_thread.run_sync(server.kill)
            error = await lost(client.get_range(0, 512, timeout_s=T))
            assert "cannot connect" in str(error)
            assert not error.sent
            await trio.to_thread.run_sync(server.start)
            assert await client.get_range(0, 512, timeout_s=T) == b"x" * 512


@pytest.mark.parametrize("offset_s", [7200.0, -7200.0])
async def test_the_services_clock_is_followed(offset_s: float, caplog: pytest.LogCaptureFixture) -> None:
    with PageBlobServer(clock_offset_s=offset_s) as server:
        server.create("disks", "data", 1 << 20)
        async with client_of(server, address_of(server, "disks")) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(put, client)
            assert client.credential.clock.offset_s == pytest.approx(offset_s, abs=5)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len([record for record in warnings if "clock" in record.message]) == 1


async def test_a_rotated_key_is_read_from_its_file_under_load(
    server: PageBlobServer, disk: DiskAddress, tmp_path: Path
) -> None:
    path = tmp_path / "acc.conf"
    path.touch(0o600)
    path.write_text(f"account_key = {server.key}")
    proof = Proof.from_conf(read_conf(path))
    assert proof is not None
    done = 0

    async def load(client: BlobClient) -> None:
        nonlocal done
        while done < 400:
            await put(client)
            done += 1

    async with BlobClient(disk, Credential(server.account, proof)) as client, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(load, client)
        with trio.fail_after(T):
            while done < 100:  # noqa: ASYNC110 (counted by other tasks)
                await trio.sleep(0.001)
        path.write_text(f"account_key = {NEW_KEY}")
        server.configure(accounts={server.account: NEW_KEY})
    assert done >= 400


async def test_over_https_a_certificate_that_nobody_trusts_is_refused(https: PageBlobServer) -> None:
    data = os.urandom(4 << 20)
    disk = address_of(https, "disks")
    async with BlobClient(disk, by_key(https, ca_file=https.ca_file)) as client:
        await put(client, 0, data)
        assert await client.get_range(0, 4 << 20, timeout_s=T) == data
    async with BlobClient(disk, by_key(https)) as client:
        assert "certificate" in str(await lost(client.properties(timeout_s=T)))
    async with BlobClient(disk, by_key(https), ca_file=https.ca_file) as client, trio.open_nursery() as nursery:
        for number in range(64):
            nursery.start_soon(put, client, number * 512)


async def test_https_with_a_sas(https: PageBlobServer) -> None:
    sas = account_sas(https.account, https.key, "rw")
    async with BlobClient(address_of(https, "disks"), by_sas(https, sas, ca_file=https.ca_file)) as client:
        await put(client)


async def test_a_token_proves_who_asks_and_what_it_may(https: PageBlobServer) -> None:
    disk = address_of(https, "disks")
    good = by_token(https, printing("good.token"), ca_file=https.ca_file)
    async with BlobClient(disk, good) as client, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(put, client)
    async with BlobClient(disk, by_token(https, printing("reader"), ca_file=https.ca_file)) as client:
        await client.get_range(0, 512, timeout_s=T)
        assert (await refused(put(client))).code == "AuthorizationPermissionMismatch"
    async with BlobClient(disk, by_token(https, printing("bad.token"), ca_file=https.ca_file)) as client:
        assert (await refused(put(client))).status in (401, 403)


async def test_a_token_that_the_service_refuses_is_replaced(https: PageBlobServer, tmp_path: Path) -> None:
    def write(token: str) -> None:
        answer = {"access_token": token, "expires_on": time.time() + 3600}
        (tmp_path / "token").write_text(json.dumps(answer))

    write("revoked")
    credential = by_token(https, ("cat", str(tmp_path / "token")), ca_file=https.ca_file)
    async with BlobClient(address_of(https, "disks"), credential) as client:
        assert (await refused(put(client))).status in (401, 403)
        write("new.token")
        credential._renewed_at = -1e9  # as if some seconds had passed
        await put(client)


async def test_no_token_is_a_refusal_with_the_reason(https: PageBlobServer) -> None:
    credential = by_token(https, (sys.executable, "-c", "import sys; sys.exit('no identity here')"))
    async with BlobClient(address_of(https, "disks"), credential, ca_file=https.ca_file) as client:
        for _ in range(2):
            error = await refused(put(client))
            assert (error.status, error.code) == (401, NO_CREDENTIAL)
            assert "no identity here" in str(error)
    slow = by_token(https, (sys.executable, "-c", "import time; time.sleep(60)"))
    async with BlobClient(address_of(https, "disks"), slow, ca_file=https.ca_file) as client:
        assert (await refused(put(client, timeout_s=0.2))).code == NO_CREDENTIAL
