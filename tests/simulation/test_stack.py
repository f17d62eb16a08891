"""The stack as a whole: read-only disks, blobs that are none, errors, status, the io-timeout."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from random import Random

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.disk import DiskAddress, Endpoint
from blobfuse_dysk.errors import (
    DyskError,
    Kind,
    NotFoundError,
    StoreError,
    TransportError,
    UsageError,
)
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store.layers.sparse import READ_PATIENCE_S, ZERO_PATIENCE_S
from blobfuse_dysk.store.open import _wants_checksum, open_stack
from blobfuse_dysk.store.stack import StackOptions
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from tests.simulation.stacks import ADDRESS, DATA, NOBODY, SIZE, attached, refused

SNAPSHOT = DiskAddress.parse("account/container/disk.img?snapshot=2026-01-31T12:00:00.0000000Z")


@pytest.mark.parametrize(("address", "read_only"), [(ADDRESS, True), (SNAPSHOT, False)])
async def test_read_only_takes_no_lease(
    address: DiskAddress, read_only: bool, blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    blob.store.poke(512, DATA)
    blob.allocated.add(1)
    async with attached(client, address=address, read_only=read_only) as stack:
        assert bytes(await stack.store.read(0, 1024)) == bytes(512) + DATA
        assert await stack.store.extents(0, SIZE) == [(512, 512)]
        await stack.store.flush()
        for call in (stack.store.write(512, DATA), stack.store.zero(512, 512)):
            with pytest.raises(StoreError) as caught:
                await call
            assert caught.value.kind is Kind.REJECTED
        assert (stack.state, stack.lease_id, stack.epoch) == ("attached", None, None)
        assert stack.status()["lease"] is None
        await stack.release()
    assert set(client.sent) <= {"properties", "get", "list"}


@pytest.mark.parametrize("cache", ["none", "readonly"])
async def test_beneath_the_map_the_disk_is_read_as_the_service_has_it(
    cache: str, blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    """The map may be wrong; is_blank (device/worker/geometry.py) must not see the disk through it."""
    blob.store.poke(512, DATA)  # and no page of it is listed
    async with attached(client, cache=cache) as stack:
        assert bytes(await stack.store.read(512, 512)) == bytes(512)
        assert bytes(await stack.beneath_map.read(512, 512)) == DATA


async def test_a_read_only_disk_that_another_node_writes_shows_what_is_new(
    blob: SimBlob, client: SimClient, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with attached(SimClient(blob, nursery)) as writer, attached(client, read_only=True) as reader:
        assert bytes(await reader.store.read(0, 512)) == bytes(512)
        await writer.store.write(0, DATA)
        assert bytes(await reader.store.read(0, 512)) == DATA


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"gone": True}, NotFoundError, "does not exist"),
        ({"blob_type": "BlockBlob"}, UsageError, "not a page blob"),
        ({"size": 1000}, UsageError, "1000 bytes"),
        ({"size": 0}, UsageError, "0 bytes"),
        ({"size": (8 << 40) + 512}, UsageError, "8 TiB"),
    ],
)
async def test_blobs_that_cannot_be_a_disk(
    change: dict[str, object],
    kind: type[DyskError],
    words: str,
    blob: SimBlob,
    client: SimClient,
    autojump_clock: MockClock,
) -> None:
    for name, value in change.items():
        setattr(blob, name, value)
    error = await refused(client, kind)
    assert words in str(error)
    assert blob.lease_state == "available"


async def test_a_service_that_is_not_there_is_said_in_time(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    client.fate = lambda name: Fate(unsent=True)
    started = trio.current_time()
    error = await refused(client, TransportError)
    assert error.remedy is not None
    assert trio.current_time() - started < 10


async def test_exceptions_of_the_block_come_out_as_they_are(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with attached(client):
            raise ZeroDivisionError


async def test_a_report_that_fails_does_not_end_the_attachment(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    def full(state: str) -> None:
        raise OSError("no space left on device")

    async with open_stack(
        ADDRESS,
        NOBODY,
        StackOptions(node="here"),
        on_state=full,
        client=client,
        random=Random(0),
    ) as stack:
        client.down = True
        await trio.sleep(100)
        client.down = False
        await stack.store.write(0, DATA)


async def test_status_says_it_all_and_is_json(blob: SimBlob, client: SimClient, autojump_clock: MockClock) -> None:
    async with attached(client) as stack:
        await stack.store.write(0, DATA)
        await stack.store.read(0, 512)
        stack.set_io_timeout(None)
        status = json.loads(json.dumps(stack.status()))
    assert status["state"] == "attached"
    assert status["epoch"] == blob.number > 0
    assert 59 < status["lease"]["expires_in_s"] <= 60
    assert status["io"]["calls"] == {"write": 1, "read": 1}
    assert status["requests"]["calls"] == {"put": 1, "get": 1}
    assert status["requests"]["latency_ms"]["put"]["p99"] > 0
    assert status["throttle"]["concurrency"] >= 1
    assert status["io_timeout_s"] is None
    assert status["retries"] == 0


async def test_io_timeout_is_for_reads_and_writes(blob: SimBlob, client: SimClient, autojump_clock: MockClock) -> None:
    client.fate = lambda name: Fate(unsent=True) if name == "list" else Fate()  # so the map is still asked for
    async with attached(client, io_timeout_s=90.0) as stack:
        client.down = True
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_times_out, lambda: stack.store.write(0, DATA), started + 90)
            nursery.start_soon(_times_out, lambda: stack.store.zero(1024, 512), started + 90 + ZERO_PATIENCE_S)
            nursery.start_soon(_times_out, lambda: stack.store.write(512, DATA), started + 90)
            nursery.start_soon(_times_out, lambda: stack.store.read(4096, 512), started + 90 + READ_PATIENCE_S)
        client.down = False
        await stack.store.write(0, DATA)


async def _times_out(call: Callable[[], Awaitable[object]], at: float) -> None:
    with pytest.raises(StoreError) as caught:
        await call()
    assert caught.value.kind is Kind.TIMEOUT
    assert trio.current_time() == at


def test_options_come_from_the_attach_options() -> None:
    given = {
        "read_only": True,
        "lease_s": None,
        "io_timeout_s": 90.0,
        "checksum": "md5",
        "cache": "readonly",
        "read_cache_size": 1 << 20,
        "write_delay_s": 3.0,
        "iops": 500,
        "mbps": 60.0,
    }
    options = StackOptions.of(AttachOptions(**given), "here")  # type: ignore[arg-type]
    assert options == StackOptions(**given, node="here")  # type: ignore[arg-type]


async def test_limits_of_the_user_reach_the_throttle(client: SimClient, autojump_clock: MockClock) -> None:
    async with attached(client, iops=500, mbps=60.0) as stack:
        throttle = stack.status()["throttle"]
        assert isinstance(throttle, dict)
        assert (throttle["iops"], throttle["mbps"]) == (500, 60.0)


@pytest.mark.parametrize(("io_timeout_s", "attempt_s"), [(None, 30.0), (300.0, 30.0), (6.0, 2.0)])
def test_a_short_io_timeout_has_time_for_another_attempt(io_timeout_s: float | None, attempt_s: float) -> None:
    assert StackOptions.of(AttachOptions(io_timeout_s=io_timeout_s), "here").attempt_timeout_s == attempt_s


@pytest.mark.parametrize(
    ("endpoint", "checksum", "wanted"),
    [
        ("https://account.blob.core.windows.net", "auto", False),
        ("http://10.0.0.1:10000/account", "auto", True),
        ("http://127.0.0.1:10000/account", "auto", False),
        ("https://account.blob.core.windows.net", "md5", True),
        ("http://10.0.0.1:10000/account", "none", False),
    ],
)
def test_checksums_where_tls_does_not_check(endpoint: str, checksum: str, wanted: bool) -> None:
    address = DiskAddress("account", "container", "disk.img", endpoint=Endpoint.parse(endpoint))
    assert _wants_checksum(address, StackOptions(checksum=checksum)) is wanted  # type: ignore[arg-type]


async def test_writes_that_overlap_are_never_in_flight_at_once(client: SimClient, autojump_clock: MockClock) -> None:
    async with attached(client) as stack, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(stack.store.write, 0, DATA)
    assert client.sent.count("put") == 4
    assert client.overlaps == []


async def test_a_write_that_begins_while_the_lease_is_lost_ends_with_the_io_timeout(
    client: SimClient, autojump_clock: MockClock
) -> None:
    async with attached(client, io_timeout_s=200.0) as stack:
        client.down = True
        await trio.sleep(61)
        started = trio.current_time()
        with trio.move_on_after(1000), pytest.raises(StoreError) as caught:
            await stack.store.write(0, DATA)
        assert trio.current_time() - started == pytest.approx(200, abs=1)
        assert caught.value.kind is Kind.TIMEOUT


async def test_an_io_timeout_that_is_shortened_reaches_what_is_on_its_way(
    client: SimClient, autojump_clock: MockClock
) -> None:
    async with attached(client, io_timeout_s=200.0) as stack:
        await stack.store.write(0, DATA)
        client.fate = lambda name: Fate(before_s=100.0)
        started = trio.current_time()

        async def shorten() -> None:
            await trio.sleep(1)
            stack.set_io_timeout(5.0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shorten)
            with pytest.raises(StoreError):
                await stack.store.read(0, 512)
        assert trio.current_time() - started < 10
