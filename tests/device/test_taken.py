"""Workers die on kernels that cannot send their requests again: what they had taken is served by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from random import Random

import pytest

from blobfuse_dysk import attachment, live
from blobfuse_dysk.device.kernel import fuse
from tests.conftest import choose_way
from tests.device.conftest import MIB, Node, fill, flush, wait_for
from tests.device.programs import NO_RECOVERY, use_holder
from tests.device.test_worker_death import direct_read, kill_worker, verifying


@pytest.fixture(autouse=True)
def older_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYSK_RESEND", "no")


def memory_of(pid: int) -> Path | None:
    """A process's descriptor of the memory of taken requests."""
    for each in Path(f"/proc/{pid}/fd").iterdir():
        if str(each.readlink()).startswith("/memfd:dysk-taken"):
            return each
    return None


def in_memory(path: Path) -> int:
    return path.stat().st_blocks * 512


def told_so_often(node: Node, line: str, times: int) -> bool:
    return node.log("data").count(line) == times


def test_a_kernel_says_for_which_request_it_waits(tmp_path: Path) -> None:
    """As often as it is asked, and until that is answered."""
    fd = fuse.open_device()
    fuse.mount(fd, str(tmp_path), "test", read_only=False)
    try:
        init = fuse.read_init(fd)
        unique = fuse.IN_HEADER.unpack_from(init)[2]
        assert [fuse.waits_for(fd, each) for each in (unique, unique + 2, unique, unique + 4)] == [1, 0, 1, 0]
        fuse.refuse(fd, unique + 2, 5)
        assert fuse.waits_for(fd, unique)
        fuse.refuse(fd, unique, 5)
        assert not fuse.waits_for(fd, unique)
        fuse.refuse(fd, unique, 5)
    finally:
        fuse.unmount(str(tmp_path))
        os.close(fd)


@pytest.mark.parametrize(
    ("way", "depth", "cache"),
    [
        ("C", 1, "none"),
        ("C", 1, "readwrite"),
        ("C", 128, "none"),
        ("C", 128, "readonly"),
        ("C", 128, "readwrite"),
        ("Python", 1, "readwrite"),
        ("Python", 128, "none"),
    ],
)
def test_killed_under_load(node: Node, way: str, depth: int, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No I/O error and no wrong byte, and somebody was killed while it had requests."""
    choose_way(way, monkeypatch)
    node.server.configure(latency_ms=2)
    attached = node.attach(node.create(), cache=cache)
    fio = subprocess.Popen(
        verifying(attached.device, bsrange="4k-256k", iodepth=depth, fsync=16, size="24m", loops=8),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    kills = 0
    while fio.poll() is None and kills < 5:
        kill_worker(node)
        kills += 1
        time.sleep(0.3)
    output = fio.communicate()[0].decode()
    assert fio.returncode == 0, output
    assert kills >= 2
    assert "that were taken before are served first" in node.log("data")
    attachment.detach("data")
    node.assert_nothing_left()


def test_what_waits_for_the_service_is_taken_over_by_one_worker_after_the_other(node: Node) -> None:
    """None of them gets it answered, but the last."""
    attached = node.attach(node.create(), cache="none")
    written = fill(attached.device, 1, 4 * MIB)
    flush(attached.device)
    node.server.outage("refuse")
    readers = [
        subprocess.Popen(
            ["dd", f"if={attached.device}", "bs=64k", "count=1", f"skip={at}", "iflag=direct", "status=none"],
            stdout=subprocess.PIPE,
        )
        for at in range(0, 64, 4)
    ]
    time.sleep(0.5)
    told = "16 requests that were taken before are served first"
    for times in (1, 2, 3):
        os.kill(node.state("data")["worker"]["pid"], signal.SIGKILL)
        wait_for(partial(told_so_often, node, told, times), "another worker that has them")
    node.server.outage(None)
    for at, reader in zip(range(0, 64, 4), readers, strict=True):
        assert reader.communicate()[0] == written[at << 16 : (at + 1) << 16]
    wait_for(lambda: attachment.get("data").state == "attached", "the state attached")
    attachment.detach("data")
    node.assert_nothing_left()


def test_a_worker_that_does_not_get_done_is_replaced_all_the_same(node: Node) -> None:
    """As on kernels that send requests again: what it could not answer is taken over."""
    attached = node.attach(node.create(), cache="none")
    written = fill(attached.device, 1, MIB)
    flush(attached.device)
    node.server.outage("refuse")
    reader = subprocess.Popen(
        ["dd", f"if={attached.device}", "bs=1M", "count=1", "iflag=direct", "status=none"], stdout=subprocess.PIPE
    )
    time.sleep(0.5)
    live.upgrade("data")
    node.server.outage(None)
    assert reader.communicate()[0] == written
    wait_for(lambda: attachment.get("data").state == "attached", "the state attached")
    attachment.detach("data")
    node.assert_nothing_left()


def test_the_memory_is_given_back_and_nobody_has_it_where_the_kernel_sends_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.server.configure(latency_ms=30)
    attached = node.attach(node.create(), cache="none")
    found = node.state("data")
    memory = memory_of(found["holder"]["pid"])
    assert memory is not None
    assert memory_of(found["worker"]["pid"]) is not None
    load = verifying(attached.device, bsrange="1m-1m", iodepth=32, size="64m", loops=2)
    subprocess.run(load, check=True, capture_output=True)
    assert in_memory(memory) > 8 * MIB
    node.server.configure(latency_ms=0)
    wait_for(lambda: in_memory(memory) < 3 * MIB, "the end of the load", limit_s=40)
    assert direct_read(attached.device, MIB)
    attachment.detach("data")
    monkeypatch.delenv("DYSK_RESEND")
    if os.uname().release.split(".") >= ["6", "9"]:
        node.attach("data")
        found = node.state("data")
        assert memory_of(found["holder"]["pid"]) is memory_of(found["worker"]["pid"]) is None
        attachment.detach("data")
    node.assert_nothing_left()


def test_under_a_holder_that_has_no_memory_the_disk_fails_as_before(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of an older version: nobody knows what the worker had taken, so nothing may wait for it."""
    use_holder(monkeypatch, tmp_path, NO_RECOVERY)
    attached = node.attach(node.create())
    user = os.open(attached.device, os.O_RDONLY)
    fio = subprocess.Popen(verifying(attached.device, loops=50), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: attachment.status("data")["requests"]["in_flight"], "the load")
    os.kill(node.state("data")["worker"]["pid"], signal.SIGKILL)
    assert fio.wait(30) != 0
    found = attachment.get("data")
    assert found.state == "failed"
    assert "on this kernel (before 6.9)" in str(found.detail)
    os.close(user)
    node.wait_gone()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("depth", [1, 16, 128])
def test_killed_again_and_again(node: Node, depth: int) -> None:
    """100 times at each depth, at any moment: no I/O error, no wrong byte."""
    chance = Random(depth)
    node.server.configure(latency_ms=1)
    attached = node.attach(node.create(), cache=chance.choice(["none", "readwrite"]))
    kills = 0
    while kills < 100:
        fio = subprocess.Popen(
            verifying(attached.device, bsrange="4k-1m", iodepth=depth, fsync=16, size="64m", loops=3),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        while fio.poll() is None:
            kill_worker(node)
            kills += 1
            time.sleep(0.2 + 2.0 * chance.random())  # no crash loop
        output = fio.communicate()[0].decode()
        assert fio.returncode == 0, output
    attachment.detach("data")
    node.assert_nothing_left()
