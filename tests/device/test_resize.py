"""A disk becomes larger with the file system on it: mounted, at its next mount, and as a blob that nobody has."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.cli.main import main
from blobfuse_dysk.device.kernel.usage import mounted_elsewhere
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.create import create_disk
from blobfuse_dysk.disks.resize import Resized, resize
from blobfuse_dysk.errors import AttachedError, DeviceError, LeasedError, UsageError
from blobfuse_dysk.mount.grow import grow_file_system, grows_unmounted
from blobfuse_dysk.mount.helper import mount, umount
from blobfuse_dysk.mount.options import parse_mount, parse_umount
from blobfuse_dysk.options import AttachOptions
from tests.device.conftest import MIB, Node
from tests.device.test_grow import device_size
from tests.polling import eventually
from tests.wire.test_management import sdk_blob

SIZES = {"ext4": 64, "xfs": 320, "btrfs": 256}


@pytest.fixture
def directory(node: Node) -> Iterator[Path]:
    """Where to mount; nothing is mounted there afterwards."""
    path = node.dirs.root / "mnt"
    path.mkdir()
    yield path
    while path.is_mount():
        subprocess.run(["umount", "-i", path], check=True)


def room(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_blocks * found.f_frsize


def made(fstype: str, device: str) -> None:
    force = "-F" if fstype == "ext4" else "-f"
    subprocess.run([f"mkfs.{fstype}", "-q", force, device], check=True)


def written(directory: Path) -> dict[str, str]:
    """Files, by name with their checksums."""
    for number in range(20):
        (directory / f"{number}").write_bytes(os.urandom(200_000))
    subprocess.run(["sync", "-f", directory], check=True)  # of this one only: others may be frozen
    return sums(directory)


def sums(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.name.isdigit()
    }


@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
def test_what_is_mounted_grows_with_its_disk(node: Node, directory: Path, fstype: str) -> None:
    size = SIZES[fstype] * MIB
    attached = node.attach(node.create(size=size))
    made(fstype, attached.device)
    subprocess.run(["mount", "-i", "-t", fstype, attached.device, directory], check=True)
    before, files = room(directory), written(directory)
    done = resize("data", 2 * size)
    assert done == Resized(attached.disk, 2 * size, size, True, "data", fstype, True)
    assert device_size(attached.device) == 2 * size
    assert room(directory) > before + size * 8 // 10
    assert sums(directory) == files
    again = resize("data", 2 * size)
    assert (again.before, again.grown) == (2 * size, False)
    (directory / "large").write_bytes(os.urandom(MIB) * (size // MIB // 2))
    assert resize(attached.device, 64 * MIB, by=True).size == 2 * size + 64 * MIB
    subprocess.run(["umount", "-i", directory], check=True)
    subprocess.run(["mount", "-i", "-t", fstype, attached.device, directory], check=True)
    assert sums(directory) == files
    subprocess.run(["umount", "-i", directory], check=True)
    attachment.detach("data")


def test_a_mounted_ext4_grows_or_it_is_told_what_has_grown_and_how_to_go_on(node: Node, directory: Path) -> None:
    attached = node.attach(node.create(size=64 * MIB))
    made("ext4", attached.device)
    subprocess.run(["mount", "-i", attached.device, directory], check=True)
    before, files = room(directory), written(directory)
    if grows_unmounted("ext4"):
        with pytest.raises(DeviceError) as caught:
            resize("data", 256 * MIB)
        assert "data has grown to 256MiB, the ext4 on it has not" in str(caught.value)
        assert "CAP_SYS_RESOURCE" in str(caught.value) and "-o grow" in (caught.value.remedy or "")
        assert room(directory) == before
        subprocess.run(["umount", "-i", directory], check=True)
        # Another test's process may have begun a mount namespace meanwhile, in which it is mounted still.
        eventually(lambda: not mounted_elsewhere(attached.device), 30)
        assert grow_file_system(attached.device, None, "ext4")
        subprocess.run(["mount", "-i", attached.device, directory], check=True)
    else:
        assert resize("data", 256 * MIB).grown
    assert device_size(attached.device) == 256 * MIB == node.blob()["size"]
    assert room(directory) > before * 3
    assert sums(directory) == files
    subprocess.run(["umount", "-i", directory], check=True)
    assert not grow_file_system(attached.device, None, "ext4")
    attachment.detach("data")


@pytest.mark.parametrize("fstype", SIZES)
def test_a_disk_that_grew_as_a_blob_has_its_file_system_grown_at_the_mount(
    node: Node, directory: Path, fstype: str
) -> None:
    size = SIZES[fstype] * MIB
    disk = node.create(size=size)
    words = [disk, str(directory), "-o"]
    mount(parse_mount([*words, f"fstype={fstype}"]))
    before, files = room(directory), written(directory)
    umount(parse_umount([str(directory)]))
    assert resize(disk, 2 * size) == Resized(disk, 2 * size, size, False)
    node.assert_nothing_left()
    mount(parse_mount([*words, "mkfs=never"]))
    assert room(directory) == before
    umount(parse_umount([str(directory)]))
    mount(parse_mount([*words, "grow,mkfs=never"]))
    assert room(directory) > before + size * 8 // 10
    assert sums(directory) == files
    umount(parse_umount([str(directory)]))
    mount(parse_mount([*words, "grow,mkfs=never"]))
    assert sums(directory) == files
    umount(parse_umount([str(directory)]))
    node.assert_nothing_left()


def test_a_damaged_ext4_is_not_made_larger_by_force(node: Node) -> None:
    attached = node.attach(node.create(size=64 * MIB))
    made("ext4", attached.device)
    with Path(attached.device).open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), os.urandom(64 << 10), 64 << 10)  # inode tables
        os.fsync(file.fileno())
    resize("data", 128 * MIB)
    with pytest.raises(DeviceError, match="e2fsck") as caught:
        grow_file_system(attached.device, None, "ext4")
    assert "e2fsck -f" in (caught.value.remedy or "")
    attachment.detach("data")


def test_what_does_not_grow_is_told(node: Node) -> None:
    attached = node.attach(node.create(size=64 * MIB))
    with pytest.raises(UsageError, match="vfat does not grow"):
        grow_file_system(attached.device, None, "vfat")
    with pytest.raises(UsageError, match="only while it is mounted"):
        grow_file_system(attached.device, None, "xfs")
    with pytest.raises(DeviceError, match=f"e2fsck on {attached.device} failed: ") as caught:
        grow_file_system(attached.device, None, "ext2")
    assert "magic number" in str(caught.value)
    attachment.detach("data")


def test_partitions_stay_as_they_are(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    attached = node.attach(node.create(size=64 * MIB))
    subprocess.run(["sfdisk", "-q", "--no-tell-kernel", attached.device], input=b"label: dos\n,,L\n", check=True)
    attachment.detach("data")
    attached = node.attach(attached.disk, partscan=True)
    assert len(attached.partitions) == 1
    assert main(["resize", "data", "+64MiB"]) == 0
    assert capsys.readouterr().out == "data: 128MiB, was 64MiB; its partitions are as they were\n"
    assert device_size(attached.device) == 128 * MIB
    assert device_size(attached.partitions[0]) < 64 * MIB
    attachment.detach("data")


def test_what_is_typed_and_cannot_be(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    disk = node.create(size=64 * MIB)
    node.attach(disk)
    for words, code, says in (
        (["data", "32MiB"], 2, "a disk in use only grows; first: dyskctl detach data"),
        (["data", "32MiB", "--force"], 2, "only grows"),
        (["data", "65537KiB"], 2, "multiple of 4096"),
        (["data", "9TiB"], 2, "8 TiB"),
        (["data", "much"], 2, "size"),
        (["other", "128MiB"], 1, "is not attached here"),
        ([f"{disk}x", "128MiB"], 1, "does not exist"),
        ([f"{disk}?snapshot=2026-01-31T12:00:00.0000000Z", "128MiB"], 2, "a snapshot keeps its size"),
    ):
        assert main(["resize", *words]) == code, words
        told = capsys.readouterr()
        assert says in told.err and told.err.count("\n") == 1 and told.out == "", told.err
    assert node.blob()["size"] == 64 * MIB
    attachment.detach("data")


def test_a_disk_that_is_only_read_here_is_resized_in_the_account(node: Node) -> None:
    disk = node.create(size=64 * MIB)
    attached = node.attach(disk, read_only=True)
    with pytest.raises(AttachedError, match="read-only here"):
        resize("data", 128 * MIB)
    assert resize(disk, 128 * MIB) == Resized(disk, 128 * MIB, 64 * MIB, False)
    assert device_size(attached.device) == 64 * MIB
    attachment.detach("data")


def test_a_disk_that_another_node_has_is_refused_with_its_name(node: Node) -> None:
    disk = node.create(size=64 * MIB)
    with sdk_blob(node.server, node.container) as blob:
        blob.set_blob_metadata({"dysk_node": "web-7", "dysk_since": "2026-01-31T12:00:00Z"})
        blob.acquire_lease(-1)
    with pytest.raises(LeasedError, match="leased by node web-7 since 2026-01-31T12:00:00Z, so it cannot be resized"):
        resize(disk, 128 * MIB)
    assert node.blob()["size"] == 64 * MIB


@pytest.mark.parametrize("attached_meanwhile", [True, False])
def test_a_vhd_keeps_a_whole_number_of_mib(node: Node, attached_meanwhile: bool) -> None:
    disk = f"{node.server.account}/{node.container}/data"
    create_disk(DiskAddress.parse(disk), 64 * MIB, AttachOptions(), vhd=True)
    if attached_meanwhile:
        node.attach(disk)
    target = "data" if attached_meanwhile else disk
    with pytest.raises(UsageError, match="no whole number of MiB") as caught:
        resize(target, 96 * MIB + 4096)
    assert "97MiB" in (caught.value.remedy or "")
    assert resize(target, 96 * MIB).before == 64 * MIB
    if attached_meanwhile:
        attachment.detach("data")
    attached = node.attach(disk)
    assert attached.vhd and device_size(attached.device) == 96 * MIB
    attachment.detach("data")
    assert resize(disk, 32 * MIB, force=True).size == 32 * MIB
    attached = node.attach(disk)
    assert attached.vhd and device_size(attached.device) == 32 * MIB
    assert attachment.is_blank("data")
    attachment.detach("data")
