"""What does not pass by itself, while a disk is being written to: I/O errors soon, a state that says why, a way out."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobClient, BlobLeaseClient

from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.checker import Checker
from tests.e2e.kit import Node, faulty_node, until
from tests.e2e.loads import MIB, attached, server_of, unsafe_writes

__all__ = ["faulty_node"]


@pytest.fixture
def node(faulty_node: Node) -> Node:
    """A node that uses `server`."""
    return faulty_node


def client(node: Node) -> BlobClient:
    """Somebody else, with the account's key."""
    key = {"account_name": node.service.account, "account_key": node.service.key}
    return BlobClient.from_blob_url(f"{node.service.endpoint}/{node.container}/data", credential=key)


def shown(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.ok("get", "data", "-o", "json"))
    return found


def under_load(node: Node, kinds: str = "rrwwwz") -> Checker:
    """A disk that is being written to."""
    checker = Checker(attached(node, "data", "--io-timeout", "3s", "--lease", "15"), kinds=kinds)
    checker.start()
    until(checker.progress(100), "I/O")
    return checker


def expect_error(checker: Checker) -> None:
    """Every task ends, the first with EIO."""
    until(lambda: checker.errors, "the I/O error", 40)
    with pytest.raises(OSError, match="Input/output"):
        checker.stop()


def detach_what_is_lost(node: Node) -> None:
    """It ends, and says so if a write was lost (the first error may have been a read's)."""
    done = node.dyskctl("detach", "data")
    assert done.code == 0 or (done.code == 1 and "data is detached; " in done.err), done
    until(node.nothing_left, "the end of the attachment")


@pytest.mark.parametrize(
    "answer",
    [{"status": 404}, {"status": 404, "code": "ContainerNotFound"}, {"status": 416}, {"status": 400}, {"status": 413}],
    ids=lambda answer: f"{answer['status']} {answer.get('code', '')}".strip(),
)
def test_refusals_for_good(node: Node, server: PageBlobServer, answer: dict[str, Any]) -> None:
    checker = under_load(node)
    server.fault("error", operation=["read", "write"], **answer)
    expect_error(checker)
    server.clear_faults()
    whole = Path(checker.device).read_bytes()  # and nothing is stuck afterwards
    assert len(whole) == 64 * MIB
    detach_what_is_lost(node)
    assert server.blob(node.container, "data")["lease"]["state"] == "available"
    assert unsafe_writes(server) == {}


@pytest.mark.parametrize("status", [403, 409, 503])
def test_refusals_for_longer_than_io_timeout(node: Node, server: PageBlobServer, status: int) -> None:
    checker = under_load(node)
    server.fault("error", operation=["read", "write"], status=status)
    expect_error(checker)
    server.clear_faults()
    assert len(Path(checker.device).read_bytes()) == 64 * MIB
    detach_what_is_lost(node)
    assert server.blob(node.container, "data")["lease"]["state"] == "available"
    assert unsafe_writes(server) == {}


def test_another_client_takes_the_lease(node: Node, server: PageBlobServer) -> None:
    """Any program of the world, which knows nothing of epochs."""
    checker = under_load(node)
    with client(node) as blob:
        lease = BlobLeaseClient(blob)
        lease.break_lease(0)
        lease.acquire(60)
        before = blob.download_blob().readall()
        expect_error(checker)
        until(lambda: shown(node)["state"] == "fenced", "the state fenced")
        detach_what_is_lost(node)
        assert blob.download_blob().readall() == before
        lease.release()
    assert unsafe_writes(server) == {}


@pytest.mark.parametrize("leased", [False, True], ids=["free", "leased"])
def test_the_blob_is_replaced_by_another_of_the_same_name(node: Node, server: PageBlobServer, leased: bool) -> None:
    """Nothing is written to the new one. (Reads before the first refused write do see it.)"""
    checker = under_load(node, "wwz")
    server.remove(node.container, "data")
    server.create(node.container, "data", 64 * MIB)
    with client(node) as blob:
        lease = BlobLeaseClient(blob)
        if leased:
            lease.acquire(60)
        expect_error(checker)
        detach_what_is_lost(node)
        assert server.blob(node.container, "data")["allocated"] == 0
        if leased:
            lease.release()
    assert unsafe_writes(server) == {}


def test_the_blob_is_made_smaller_under_load(node: Node, server: PageBlobServer) -> None:
    checker = under_load(node)
    with client(node) as blob:
        blob.resize_blob(MIB, lease=shown(node)["lease"]["id"])
    expect_error(checker)
    fd = os.open(checker.device, os.O_WRONLY | os.O_SYNC)
    with pytest.raises(OSError, match="Input/output"):
        os.pwrite(fd, b"x" * 512, 0)  # a write was lost, so none is accepted any more
    os.close(fd)
    assert shown(node)["state"] == "failed"
    detach_what_is_lost(node)
    assert server.blob(node.container, "data")["lease"]["state"] == "available"
    assert unsafe_writes(server) == {}


def take_away(node: Node, server: PageBlobServer) -> str:
    server.remove(node.container, "data")
    return "the blob is gone"


def make_smaller(node: Node, server: PageBlobServer) -> str:
    with client(node) as blob:
        blob.resize_blob(MIB, lease=shown(node)["lease"]["id"])
    return "made smaller"


def write_over(node: Node, server: PageBlobServer) -> str:
    """By who has the lease's id; the number that the blob then has is 0."""
    with client(node) as blob:
        blob.create_page_blob(64 * MIB, lease=shown(node)["lease"]["id"])
    return "replaced"


@pytest.mark.parametrize(
    ("change", "options"),
    [(take_away, ()), (make_smaller, ()), (write_over, ()), (take_away, ("--read-only",))],
    ids=["gone", "smaller", "replaced", "gone, read-only"],
)
def test_a_disk_that_nobody_uses_says_that_it_can_never_be_written_again(
    node: Node,
    server: PageBlobServer,
    change: Callable[[Node, PageBlobServer], str],
    options: tuple[str, ...],
) -> None:
    """Within one renewal, to whoever looks: without it list says `attached` until somebody writes."""
    attached(node, "data", "--lease", "15", *options)
    before = shown(node)["state_since"]
    words = change(node, server)
    until(lambda: shown(node)["state"] == "failed", "the state failed", 30)
    found = shown(node)
    assert words in found["detail"] and "detach it here" in found["detail"]
    assert found["state_since"] > before
    listed = node.dyskctl("list")
    assert listed.code == 1 and words in listed.err and found["state_since"] in listed.err
    assert "failed" in listed.out
    status = json.loads(node.ok("status", "data", "-o", "json"))
    assert (status["state"], status["detail"]) == ("failed", found["detail"])
    doctor = node.dyskctl("doctor")
    assert doctor.code == 1 and words in doctor.out
    node.dyskctl("detach", "data")
    until(node.nothing_left, "the end of the attachment")


def test_a_lease_that_was_broken_from_outside_is_said_to_be(node: Node, server: PageBlobServer) -> None:
    attached(node, "data", "--lease", "15")
    with client(node) as blob:
        BlobLeaseClient(blob).break_lease(0)
    until(lambda: shown(node)["state"] == "fenced", "the state fenced", 30)
    until(lambda: "nobody has the disk now" in str(shown(node)["detail"]), "the reason")
    assert node.dyskctl("list").code == 1
    detach_what_is_lost(node)


def test_a_mounted_file_system_when_the_lease_is_lost(node: Node, server: PageBlobServer) -> None:
    """The file system reports errors and can be unmounted; the blob keeps what the new holder finds."""
    disk = node.create()
    assert node.mount(disk, "io-timeout=6s,lease=15,errors=remount-ro").code == 0
    (node.mountpoint / "before").write_text("content")
    subprocess.run(["sync", "-f", node.mountpoint], check=True)
    with client(node) as blob:
        lease = BlobLeaseClient(blob)
        lease.break_lease(0)
        lease.acquire(60)
        with pytest.raises(OSError), (node.mountpoint / "after").open("wb") as file:
            file.write(os.urandom(MIB))
            os.fsync(file.fileno())
        node.umount()
        until(node.nothing_left, "the end of the attachment")
        lease.release()
    assert node.mount(disk).code == 0
    assert (node.mountpoint / "before").read_text() == "content"
    assert node.umount().code == 0
    assert unsafe_writes(server_of(node)) == {}
