"""A disk that is being copied to: it reads as zeros, so nobody may take it for a blank one."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.kit import Node, faulty_node
from tests.wire.rest import Rest

__all__ = ["faulty_node"]


def start_copy(node: Node) -> PageBlobServer:
    """Copy a disk with a file system on it to another account's, as it looks there before anything has come."""
    assert isinstance(node.service, PageBlobServer)
    server = node.service
    disk = node.create()
    assert node.mount(disk, "fstype=ext4").code == 0
    (node.mountpoint / "file").write_text("kept")
    assert node.umount().code == 0
    server.configure(copies="pending")
    with Rest(server.endpoint, server.account, server.key) as rest:
        headers = {"x-ms-copy-source": f"{server.endpoint}/{node.container}/data"}
        assert rest("PUT", f"{node.container}/copy", headers=headers).headers["x-ms-copy-status"] == "pending"
    server.copy(node.container, "copy", "pending", 128 << 20)
    return server


def test_no_file_system_is_made_on_a_disk_whose_content_is_still_to_come(faulty_node: Node) -> None:
    node = faulty_node
    server, copy = start_copy(node), node.disk("copy")
    for done in (node.mount(copy, "fstype=ext4"), node.dyskctl("attach", copy), node.mount(copy, "ro")):
        assert done.code in (1, 32), done
        assert "still being copied to: 128MiB of 512MiB (25 %) have come" in done.err
        assert done.err.count("\n") == 1
    told = node.dyskctl("doctor", copy)
    assert told.code == 1
    assert "still being copied to" in told.out
    deleted = node.dyskctl("delete", copy, "--yes")
    assert deleted.code == 1
    assert "is still being copied to" in deleted.err
    assert node.nothing_left()
    server.copy(node.container, "copy", "success", 512 << 20)
    assert node.mount(copy, "fstype=ext4").code == 0
    assert Path(node.mountpoint, "file").read_text() == "kept"
    assert node.umount().code == 0


@pytest.mark.parametrize(("status", "says"), [("failed", "(404 BlobNotFound: the source is gone)"), ("aborted", "")])
def test_half_a_copy_is_no_disk(faulty_node: Node, status: str, says: str) -> None:
    server = start_copy(faulty_node)
    server.copy(faulty_node.container, "copy", status, 128 << 20)
    done = faulty_node.mount(faulty_node.disk("copy"), "fstype=ext4")
    assert done.code == 32
    assert f"it is {status}: 128MiB of 512MiB (25 %) have come{' ' + says if says else ''}: copy it again" in done.err
    assert server.blob(faulty_node.container, "copy")["allocated"] == 0


def test_a_copy_that_was_called_off_is_no_disk(faulty_node: Node) -> None:
    """Abort Copy Blob leaves no bytes."""
    server = start_copy(faulty_node)
    path = f"{faulty_node.container}/copy"
    with Rest(server.endpoint, server.account, server.key) as rest:
        copy_id = rest("HEAD", path).headers["x-ms-copy-id"]
        abort = {"x-ms-copy-action": "abort"}
        assert rest("PUT", path, f"comp=copy&copyid={copy_id}", abort).status == 204
    done = faulty_node.mount(faulty_node.disk("copy"), "fstype=ext4")
    assert done.code == 32
    assert "it is aborted" in done.err
    assert "copy it again" in done.err


def test_of_an_incremental_copy_only_the_snapshots_are_disks(faulty_node: Node) -> None:
    server = start_copy(faulty_node)
    server.configure(copies="success")
    container = faulty_node.container
    with Rest(server.endpoint, server.account, server.key) as rest:
        taken = rest("PUT", f"{container}/data", "comp=snapshot").headers["x-ms-snapshot"]
        source = {"x-ms-copy-source": f"{server.endpoint}/{container}/data?snapshot={taken}"}
        assert rest("PUT", f"{container}/backup", "comp=incrementalcopy", source).status == 202
    backup = faulty_node.disk("backup")
    for options in ("fstype=ext4", "ro"):
        done = faulty_node.mount(backup, options)
        assert done.code == 1
        assert "the destination of an incremental copy" in done.err
    (copied,) = server.blob(container, "backup")["snapshots"]
    assert faulty_node.mount(f"{backup}?snapshot={copied}", "ro").code == 0
    assert Path(faulty_node.mountpoint, "file").read_text() == "kept"
    assert faulty_node.umount().code == 0
