"""Mounts that fail or are interrupted in the middle: one line, mount(8)'s exit code, and nothing left attached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.kit import Done, Node, faulty_node, node, partition_table, until

__all__ = ["faulty_node", "node"]


def failed(node: Node, done: Done, *says: str, code: int = 32) -> None:
    assert done.code == code, done
    assert done.err.startswith("mount.dysk: ") and done.err.count("\n") == 1, done.err
    for piece in says:
        assert piece in done.err, done.err
    assert node.nothing_left()
    assert lease_of(node) == "available"


def lease_of(node: Node) -> str:
    rows = json.loads(node.ok("list", "--remote", node.disk().rpartition("/")[0], "-o", "json"))
    return str(rows[0]["lease_state"])


def allocated(node: Node) -> int:
    rows = json.loads(node.ok("list", "--remote", node.disk().rpartition("/")[0], "--allocated", "-o", "json"))
    return int(rows[0]["allocated"])


def test_the_directory_is_missing(node: Node) -> None:
    disk = node.create()
    missing = node.dirs.root / "missing"
    failed(node, node.run("mount", "-t", "dysk", disk, str(missing)), f"{missing} does not exist: mkdir -p {missing}")


def test_a_disk_that_takes_no_write_is_told_as_that(faulty_node: Node) -> None:
    """Under an immutability policy attaching still works. What is found while it is taken back must not hide this."""
    assert isinstance(faulty_node.service, PageBlobServer)
    disk = faulty_node.create()
    faulty_node.service.fault("error", operation="put_page", status=409, code="BlobImmutableDueToPolicy")
    done = faulty_node.mount(disk, "fstype=ext4,io-timeout=5s")
    assert done.code in (2, 32), done
    assert "mkfs.ext4" in done.err.splitlines()[-1], done.err
    assert "is not attached here" not in done.err
    assert faulty_node.nothing_left()


def test_the_directory_is_a_file(node: Node) -> None:
    disk = node.create()
    file = node.dirs.root / "file"
    file.touch()
    failed(node, node.run("mount", "-t", "dysk", disk, str(file)), f"{file} is not a directory")


def test_the_directory_has_something_mounted_on_it(node: Node) -> None:
    disk = node.create()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(node.mountpoint)], check=True, timeout=60)
    done = node.mount(disk)
    subprocess.run(["umount", str(node.mountpoint)], check=True, timeout=60)
    failed(node, done, f"{node.mountpoint} is busy", f"umount {node.mountpoint}")


def test_a_blank_disk_with_mkfs_never(node: Node) -> None:
    disk = node.create()
    failed(node, node.mount(disk, "mkfs=never,fstype=xfs"), "is blank, and mkfs=never", "mkfs.xfs")
    assert allocated(node) == 0


def test_a_blank_disk_read_only(node: Node) -> None:
    disk = node.create()
    failed(node, node.mount(disk, "ro"), "is blank", "without ro")
    assert allocated(node) == 0


def test_a_disk_with_unknown_content_is_never_formatted(node: Node) -> None:
    disk = node.create()
    content = os.urandom(4096)
    device = node.ok("attach", disk).strip()
    write(device, 1 << 20, content)
    node.ok("detach", disk)
    for options in ("fstype=ext4", "fstype=ext4,mkfs=blank", ""):
        done = node.mount(disk, options)
        failed(node, done, "is not blank", "it was not formatted", "file -s /dev/")
        assert "mkfs" not in done.err
    assert allocated(node) == len(content)


def test_a_disk_of_zeros_that_were_written_is_not_blank(node: Node) -> None:
    """Allocated is allocated: only the service's page map counts, so one page of anything is enough."""
    disk = node.create()
    from azure.storage.blob import BlobClient

    key = {"account_name": node.service.account, "account_key": node.service.key}
    with BlobClient.from_blob_url(f"{node.service.endpoint}/{node.container}/data", credential=key) as blob:
        blob.upload_page(bytes(512), offset=512 * 1000, length=512)
    failed(node, node.mount(disk, "fstype=ext4"), "is not blank")


def test_another_file_system_than_the_one_named(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk, "fstype=xfs").code == 0
    assert node.umount().code == 0
    failed(node, node.mount(disk, "fstype=ext4"), "has xfs on it, not ext4", "use fstype=xfs")


def test_an_mkfs_that_fails_is_told_in_its_own_words(node: Node) -> None:
    disk = node.create()
    done = node.mount(disk, 'fstype=ext4,mkfs.options="-Z"')
    failed(node, done, "failed: invalid option -- 'Z': see mkfs.options in mount.dysk(8)", code=2)


def test_mkfs_on_a_disk_that_is_too_small(node: Node) -> None:
    disk = node.create(size="1MiB")
    failed(node, node.mount(disk, "fstype=xfs"), "mkfs.xfs on /dev/loop", "is the disk large enough for xfs?", code=2)


def test_the_file_system_does_not_know_an_option(node: Node) -> None:
    disk = node.create()
    done = node.mount(disk, "fstype=ext4,frobnicate")
    failed(node, done, "mounting /dev/loop", "(ext4) failed: ", "or other error: dmesg says more")


def test_read_only_in_other_words(node: Node) -> None:
    disk = node.create()
    for word in ("read-only", "readonly"):
        failed(node, node.mount(disk, word), f"unknown option {word}: did you mean ro?", code=1)


def test_a_damaged_file_system(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk, "fstype=ext4").code == 0
    assert node.umount().code == 0
    device = node.ok("attach", disk).strip()
    write(device, 1024 + 4, os.urandom(8))  # sizes in the superblock; magic and checksum stay as they are
    node.ok("detach", disk)
    failed(node, node.mount(disk, "fstype=ext4"), "mounting /dev/loop", "fsck.ext4")


def test_a_disk_that_does_not_exist_with_nofail(node: Node) -> None:
    done = node.mount(node.disk(), "nofail")
    assert done.code == 0
    assert "nofail" in done.err and "does not exist" in done.err
    assert node.nothing_left()


def test_a_partition_table_without_the_partition(node: Node) -> None:
    disk = node.create()
    device = node.ok("attach", disk).strip()
    write(device, 0, partition_table((2048, 4096)))
    node.ok("detach", disk)
    failed(node, node.mount(disk), "has a partition table", "-o partition=1")
    failed(node, node.mount(disk, "partition=2"), "has no partition 2: it has 1")


def test_remount_of_what_is_not_mounted(node: Node) -> None:
    disk = node.create()
    failed(node, node.mount(disk, "remount,ro"), "is not mounted on", "without remount")


def test_umount_of_what_is_not_mounted(node: Node) -> None:
    done = node.run(os.path.realpath("/sbin/umount.dysk"), str(node.mountpoint))
    assert done.code == 32
    assert "not mounted" in done.err


# Interrupts. A request that is held shows where the helper is.


def send(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Signal mount.dysk, the child of mount(8)."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(int(children[0]), number)


def service_of(node: Node) -> PageBlobServer:
    assert isinstance(node.service, PageBlobServer)
    return node.service


STEPS = {  # a request that the step makes, and what becomes of it: never applied, or answered when the test says so
    "while attaching": ("lease_acquire", "blackhole"),
    "while asking whether it is blank": ("get_page_ranges", "delay"),
    "in mkfs": ("put_page", "delay"),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("step", STEPS)
def test_a_signal_leaves_nothing(faulty_node: Node, step: str, number: signal.Signals) -> None:
    node, service = faulty_node, service_of(faulty_node)
    disk = node.create()
    operation, action = STEPS[step]
    service.fault(action, operation=operation, times=1)
    process = node.start("mount", "-t", "dysk", "-o", "fstype=ext4", disk, str(node.mountpoint))
    until(lambda: service.faults()[0]["hits"], f"the request that is held {step}")
    send(process, number)
    service.release()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (8, "", "mount.dysk: interrupted, nothing was mounted\n")
    assert node.nothing_left()
    assert lease_of(node) == "available"


def test_a_signal_while_the_service_is_gone_does_not_wait_for_it(faulty_node: Node) -> None:
    """A killed mkfs stays until its I/O ends, which would be after io-timeout: it is not waited for."""
    node, service = faulty_node, service_of(faulty_node)
    disk = node.create()
    service.fault("blackhole", operation="put_page")
    options = "fstype=ext4,io-timeout=never"
    process = node.start("mount", "-t", "dysk", "-o", options, disk, str(node.mountpoint))
    until(lambda: service.faults()[0]["hits"], "the first write of mkfs")
    send(process, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (8, "", "mount.dysk: interrupted, nothing was mounted\n")
    until(node.nothing_left, "the end of the attachment")


def test_even_a_killed_helper_leaves_nothing(faulty_node: Node) -> None:
    """SIGKILL in mkfs: the last close of the device takes the attachment down."""
    node, service = faulty_node, service_of(faulty_node)
    disk = node.create()
    service.fault("delay", operation="put_page", times=1)
    process = node.start("mount", "-t", "dysk", "-o", "fstype=ext4", disk, str(node.mountpoint))
    until(lambda: service.faults()[0]["hits"], "the first write of mkfs")
    send(process, signal.SIGKILL)
    service.release()
    process.communicate(timeout=60)
    until(node.nothing_left, "the end of the attachment")
    assert lease_of(node) == "available"


def write(device: str, offset: int, data: bytes) -> None:
    with Path(device).open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(data)
        os.fsync(file.fileno())
