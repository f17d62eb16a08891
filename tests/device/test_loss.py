"""Data that was accepted, that nobody had flushed yet, and that is lost: the detach says so, whatever happened before.

The kernel cannot tell anybody: it wrote its page cache out, and that was taken. Nobody called fsync.
"""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
from azure.storage.blob import BlobClient, BlobLeaseClient

from blobfuse_dysk import attachment, live
from blobfuse_dysk.errors import DyskError
from tests.device.conftest import MIB, Node, wait_for
from tests.device.test_worker_death import kill_worker


def accept(device: str, *, flush: bool = False) -> None:
    """Write, and have the kernel write its cache out, which the last close does."""
    fd = os.open(device, os.O_WRONLY)
    try:
        os.pwrite(fd, b"x" * MIB, 0)
        if flush:
            os.fsync(fd)
    finally:
        os.close(fd)


def take_away(node: Node) -> BlobLeaseClient:
    """Another client breaks the lease and takes it."""
    key = {"account_name": node.server.account, "account_key": node.server.key}
    blob = BlobClient.from_blob_url(f"{node.server.endpoint}/{node.container}/data", credential=key)
    lease = BlobLeaseClient(blob)
    lease.break_lease(0)
    lease.acquire(60)
    return lease


def test_taken_by_another_node(node: Node) -> None:
    attached = node.attach(node.create(), write_delay_s=30.0)
    accept(attached.device)
    take_away(node)
    with pytest.raises(DyskError, match=r"data is detached; 1048576 bytes \(at 0-1048575\) were never written"):
        attachment.detach("data")
    assert node.blob()["allocated"] == 0


def test_taken_by_another_node_when_all_was_durable(node: Node) -> None:
    attached = node.attach(node.create(), write_delay_s=30.0)
    accept(attached.device, flush=True)
    take_away(node)
    attachment.detach("data")
    assert node.blob()["allocated"] == MIB


def test_taken_by_another_node_while_no_worker_lived(node: Node) -> None:
    attached = node.attach(node.create(), write_delay_s=30.0)
    accept(attached.device)
    worker = node.state("data")["worker"]["pid"]
    os.kill(worker, signal.SIGSTOP)
    take_away(node)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: node.state("data")["state"] == "fenced", "the state fenced")
    with pytest.raises(DyskError, match=r"data is detached; 1048576 bytes \(at 0-1048575\) were never written"):
        attachment.detach("data")


@pytest.mark.parametrize("restarts", [0, 1])
def test_refused_at_the_last_flush(node: Node, restarts: int) -> None:
    """By a worker that took over as well: it must not try to open again what it has just released."""
    attached = node.attach(node.create(), write_delay_s=30.0)
    for _ in range(restarts):
        kill_worker(node)
    accept(attached.device)
    node.server.fault("error", status=400, operation="put_page")
    try:
        with pytest.raises(DyskError, match=r"data is detached; 1048576 bytes .* never written: .*400"):
            attachment.detach("data")
    finally:
        node.server.clear_faults()
    node.assert_nothing_left()


@pytest.mark.parametrize("cache", ["none", "readwrite"])
@pytest.mark.parametrize("how", ["dies", "is replaced"])
def test_refused_by_a_worker_that_is_gone(node: Node, cache: str, how: str) -> None:
    """The one that says how the end was has taken all that it was asked to write."""
    attached = node.attach(node.create(), cache=cache)
    node.server.fault("error", status=400, operation="put_page")
    with contextlib.suppress(OSError):
        accept(attached.device, flush=True)
    node.server.clear_faults()
    wait_for(lambda: node.state("data")["lost"], "the loss in state.json")
    if how == "dies":
        kill_worker(node)
    else:
        live.upgrade("data")
    found = attachment.get("data")
    assert found.state == ("failed" if cache == "readwrite" else "attached")
    assert "400" in str(found.detail)
    assert "check its file system" in str(found.detail)
    with contextlib.ExitStack() as stack:
        if cache == "readwrite":
            stack.enter_context(pytest.raises(OSError, match="Input/output"))
        accept(attached.device, flush=True)
    what = "1048576 bytes .* were never written" if cache == "readwrite" else "a write was refused before its end"
    with pytest.raises(DyskError, match=rf"data is detached; {what}.*400"):
        attachment.detach("data")
    node.assert_nothing_left()
