"""The whole stack over real sockets: the contract and the lease at both services, every fault at our own server.

After each fault the data is verified by the model of the random tests, and the server has seen no two overlapping
writes in flight that could both land, and none without lease or epoch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import Kind, LeasedError, NotFoundError, StoreError
from blobfuse_dysk.store.contract import PAGE, Store
from blobfuse_dysk.store.open import ResumeState, open_stack
from blobfuse_dysk.store.stack import Stack, StackOptions
from blobfuse_dysk.testing import CHECKS, LaneStore, PageBlobServer, check_name
from blobfuse_dysk.testing.conformance import Check
from tests.conftest import Service
from tests.contract.model import PAGES, SIZE, Program, Run, check, model_of
from tests.wire.clients import address_of, by_key, client_of, new_disk

pytestmark = pytest.mark.usefixtures("way")

DATA = b"x" * 512
OTHER = "22222222-3333-4444-5555-666666666666"


@asynccontextmanager
async def attached(
    service: Service, disk: DiskAddress, *, resume: ResumeState | None = None, **options: Any
) -> AsyncIterator[Stack]:
    async with open_stack(
        disk, by_key(service), StackOptions(**{"node": "here", **options}), resume=resume, random=Random(0)
    ) as stack:
        yield stack


async def fails(call: Any, kind: Kind) -> None:
    with pytest.raises(StoreError) as caught:
        await call
    assert caught.value.kind is kind, caught.value


@pytest.mark.parametrize("in_lanes", [False, True])
@pytest.mark.parametrize("check", CHECKS, ids=check_name)
async def test_the_stack_keeps_the_contract_at_both_services(
    check: Check, service: Service, container: str, in_lanes: bool
) -> None:
    disk = new_disk(service, container)

    @asynccontextmanager
    async def factory() -> AsyncIterator[Store]:
        async with attached(service, disk) as stack:
            yield LaneStore(stack.store) if in_lanes else stack.store
            await stack.release()

    await check(factory)


@pytest.mark.parametrize("lease_id", [None, OTHER])
async def test_a_lease_that_is_being_broken_is_told_as_that_and_can_be_cut_short(
    service: Service, container: str, lease_id: str | None
) -> None:
    """Somebody broke it and left its holder a while: it is neither free nor as good as held."""
    disk = new_disk(service, container)
    async with client_of(service, disk) as client:
        await client.set_metadata({"dysk_node": "old"}, lease_id=None, timeout_s=30)
        await client.acquire_lease(60, proposed_id=OTHER, timeout_s=30)
        await client.break_lease(period_s=40, timeout_s=30)
        with pytest.raises(LeasedError, match="leased by node old, and that lease is being broken") as caught:
            async with attached(service, disk, lease_id=lease_id):
                raise AssertionError("attached")
        assert caught.value.holder == "old"
        assert "within a minute" in (caught.value.remedy or "")
        async with attached(service, disk, lease_id=lease_id, break_lease=True) as stack:
            await stack.store.write(0, DATA)
            await stack.release()


async def test_attach_refuse_take_over(service: Service, container: str) -> None:
    disk = new_disk(service, container)
    async with attached(service, disk, node="old") as old, client_of(service, disk) as client:
        assert (await client.properties(timeout_s=30)).sequence_number == old.epoch
        await old.store.write(0, DATA)
        with pytest.raises(LeasedError, match="leased by node old since 2"):
            async with attached(service, disk, node="new"):
                raise AssertionError("attached")
        async with attached(service, disk, node="new", break_lease=True) as new:
            assert bytes(await new.store.read(0, 512)) == DATA
            await new.store.write(0, b"y" * 512)
            await fails(old.store.write(0, DATA), Kind.FENCED)
            await fails(old.store.read(0, 512), Kind.FENCED)
            assert old.state == "fenced"
            assert bytes(await new.store.read(0, 512)) == b"y" * 512
            await new.release()
        found = await client.properties(timeout_s=30)
        assert found.lease_state == "available"
        assert "dysk_node" not in found.metadata


async def test_a_worker_goes_on_with_the_lease_until_somebody_else_had_the_disk(
    service: Service, container: str
) -> None:
    disk = new_disk(service, container)
    async with attached(service, disk) as old:
        await old.store.write(0, DATA)
        state = ResumeState(old.lease_id or "", old.epoch or 0, old.lease_s)
    async with attached(service, disk, resume=state) as new:
        assert new.epoch is not None
        assert new.epoch > state.epoch
        await new.store.write(512, DATA)
        assert bytes(await new.store.read(0, 1024)) == DATA * 2
        await new.release()
    async with attached(service, disk) as other:
        await other.release()
    with pytest.raises(StoreError) as caught:
        async with attached(service, disk, resume=state):
            raise AssertionError("attached")
    assert caught.value.kind is Kind.FENCED


async def test_the_second_of_two_with_one_lease_id_has_the_disk(service: Service, container: str) -> None:
    disk = new_disk(service, container)
    lease_id = "11111111-2222-3333-4444-555555555555"
    async with (
        attached(service, disk, lease_id=lease_id, lease_s=None) as old,
        attached(service, disk, lease_id=lease_id, lease_s=None) as new,
    ):
        await new.store.write(0, DATA)
        await fails(old.store.write(0, b"y" * 512), Kind.FENCED)
        assert bytes(await new.store.read(0, 512)) == DATA
        await new.release()


async def test_a_sparse_disk_of_8_tib(service: Service, container: str) -> None:
    disk = new_disk(service, container, size=8 << 40)
    async with attached(service, disk) as stack:
        for offset in (0, 1 << 40, (8 << 40) - 512):
            await stack.store.write(offset, DATA)
        await stack.store.zero(1 << 30, 7 << 40)
        assert await stack.store.extents(0, 8 << 40) == [(0, 512), ((8 << 40) - 512, 512)]
        await stack.release()
    async with attached(service, disk, read_only=True) as stack:
        assert await stack.store.extents(0, 8 << 40) == [(0, 512), ((8 << 40) - 512, 512)]


async def test_no_such_blob(service: Service, container: str) -> None:
    new_disk(service, container)
    with pytest.raises(NotFoundError):
        async with attached(service, address_of(service, container, "other")):
            raise AssertionError("attached")


FAULTS: list[dict[str, Any]] = [
    {"action": "error", "status": 503, "retry_after_s": 1, "times": 4},
    {"action": "error", "status": 500, "code": "OperationTimedOut", "probability": 0.2},
    {"action": "error", "status": 500, "code": "OperationTimedOut", "when": "after", "probability": 0.2},
    {"action": "error", "status": 500, "code": "InternalError", "when": "after", "probability": 0.2},
    {"action": "reset", "when": "before", "probability": 0.2},
    {"action": "reset", "when": "after", "probability": 0.2},
    {"action": "lost", "connection": "close", "probability": 0.2},
    {"action": "lost", "connection": "open", "probability": 0.05},
    {"action": "late", "connection": "reset", "seconds": 0.05, "probability": 0.2},
    {"action": "late", "connection": "reset", "seconds": 2.0, "probability": 0.2},
    {"action": "late", "status": 500, "seconds": 0.5, "probability": 0.2},
    {"action": "delay", "seconds": 0.2, "probability": 0.2},
    {"action": "delay", "seconds": 1.5, "probability": 0.05},
    {"action": "stall", "seconds": 1.5, "probability": 0.05},
    {"action": "short", "probability": 0.2},
    {"action": "corrupt", "probability": 0.2},
    {"action": "wrong_etag", "probability": 0.5},
    {"action": "blackhole", "probability": 0.05},
    {"action": "error", "status": 403, "probability": 0.1},
]


def name_of(fault: dict[str, Any]) -> str:
    return "-".join(str(value) for key, value in fault.items() if key != "probability")


def program(random: Random, tasks: int, steps: int) -> Program:
    return [
        [
            (
                random.choice(["write", "write", "write", "zero", "blank", "read", "read", "flush"]),
                random.randrange(PAGES),
                random.randint(1, 6),
                random.choice([None, None, None, None, 0.002]),
                0.0,
            )
            for _ in range(steps)
        ]
        for _ in range(tasks)
    ]


async def verified(
    server: PageBlobServer, disk: DiskAddress, *, in_lanes: bool = False, **options: Any
) -> dict[str, Any]:
    """Run a random program, then clear the faults, verify everything; returns the stack's status."""
    random, model = Random(7), model_of()
    async with attached(server, disk, attempt_timeout_s=1.0, **options) as stack:
        lanes = LaneStore(stack.store)
        run = Run(lanes if in_lanes else stack.store, model, set())
        await run.tasks(program(random, 12, 15))
        server.clear_faults()
        server.release()
        since = model.now()
        check(model, since, bytes(await stack.store.read(0, SIZE)))
        for page in range(PAGES):
            await run.one("write", page, 1)
        await trio.sleep(0.1)
        async with client_of(server, disk) as client:
            check(model, model.now(), bytes(await client.get_range(0, SIZE, timeout_s=30)))
        assert stack.state == "attached"
        status = stack.status()
        await stack.release()
    seen = server.stats()["blobs"][f"{disk.account}/{disk.container}/{disk.blob}"]
    assert seen["overlapping_writes"] == 0
    assert seen["writes_without_lease"] == 0
    assert seen["writes_without_epoch"] == 0
    return status


@pytest.mark.parametrize("in_lanes", [False, True])
@pytest.mark.parametrize("fault", FAULTS, ids=name_of)
async def test_no_fault_of_the_service_costs_data(
    fault: dict[str, Any], server: PageBlobServer, container: str, in_lanes: bool
) -> None:
    disk = new_disk(server, container)
    checksum = "md5" if fault["action"] == "corrupt" else "auto"
    server.fault(operation=["read", "write"], **fault)
    await verified(server, disk, in_lanes=in_lanes, checksum=checksum)


@pytest.mark.parametrize("in_lanes", [False, True])
async def test_data_survives_everything_at_once(server: PageBlobServer, container: str, in_lanes: bool) -> None:
    disk = new_disk(server, container)
    for fault in FAULTS:
        if fault["action"] not in ("blackhole", *(["corrupt"] if in_lanes else [])) and "times" not in fault:
            server.fault(operation=["read", "write"], **fault | {"probability": 0.02})
    await verified(server, disk, in_lanes=in_lanes, checksum="auto" if in_lanes else "md5")


async def test_a_late_write_is_refused(server: PageBlobServer, container: str) -> None:
    """Held at the server while its sender gave up and wrote something else there."""
    disk = new_disk(server, container)
    async with attached(server, disk) as stack:
        assert stack.epoch is not None
        first = stack.epoch
        server.fault("late", operation="put_page", times=1, connection="reset")
        await stack.store.write(0, b"o" * 512)
        server.fault("late", operation="put_page", times=1, connection="open")
        with trio.move_on_after(0.2):
            await stack.store.write(0, b"o" * 512)
        await stack.store.write(0, DATA)
        assert stack.epoch == first + 2
        assert server.release() == 2
        assert bytes(await stack.store.read(0, 512)) == DATA
        assert server.stats()["held_refused"] == 2
        assert server.stats()["held_applied"] == 0
        await stack.release()


@pytest.mark.parametrize("kind", ["silent", "refuse"])
async def test_an_outage_is_a_pause(kind: str, server: PageBlobServer, container: str) -> None:
    disk = new_disk(server, container)
    async with attached(server, disk, attempt_timeout_s=1.0) as stack:
        await stack.store.write(0, DATA)
        server.outage(kind)
        async with trio.open_nursery() as nursery:
            for page in range(8):
                nursery.start_soon(stack.store.write, page * PAGE, DATA)
            await trio.sleep(1.5)
            server.outage(None)
        assert bytes(await stack.store.read(0, 8 * PAGE)) == DATA * 8
        await stack.release()


async def test_longer_than_io_timeout_is_an_error(server: PageBlobServer, container: str) -> None:
    disk = new_disk(server, container)
    async with attached(server, disk, io_timeout_s=1.0) as stack:
        server.outage("silent")
        await fails(stack.store.write(0, DATA), Kind.TIMEOUT)
        await fails(stack.store.read(0, 512), Kind.TIMEOUT)
        server.outage(None)
        stack.set_io_timeout(60.0)
        await stack.store.write(0, DATA)
        await stack.release()


async def test_a_lease_that_ran_out_unnoticed_is_renewed(server: PageBlobServer, container: str) -> None:
    """The service's clock is ahead of ours: it refuses our lease id, and renews it, since nobody took it."""
    disk = new_disk(server, container)
    async with attached(server, disk) as stack:
        server.elapse_leases(61)
        await stack.store.write(0, DATA)
        assert stack.state == "attached"
        assert server.blob(disk.container, disk.blob)["lease"]["state"] == "leased"
        await stack.release()


async def test_a_lease_that_ran_out_and_was_taken_fences(server: PageBlobServer, container: str) -> None:
    disk = new_disk(server, container)
    async with attached(server, disk) as old:
        server.elapse_leases(61)
        async with attached(server, disk) as new:
            await new.store.write(0, DATA)
            await new.release()
        await fails(old.store.write(0, b"y" * 512), Kind.FENCED)
        await fails(old.store.flush(), Kind.FENCED)
        async with client_of(server, disk) as client:
            assert bytes(await client.get_range(0, 512, timeout_s=30)) == DATA


async def test_a_blob_deleted_while_attached(server: PageBlobServer, container: str) -> None:
    disk = new_disk(server, container)
    async with attached(server, disk) as stack:
        await stack.store.write(0, DATA)
        server.remove(disk.container, disk.blob)
        await fails(stack.store.read(0, 512), Kind.GONE)
        await fails(stack.store.write(0, DATA), Kind.GONE)


async def test_a_fragmented_disk(server: PageBlobServer, container: str) -> None:
    """More extents than one answer holds."""
    disk = new_disk(server, container, size=64 << 20)
    async with attached(server, disk) as stack:
        expected = [(page * 1024, 512) for page in range(12_000)]
        async with trio.open_nursery() as nursery:
            for first in range(100):
                nursery.start_soon(_write_all, stack.store, expected[first::100])
        await stack.release()
    async with attached(server, disk, read_only=True) as stack:
        assert await stack.store.extents(0, 64 << 20) == expected


async def _write_all(store: Store, extents: list[tuple[int, int]]) -> None:
    for offset, length in extents:
        await store.write(offset, DATA[:length])
