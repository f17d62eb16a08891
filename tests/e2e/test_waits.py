"""Commands that wait: they say for what and until when, and do not wait for what does not come by itself."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.storage.blob import BlobClient, BlobLeaseClient

from blobfuse_dysk.azure.explain import HOLDER_NODE, HOLDER_SINCE
from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.kit import BIN, Node, faulty_node, node, until

__all__ = ["faulty_node", "node"]


def on_terminal(node: Node, *words: str) -> tuple[int, str]:
    """Run a command with a terminal as its standard error; its exit status, and what it wrote there."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=theirs, env=node._variables())
        os.close(theirs)
        said = b""
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # EIO: nobody has the other side any more
                break
            said += data
        return process.wait(60), said.decode().replace("\r\n", "\n")
    finally:
        os.close(ours)


@pytest.fixture
def stalled(faulty_node: Node, server: PageBlobServer) -> Iterator[Node]:
    """Writes of data take some seconds each."""
    server.fault("delay", operation="put_page", seconds=6.0)
    yield faulty_node
    server.clear_faults()


@pytest.mark.parametrize("io_timeout", ["60s", "never"])
def test_umount_of_a_frozen_file_system_gives_the_way_out_at_once(node: Node, io_timeout: str) -> None:
    """It used to wait for io-timeout and a minute, or for ever, and then said that it goes on by itself."""
    assert node.mount(node.create(), f"fstype=ext4,io-timeout={io_timeout}").code == 0
    (node.mountpoint / "file").write_text("content")
    assert node.run("fsfreeze", "-f", str(node.mountpoint)).code == 0
    started = time.monotonic()
    done = node.umount()
    assert time.monotonic() - started < 30
    assert done.code == 32
    assert "frozen (fsfreeze -f)" in done.err
    detached = node.dyskctl("detach", "data")
    assert detached.code == 1 and "frozen" in detached.err and "--force" not in detached.err
    way_out = done.err.partition("thaw it: ")[2].partition(";")[0].replace("/mnt", str(node.mountpoint))
    assert node.run("sh", "-c", way_out).code == 0, way_out
    assert node.nothing_left(), "the last umount waited, as every umount does"
    assert node.mount(node.disk()).code == 0
    assert (node.mountpoint / "file").read_text() == "content"
    assert node.umount().code == 0


def test_detach_says_on_a_terminal_what_it_waits_for_and_how_much_is_left(stalled: Node) -> None:
    node = stalled
    device = node.ok("attach", node.create(), "--io-timeout", "60s", "--write-delay", "60s").strip()
    with Path(device).open("r+b", buffering=0) as disk:
        disk.write(os.urandom(1 << 20))
    code, said = on_terminal(node, str(BIN / "dyskctl"), "detach", "data")
    assert code == 0
    line = said.partition("\n")[0]
    assert line.startswith("dyskctl: waiting until data is detached, 1MiB left to write, for ")
    assert "s more at most" in line
    log = node.dirs.log / "data.log"
    if log.exists():
        assert "waiting until data is detached, 1MiB left to write" in log.read_text()
    until(node.nothing_left, "the end")


def test_umount_says_it_as_well(stalled: Node, server: PageBlobServer) -> None:
    node = stalled
    server.clear_faults()
    assert node.mount(node.create(), "fstype=ext4").code == 0
    (node.mountpoint / "file").write_bytes(os.urandom(1 << 20))
    server.fault("delay", operation="put_page", seconds=6.0, times=1)
    code, said = on_terminal(node, "umount", str(node.mountpoint))
    assert code == 0
    assert "umount.dysk: unmounting" in said or "umount.dysk: waiting until data is detached" in said
    until(node.nothing_left, "the end")


def test_mount_and_delete_say_it(faulty_node: Node, server: PageBlobServer) -> None:
    node = faulty_node
    disk = node.create()
    server.fault("delay", operation="get_blob_properties", seconds=5.0, times=1)
    code, said = on_terminal(node, "mount", "-t", "dysk", "-o", "fstype=ext4", disk, str(node.mountpoint))
    server.clear_faults()
    assert code == 0
    assert "mount.dysk: waiting for the service to let data be attached" in said
    assert node.umount().code == 0
    server.fault("delay", operation="delete_blob", seconds=5.0)
    code, said = on_terminal(node, str(BIN / "dyskctl"), "delete", disk, "--yes")
    assert code == 0
    assert f"to delete {disk}; a request is given up after " in said


def test_without_a_terminal_a_wait_is_silent(stalled: Node) -> None:
    node = stalled
    device = node.ok("attach", node.create(), "--io-timeout", "60s", "--write-delay", "60s").strip()
    with Path(device).open("r+b", buffering=0) as disk:
        disk.write(os.urandom(1 << 20))
    node.ok("detach", "data")


def test_attach_waits_for_a_lease_that_this_machine_left_behind(faulty_node: Node, server: PageBlobServer) -> None:
    """As after a power cut: nobody here knows of it, but for the name on the blob."""
    node = faulty_node
    node.environment["DYSK_NODE"] = "this-one"
    disk = node.create()
    key = {"account_name": server.account, "account_key": server.key}
    with BlobClient.from_blob_url(f"{server.endpoint}/{node.container}/data", credential=key) as blob:
        blob.set_blob_metadata({HOLDER_NODE: "this-one", HOLDER_SINCE: "2026-01-31T12:00:00Z"})
        BlobLeaseClient(blob).acquire(15)
    code, said = on_terminal(node, str(BIN / "dyskctl"), "attach", disk)
    assert code == 0
    assert "left behind by this machine, free in 60 s at most" in said
    assert "waiting for the lease that this machine left behind, free in 5" in said
    node.ok("detach", "data")
