"""Memory is short: dirty pages can only be freed by writing them through the worker, which must want none for that.

The groups are control groups of the tests' own, so it is never this machine's memory that is short.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.cgroups import MemoryGroup, memory_group
from tests.e2e.kit import BIN, Node, faulty_node, until
from tests.e2e.loads import MIB, fio, unsafe_writes

__all__ = ["faulty_node"]

SIZE = 256 * MIB
# Fills what is left of its group again and again; the OOM killer takes a child of it, and nobody else.
HOG = """
import os
open("/proc/self/oom_score_adj", "w").write("1000")
while True:
    if os.fork() == 0:
        blocks = []
        while True:
            blocks.append(bytearray(b"x") * (1 << 20))
    os.wait()
"""


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    with memory_group() as group:
        yield group


@pytest.fixture
def node(faulty_node: Node, server: PageBlobServer) -> Node:
    """A node whose service takes 2 ms, so that pages pile up."""
    server.configure(latency_ms=2)
    return faulty_node


def shown(node: Node, verb: str = "get") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.ok(verb, "data", "-o", "json"))
    return found


def worker_of(node: Node) -> int:
    """Its process id."""
    found = json.loads((node.dirs.run / "data" / "state.json").read_text())
    return int(found["worker"]["pid"])


def copy(group: MemoryGroup, path: Path) -> None:
    """Write far more than the group has room for, through the page cache, and wait until all is written."""
    command = group.words("dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={SIZE // MIB}", "conv=fsync")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("full", [False, True], ids=["tight", "full"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_writeback_goes_on(node: Node, server: PageBlobServer, group: MemoryGroup, kind: str, full: bool) -> None:
    """The group of the writers has 64 MiB for everything; when full, another process wants all of that as well."""
    assert node.mount(node.create(), f"fstype={kind}").code == 0
    group.limit(64 * MIB)
    hog = subprocess.Popen(group.words(sys.executable, "-c", HOG), start_new_session=True) if full else None
    try:
        copy(group, node.mountpoint / "file")
    finally:
        if hog:
            os.killpg(hog.pid, signal.SIGKILL)
            hog.wait()
    found = shown(node)
    assert (found["state"], found["restarts"]) == ("attached", 0)
    assert node.umount().code == 0
    assert unsafe_writes(server) == {}


def test_the_worker_needs_no_more_memory_the_more_is_written(
    node: Node, server: PageBlobServer, group: MemoryGroup
) -> None:
    """Once warm, holder and worker live in what they have and 16 MiB, or the OOM killer ends them.

    Warm: each of the tasks that take requests has had one of the largest, whose buffer it keeps.
    """
    words = group.words(str(BIN / "dyskctl"), "attach", node.create(), "--write-cache-size", "16MiB")
    done = node.run(*words)
    assert done.code == 0, done
    device = done.out.strip()
    fio(device, size="128m", bsrange="1m-1m", loops=3)  # by chance alone, some would have had no large one yet
    fio(device, size="128m", bsrange="4k-1m", loops=5)
    worker, warm = worker_of(node), group.used
    group.limit(warm + 16 * MIB)
    fio(device, size="128m", bsrange="4k-1m", loops=5, randseed=1)
    assert shown(node)["restarts"] == 0
    assert worker_of(node) == worker
    assert group.used <= warm + 16 * MIB
    node.ok("detach", "data")
    assert unsafe_writes(server) == {}


def anonymous(pid: int) -> int:
    """Bytes of its own memory, from no file, that a process has (proc_pid_smaps(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) * 1024


@pytest.mark.parametrize("cache", ["none", "readwrite"])
def test_memory_comes_back_after_a_load(node: Node, cache: str) -> None:
    """Many large requests at once, then many more small ones, which would keep a buffer of each large one in use."""
    device = node.ok("attach", node.create(), "--cache", cache, "--write-cache-size", "16MiB").strip()
    worker = worker_of(node)
    fio(device, size="1m", bs="4k", rw="write", iodepth=1)
    fresh = anonymous(worker)
    fio(device, size="256m", bs="1m", rw="write", iodepth=32)
    fio(device, size="256m", bs="1m", rw="read", iodepth=32)
    fio(device, size="32m", bs="4k", rw="randwrite", iodepth=128)
    loaded = anonymous(worker)
    until(lambda: anonymous(worker) <= fresh + 15 * MIB, f"{loaded >> 20} MiB to fall to {fresh >> 20} + 15", 30)
    node.ok("detach", "data")
