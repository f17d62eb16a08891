"""What others do to a disk while it is attached: I/O errors soon, a state that says why, and a clean way out."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from blobfuse_dysk.device.kernel.loop import backing_file
from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.kit import BIN, Node, faulty_node, until
from tests.e2e.test_bad_input import other_node
from tests.namespaces import need_private_mounts

__all__ = ["faulty_node"]


@pytest.fixture
def node(faulty_node: Node) -> Node:
    """A node with a server of its own."""
    return faulty_node


def server(node: Node) -> PageBlobServer:
    assert isinstance(node.service, PageBlobServer)
    return node.service


def shown(node: Node) -> dict[str, object]:
    found: dict[str, object] = json.loads(node.ok("get", "data", "-o", "json"))
    return found


def write_and_sync(path: str, offset: int = 0) -> None:
    """Raises OSError when the disk does not take it."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, os.urandom(4096), offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def read_direct(node: Node, device: str, block: int) -> int:
    """The exit code of a read of a 4 KiB block, past the page cache."""
    return node.run("dd", f"if={device}", "of=/dev/null", "bs=4096", "count=1", f"skip={block}", "iflag=direct").code


def test_the_blob_is_deleted(node: Node) -> None:
    device = node.ok("attach", node.create(), "--io-timeout", "5s").strip()
    write_and_sync(device)
    write_and_sync(device, 256 * 4096)
    server(node).remove(node.container, "data")
    with pytest.raises(OSError, match="Input/output"):
        write_and_sync(device)
    assert read_direct(node, device, 256) != 0
    node.dyskctl("detach", "data", "--force")
    assert node.nothing_left()


def test_the_blob_is_made_smaller(node: Node) -> None:
    from azure.storage.blob import BlobClient

    disk = node.create(size="64MiB")
    # With a write cache no write succeeds any more once one was lost; without it, each is on its own.
    device = node.ok("attach", disk, "--io-timeout", "5s", "--cache", "none", "-o", "json")
    attachment = json.loads(device)
    device = attachment["device"]
    write_and_sync(device, 48 << 20)
    url = f"{node.service.endpoint}/{node.container}/data"
    key = {"account_name": node.service.account, "account_key": node.service.key}
    with BlobClient.from_blob_url(url, credential=key) as blob:
        blob.resize_blob(32 << 20, lease=attachment["lease"]["id"])
    with pytest.raises(OSError, match="Input/output"):
        write_and_sync(device, 48 << 20)
    write_and_sync(device, 1 << 20)  # what is left of it works
    node.dyskctl("detach", "data", "--force")
    assert node.nothing_left()
    assert json.loads(node.ok("attach", disk, "-o", "json"))["size"] == 32 << 20
    node.ok("detach", "data")


def test_the_lease_is_broken_and_taken_by_another_node(node: Node) -> None:
    disk = node.create()
    device = node.ok("attach", disk, "--lease", "15").strip()
    write_and_sync(device)
    elsewhere = other_node(node)
    there = elsewhere.ok("attach", disk, "--break-lease").strip()
    with pytest.raises(OSError, match="Input/output"):
        write_and_sync(device)
    until(lambda: shown(node)["state"] == "fenced", "the state fenced")
    listed = node.dyskctl("list")
    assert (listed.code, "fenced" in listed.out) == (1, True), listed
    write_and_sync(there)
    done = node.dyskctl("detach", "data")
    assert done.code in (0, 1), done
    until(node.nothing_left, "the end of the fenced attachment")
    write_and_sync(there)
    elsewhere.ok("detach", disk)


def test_the_lease_is_broken_and_nobody_takes_it(node: Node) -> None:
    """By hand in the portal: the disk is still this node's, which takes its lease again."""
    from azure.storage.blob import BlobClient, BlobLeaseClient

    disk = node.create()
    device = node.ok("attach", disk, "--lease", "15").strip()
    write_and_sync(device)
    key = {"account_name": node.service.account, "account_key": node.service.key}
    with BlobClient.from_blob_url(f"{node.service.endpoint}/{node.container}/data", credential=key) as blob:
        BlobLeaseClient(blob).break_lease(lease_break_period=0)
    try:
        write_and_sync(device)
    except OSError:
        until(lambda: shown(node)["state"] == "fenced", "the state fenced")
    else:
        assert shown(node)["state"] == "attached"
    node.dyskctl("detach", "data")
    until(node.nothing_left, "the end of the attachment")


def test_a_mounted_file_system_on_a_disk_that_is_gone_can_be_unmounted(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk, "io-timeout=5s,errors=remount-ro").code == 0
    (node.mountpoint / "file").write_text("content")
    server(node).remove(node.container, "data")
    with pytest.raises(OSError):
        write_and_sync(str(node.mountpoint / "file"))
    node.umount()
    assert not node.is_mounted()
    until(node.nothing_left, "the end of the attachment")


def test_detach_by_force_while_the_service_is_gone(node: Node) -> None:
    disk = node.create()
    device = node.ok("attach", disk).strip()
    write_and_sync(device)
    server(node).outage("silent")
    node.ok("detach", "data", "--force")
    server(node).outage(None)
    assert node.nothing_left()


@pytest.mark.parametrize("kind", ["silent", "refuse"])
def test_umount_does_not_say_that_all_is_well_when_data_is_lost(node: Node, kind: str) -> None:
    disk = node.create()
    assert node.mount(disk, "io-timeout=3s").code == 0
    fd = os.open(node.mountpoint / "file", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(1 << 20), 0)
    os.fsync(fd)
    server(node).outage(kind)
    os.pwrite(fd, os.urandom(1 << 20), 0)  # into the page cache, from where nobody has asked for it yet
    os.close(fd)
    done = node.umount()
    server(node).outage(None)
    assert done.code != 0, done
    assert "umount.dysk: " in done.err and done.err.count("\n") == 1
    until(node.nothing_left, "the end of the attachment")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_attach_leaves_nothing(node: Node, number: signal.Signals) -> None:
    disk = node.create()
    server(node).fault("blackhole", operation="lease_acquire", times=1)
    process = node.start(str(BIN / "dyskctl"), "attach", disk)
    until(lambda: server(node).faults()[0]["hits"], "the request for the lease")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    if number == signal.SIGINT:
        assert (process.returncode, err.strip()) == (130, "dyskctl: interrupted")
    until(node.nothing_left, "the end of what had been begun")


@pytest.mark.parametrize("force", [False, True])
def test_attached_under_another_root(node: Node, force: bool) -> None:
    """In a mount namespace and a chroot of its own: the kernel's path of the file behind the device is another one."""
    need_private_mounts()
    root = node.dirs.root / "root"
    root.mkdir()
    enter = 'mount --rbind / "$0" && mount --make-rslave "$0" && exec chroot "$0" "$@"'
    inside = ["unshare", "--mount", "sh", "-c", enter, str(root)]
    done = node.run(*inside, str(BIN / "dyskctl"), "attach", node.create())
    assert done.code == 0, done
    device = done.out.strip()
    path = f"{node.dirs.run}/data/fs/disk"
    assert (backing_file(device) or "").endswith(f"{root}{path}"), "or else this shows nothing"
    with Path(device).open("rb"):
        assert force or "has it open" in node.dyskctl("detach", "data").err
    node.ok("detach", "data", *["--force"] * force)
    assert node.nothing_left()
