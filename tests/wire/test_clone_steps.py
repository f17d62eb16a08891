"""disks/clonesteps.py where somebody else was there meanwhile: what is not ours, or complete, is left as it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import trio

from blobfuse_dysk.azure.diskclient import DiskClient
from blobfuse_dysk.azure.marks import CloneMark
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.clonesteps import follow, look, undo
from blobfuse_dysk.disks.create import create_disk
from blobfuse_dysk.errors import FailedCopyError
from blobfuse_dysk.options import AttachOptions
from tests.conftest import Service
from tests.wire.clients import by_key
from tests.wire.disk_options import named

T = TypeVar("T")
MIB = 1 << 20
OURS = CloneMark("mystore/disks/data", temporary=False, clone_id="1" * 32, size=MIB, source_size=MIB, vhd=False)
LEFT_ALONE = {
    "a disk that is no clone": {},
    "somebody else's unfinished clone": replace(OURS, clone_id="2" * 32).to_metadata(),
    "our clone, which is complete": OURS.origin(),
}


def asked(service: Service, disk: DiskAddress, step: Callable[[DiskClient], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with DiskClient(disk, by_key(service)) as client:
            return await step(client)

    return trio.run(ask)


@pytest.fixture(params=LEFT_ALONE.values(), ids=list(LEFT_ALONE))
def disk(request: pytest.FixtureRequest, service: Service, container: str) -> DiskAddress:
    address = named(service, container, "target")
    create_disk(address, MIB, AttachOptions())

    async def mark(client: DiskClient) -> None:
        await client.set_metadata(request.param, lease_id=None, timeout_s=10)

    asked(service, address, mark)
    return address


def test_giving_a_clone_up_deletes_no_disk_of_anybody_else_and_none_that_is_complete(
    service: Service, disk: DiskAddress
) -> None:
    asked(service, disk, lambda client: undo(client, OURS))
    assert asked(service, disk, look) is not None


def test_an_unfinished_clone_of_ours_is_deleted_when_it_is_given_up(service: Service, container: str) -> None:
    address = named(service, container, "target")
    create_disk(address, MIB, AttachOptions())

    async def mark_and_undo(client: DiskClient) -> None:
        await client.set_metadata(OURS.to_metadata(), lease_id=None, timeout_s=10)
        await undo(client, OURS)

    asked(service, address, mark_and_undo)
    assert asked(service, address, look) is None


def test_a_copy_that_somebody_else_finished_is_not_waited_for(service: Service, container: str) -> None:
    address = named(service, container, "target")
    create_disk(address, MIB, AttachOptions())
    assert asked(service, address, lambda client: follow(client, OURS, wait=True, progress=lambda progress: None))


def test_a_copy_of_which_the_service_tells_nothing_makes_no_complete_clone(service: Service, container: str) -> None:
    address = named(service, container, "target")
    create_disk(address, MIB, AttachOptions())

    async def mark_and_follow(client: DiskClient) -> bool:
        await client.set_metadata(OURS.to_metadata(), lease_id=None, timeout_s=10)
        return await follow(client, OURS, wait=True, progress=lambda progress: None)

    with pytest.raises(FailedCopyError, match="does not tell what became of the copy"):
        asked(service, address, mark_and_follow)
