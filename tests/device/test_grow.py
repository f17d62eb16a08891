"""A disk grows while it is in use: the blob, the file, the device, what is on it; over the death of a worker, too."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from random import Random

import pytest

from blobfuse_dysk import attachment, live
from blobfuse_dysk.errors import DyskError, UsageError
from blobfuse_dysk.vhd import FOOTER_SIZE, Layout, footer, parse_footer
from tests.device.conftest import MIB, Node, fill, wait_for
from tests.device.test_worker_death import direct_read, kill_worker


def device_size(device: str) -> int:
    """Bytes, by the kernel."""
    return int(subprocess.run(["blockdev", "--getsize64", device], capture_output=True, check=True).stdout)


def write_at(device: str, offset: int, data: bytes) -> None:
    """Write durably, past the page cache's idea of where the device ends."""
    with Path(device).open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, offset)
        os.fsync(file.fileno())


def read_at(device: str, offset: int, length: int) -> bytes:
    with Path(device).open("rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


def test_a_disk_grows_under_load_and_its_new_end_is_used_at_once(node: Node) -> None:
    disk = node.create(size=64 * MIB)
    attached = node.attach(disk)
    written: dict[int, bytes] = {}
    stop = threading.Event()
    failures: list[BaseException] = []

    def load(first: int) -> None:
        """Writes of its own places, each in the end with the content that was written last."""
        random = Random(first)
        try:
            with Path(attached.device).open("r+b", buffering=0) as file:
                while not stop.is_set():
                    offset = first * 16 * MIB + random.randrange(100) * 4096
                    written[offset] = random.randbytes(4096)
                    os.pwrite(file.fileno(), written[offset], offset)
                    if random.random() < 0.1:
                        os.fsync(file.fileno())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for mib in (80, 97, 256, 8 << 20):
            before = device_size(attached.device)
            live.grow("data", mib * MIB)
            assert device_size(attached.device) == mib * MIB == node.blob()["size"]
            assert read_at(attached.device, before, 4096) == bytes(4096)
            for offset in (before, mib * MIB - 4096):
                written[offset] = offset.to_bytes(8, "little") * 512
                write_at(attached.device, offset, written[offset])
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert node.state("data")["size"] == node.state("data")["blob_size"] == 8 << 40
    attachment.detach("data")
    attached = node.attach(disk)
    assert device_size(attached.device) == 8 << 40
    for offset, data in written.items():
        assert read_at(attached.device, offset, 4096) == data, offset
    attachment.detach("data")


@pytest.mark.parametrize("layout", Layout)
def test_the_footer_of_a_vhd_moves(node: Node, layout: Layout) -> None:
    size = 64 * MIB if layout is Layout.BEHIND else 64 * MIB - FOOTER_SIZE
    disk = node.create(size=size + FOOTER_SIZE)
    attached = node.attach(disk, vhd="no")
    said = size if layout is Layout.BEHIND else size + FOOTER_SIZE
    write_at(attached.device, size, footer(said))
    attachment.detach("data")
    attached = node.attach(disk)
    assert device_size(attached.device) == size
    data = fill(attached.device, 1, MIB)
    new = 96 * MIB
    live.grow("data", new)
    assert device_size(attached.device) == new
    assert read_at(attached.device, size, 4096) == bytes(4096)
    write_at(attached.device, new - 4096, b"e" * 4096)
    attachment.detach("data")
    attached = node.attach(disk)
    assert device_size(attached.device) == new and node.state("data")["vhd"]
    assert direct_read(attached.device, MIB) == data
    assert read_at(attached.device, new - 4096, 4096) == b"e" * 4096
    attachment.detach("data")
    attached = node.attach(disk, vhd="no")
    found = parse_footer(read_at(attached.device, new, FOOTER_SIZE))
    assert found is not None and found.layout(new + FOOTER_SIZE) is layout
    attachment.detach("data")


def test_the_next_worker_serves_the_size_that_the_device_has(node: Node) -> None:
    attached = node.attach(node.create(size=64 * MIB))
    live.grow("data", 96 * MIB)
    write_at(attached.device, 96 * MIB - 4096, b"a" * 4096)
    kill_worker(node)
    assert read_at(attached.device, 96 * MIB - 4096, 4096) == b"a" * 4096
    write_at(attached.device, 80 * MIB, b"b" * 4096)
    live.grow("data", 128 * MIB)
    assert device_size(attached.device) == 128 * MIB
    attachment.detach("data")


def test_a_worker_that_dies_while_it_grows_the_disk_leaves_one_that_can_grow(node: Node) -> None:
    """Its request is held up on the way and arrives when the next worker has grown the disk further: it is void."""
    attached = node.attach(node.create(size=64 * MIB))
    data = fill(attached.device, 3, MIB)
    fault = node.server.fault("late", operation="set_blob_properties")
    answers: list[DyskError] = []

    def ask() -> None:
        try:
            live.grow("data", 96 * MIB)
        except DyskError as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: node.server.faults()[0]["hits"], "the request")
    node.server.clear_faults(fault)
    os.kill(node.state("data")["worker"]["pid"], signal.SIGKILL)
    thread.join(30)
    assert answers
    wait_for(lambda: attachment.get("data").state == "attached", "the next worker")
    assert direct_read(attached.device, MIB) == data
    live.grow("data", 128 * MIB)
    write_at(attached.device, 128 * MIB - 4096, b"z" * 4096)
    assert node.server.release() >= 1
    assert node.blob()["size"] == 128 * MIB == device_size(attached.device)
    assert direct_read(attached.device, 128 * MIB)[-4096:] == b"z" * 4096
    attachment.detach("data")


def test_what_is_refused_leaves_everything_as_it_was(node: Node) -> None:
    disk = node.create(size=64 * MIB)
    attached = node.attach(disk)
    for size in (32 * MIB, 64 * MIB + 512):
        with pytest.raises(UsageError):
            live.grow("data", size)
    live.grow("data", 64 * MIB)
    assert device_size(attached.device) == node.blob()["size"] == 64 * MIB
    attachment.detach("data")
    node.attach(disk, read_only=True)
    with pytest.raises(DyskError, match="read-only"):
        live.grow("data", 128 * MIB)
    attachment.detach("data")
    assert node.blob()["size"] == 64 * MIB
