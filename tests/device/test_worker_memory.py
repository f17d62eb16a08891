"""What the kernel copies requests into is in memory, also after a load whose memory was given back."""

from __future__ import annotations

import itertools
import mmap
import os
import re
import struct
import threading
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from tests.device.conftest import MIB, Node, flush, wait_for
from tests.device.programs import use_worker
from tests.device.test_worker_death import kill_worker

PAGE = mmap.PAGESIZE
PRESENT = 1 << 63  # in an entry of pagemap
FUSE_WRITE = 16
HEADERS = 40 + 40  # fuse_in_header, fuse_write_in
LARGE = 64 << 10  # bytes of a write whose data stays where the kernel copied it
BUFFER = MIB + 2 * PAGE  # see device/worker/channel.py


def in_parallel(device: str, count: int, size: int, mark: bytes) -> None:
    """Write `count` blocks at once, each by a request of its own, past the kernel's cache."""

    def write(number: int) -> None:
        data = mmap.mmap(-1, size)
        data[:] = mark * (size // len(mark))
        fd = os.open(device, os.O_WRONLY | os.O_DIRECT)
        try:
            os.pwrite(fd, data, number * size * 2)  # no neighbours: the block layer would join them
        finally:
            os.close(fd)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def present_pages(pid: int, start: int, end: int) -> list[bool]:
    """Which pages of a range are in memory. Source: Documentation/admin-guide/mm/pagemap.rst."""
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as file:
        file.seek(start // PAGE * 8)
        entries = file.read((end - start) // PAGE * 8)
    return [bool(entry & PRESENT) for (entry,) in struct.iter_unpack("<Q", entries)]


def request_buffers(pid: int, mark: bytes, least: int = 0) -> list[int]:
    """Where the worker's buffers are that hold a write request whose data begins with `mark`, of `least` bytes or more.

    Only what is in memory is looked at: to read any other page would bring it in.
    """
    found = []
    of_requests = r"^([0-9a-f]+)-([0-9a-f]+) (?:rw.p \S+ 00:00 |rw-s .*/memfd:dysk-taken)"
    areas = re.findall(of_requests, Path(f"/proc/{pid}/maps").read_text(), re.M)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for first, last in areas:
            page = int(first, 16)
            for there, run in itertools.groupby(present_pages(pid, page, int(last, 16))):
                length = len(list(run)) * PAGE
                if there:
                    memory.seek(page)
                    content = memory.read(length)
                    for match in re.finditer(re.escape(mark), content):
                        begin = match.start() - HEADERS
                        if begin >= 0:
                            size, opcode = struct.unpack_from("<II", content, begin)
                            if opcode == FUSE_WRITE and size >= least:
                                found.append(page + begin)
                page += length
    return found


def missing_pages(pid: int, start: int, length: int) -> int:
    """Pages of a range that are not in memory."""
    return present_pages(pid, start - start % PAGE, start + length + -(start + length) % PAGE).count(False)


def test_the_ring_of_a_disk_with_little_to_do_has_no_memory(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once written all the way round, in the log of a file system that is hardly used, too; what is in it stays."""
    use_worker(monkeypatch, tmp_path, "from blobfuse_dysk.device.worker import idle\nidle.LOOK_S = 0.5")
    attached = node.attach(node.create(), write_cache_size=16 * MIB)
    for number in range(3):
        in_parallel(attached.device, 24, MIB, bytes([number + 1]) * 16)
    flush(attached.device)
    worker = node.state("data")["worker"]["pid"]
    fds = Path(f"/proc/{worker}/fd")
    ring = next(fd for fd in fds.iterdir() if "dysk-ring" in str(fd.readlink()))
    wait_for(lambda: ring.stat().st_blocks * 512 <= PAGE, "the return of the ring's memory")
    in_parallel(attached.device, 24, MIB, b"last")
    kill_worker(node)
    with Path(attached.device).open("rb", buffering=0) as device:
        for number in range(24):
            device.seek(number * MIB * 2)
            assert device.read(PAGE) == b"last" * (PAGE // 4)
    attachment.detach("data")
    node.assert_nothing_left()


@pytest.mark.parametrize("kept", [False, True], ids=["buffers", "kept"])
def test_buffers_for_requests_are_in_memory_after_memory_was_given_back(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: bool
) -> None:
    """Each large write keeps its buffer, and the next request comes into another one: as a whole, before it comes.

    A load of large requests was there before, whose memory was given back. Between what is freed there live small
    things on, as caches have them. Where requests are kept, a small one moves, so that there is nothing to be seen,
    also where it is a piece of what was written: the block layer cuts that by how the writer's memory lies.
    """
    if kept:
        monkeypatch.setenv("DYSK_RESEND", "no")
    given = tmp_path / "given"
    use_worker(
        monkeypatch,
        tmp_path,
        "from blobfuse_dysk.device.kernel import hardening\n"
        "from blobfuse_dysk.device.worker import idle\n"
        "idle.LOOK_S = 1.0\n"
        f"file = open({str(given)!r}, 'a', buffering=1)\n"  # while it is root still
        "def noted(real=hardening.give_memory_back):\n"
        "    real()\n"
        "    print('given', file=file)\n"
        "hardening.give_memory_back = noted\n"
        "from blobfuse_dysk.device.worker.blockfile import BlockFile\n"
        "kept = []\n"
        "def passage(self, *call, real=BlockFile.passage):\n"
        "    kept.append(bytes(2000))\n"
        "    return real(self, *call)\n"
        "BlockFile.passage = passage\n",
    )
    node.server.configure(latency_ms=20)
    attached = node.attach(node.create(), cache="none")
    for _ in range(4):
        in_parallel(attached.device, 24, MIB, b"load")
    wait_for(lambda: given.exists() and given.read_text().count("given") >= 3, "the return of the memory")
    worker = node.state("data")["worker"]["pid"]
    node.server.configure(latency_ms=4000)
    large, small = os.urandom(16), os.urandom(16)
    writes = threading.Thread(target=in_parallel, args=(attached.device, 24, MIB, large))
    last = threading.Thread(target=in_parallel, args=(attached.device, 1, PAGE, small))
    writes.start()
    try:
        wait_for(lambda: len(request_buffers(worker, large, LARGE)) >= 24, "24 requests in flight")
        last.start()
        wait_for(lambda: len(request_buffers(worker, small)) == 1, "one more")
        buffers = request_buffers(worker, large, LARGE) + ([] if kept else request_buffers(worker, small))
        missing = [missing_pages(worker, each, BUFFER) for each in buffers]
    finally:
        node.server.configure(latency_ms=0)
        writes.join()
        last.join()
    assert missing == [0] * len(buffers)
    attachment.detach("data")
