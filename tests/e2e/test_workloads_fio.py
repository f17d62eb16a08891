"""fio writes, reads and verifies on the device and through file systems; the service then has what was written."""

from __future__ import annotations

import pytest

from tests.e2e.kit import Node, faulty_node, node, service_node
from tests.e2e.loads import FSCK, MIB, attached, blob_digest, call, device_digest, fio, server_of, unsafe_writes, used

__all__ = ["faulty_node", "node", "service_node"]


@pytest.mark.parametrize("engine", ["libaio", "io_uring"])
def test_on_the_device(service_node: Node, engine: str) -> None:
    node = service_node
    disk = node.create(size="32MiB")
    device = node.ok("attach", disk).strip()
    fio(device, ioengine=engine)
    before = device_digest(device)
    node.ok("detach", disk)
    assert blob_digest(node) == before
    device = node.ok("attach", disk, "--read-only").strip()
    assert device_digest(device) == before
    node.ok("detach", disk)
    assert node.nothing_left()


def test_every_block_size_and_several_jobs(faulty_node: Node) -> None:
    """512 bytes to 4 MiB, unaligned to anything but the sector; jobs with areas of their own."""
    device = attached(faulty_node, size=128 * MIB)
    fio(device, bsrange="512-4m", blockalign=512, numjobs=4, offset_increment="32m", size="24m", iodepth=8, loops=1)
    assert unsafe_writes(server_of(faulty_node)) == {}
    before = device_digest(device)
    faulty_node.ok("detach", "data")
    assert blob_digest(faulty_node) == before


@pytest.mark.parametrize("size", [512, 4096])
def test_a_disk_takes_requests_of_its_sector_size(faulty_node: Node, size: int) -> None:
    device = attached(faulty_node, "data", "--sector-size", str(size))
    assert call("blockdev", "--getss", device).strip() == str(size)
    fio(device, bsrange=f"{size}-64k", size="8m")
    assert unsafe_writes(server_of(faulty_node)) == {}
    faulty_node.ok("detach", "data")


def test_buffered_and_synchronous(faulty_node: Node) -> None:
    """Through the page cache, with fsync, and with O_SYNC."""
    device = attached(faulty_node)
    fio(device, direct=0, ioengine="psync", fsync=16, size="8m", loops=1)
    fio(device, ioengine="psync", sync=1, size="4m", loops=1)
    assert unsafe_writes(server_of(faulty_node)) == {}
    faulty_node.ok("detach", "data")


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_through_a_file_system(service_node: Node, fstype: str) -> None:
    node = service_node
    disk = node.create()
    assert node.mount(disk, f"fstype={fstype}").code == 0
    engine = "io_uring" if fstype == "ext4" else "libaio"
    fio(node.mountpoint / "load", ioengine=engine, size="8m")
    fio(node.mountpoint / "buffered", direct=0, ioengine="psync", end_fsync=1, size="4m", loops=1)
    written = used(node.mountpoint)
    assert {"load", "buffered"} <= set(written)
    assert node.umount().code == 0
    device = node.ok("attach", disk, "--read-only").strip()
    call(*FSCK[fstype], device)
    node.ok("detach", disk)
    assert node.mount(disk, "ro").code == 0
    assert used(node.mountpoint) == written
    assert node.umount().code == 0
    assert node.nothing_left()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_for_long_with_a_slow_and_uneven_service(faulty_node: Node) -> None:
    server_of(faulty_node).configure(latency_ms="lognormal:3,0.7")
    device = attached(faulty_node, size=256 * MIB)
    for number in range(20):
        fio(device, size="192m", loops=1, randseed=number, numjobs=1)
        assert unsafe_writes(server_of(faulty_node)) == {}
    before = device_digest(device)
    faulty_node.ok("detach", "data")
    assert blob_digest(faulty_node) == before
    assert faulty_node.nothing_left()
