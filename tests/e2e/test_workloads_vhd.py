"""Disks as virtual machines had them: a fixed VHD with a partition table, made outside and uploaded, attached here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from azure.storage.blob import BlobClient, BlobType

from blobfuse_dysk.vhd import footer, parse_footer
from tests.conftest import need
from tests.e2e.kit import Node, node, service_node
from tests.e2e.loads import FSCK, MIB, blob_digest, call, device_digest, used

__all__ = ["node", "service_node"]

SIZE = 48 * MIB
TABLES = {
    "gpt": "label: gpt\nstart=2048, size=65536, type=L, name=root\nsize=16384, type=L\n",
    "dos": "label: dos\n2048,65536,L\n,16384,L\n",
}


def make_image(path: Path, label: str) -> None:
    """A disk image with two partitions, ext4 with a file in the first, and the footer of a fixed VHD behind it."""
    for tool in ("sfdisk", "mkfs.ext4", "debugfs"):
        need(any(Path(place, tool).exists() for place in ("/sbin", "/usr/sbin")), f"there is no {tool}")
    with path.open("wb") as file:
        file.truncate(SIZE)
    sfdisk = os.path.realpath("/sbin/sfdisk")
    call("sh", "-c", 'printf "%s" "$2" | "$0" --quiet "$1"', sfdisk, str(path), TABLES[label])
    call("mkfs.ext4", "-q", "-F", "-E", f"offset={MIB}", str(path), "32M")
    greeting = path.with_name("greeting")
    greeting.write_text("from the machine\n")
    call("debugfs", "-w", "-R", f"write {greeting} greeting", f"{path}?offset={MIB}")
    with path.open("ab") as file:
        file.write(footer(SIZE))


def upload(node: Node, path: Path, name: str) -> BlobClient:
    """As people bring their disks: azure-storage-blob, a page blob."""
    url = f"{node.service.endpoint}/{node.container}/{name}"
    key = {"account_name": node.service.account, "account_key": node.service.key}
    blob = BlobClient.from_blob_url(url, credential=key)
    with path.open("rb") as file:
        blob.upload_blob(file, blob_type=BlobType.PAGEBLOB, length=path.stat().st_size)
    return blob


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_an_uploaded_vhd(service_node: Node, label: str) -> None:
    node = service_node
    image = node.dirs.root / "disk.vhd"
    make_image(image, label)
    node.ok("create", node.disk("other"), "--size", "1MiB")  # the container is there then
    with upload(node, image, "vm/disk.vhd") as blob:
        last = image.read_bytes()[SIZE:]
        assert parse_footer(last) is not None
        assert blob.get_blob_properties().size == SIZE + 512
        disk = node.disk("vm/disk.vhd")

        device = node.ok("attach", disk, "--partscan").strip()
        assert call("blockdev", "--getsize64", device).strip() == str(SIZE)  # the footer is hidden
        assert call("blkid", "-p", "-s", "PTTYPE", "-o", "value", device).strip() == label
        assert Path(f"{device}p2").is_block_device()
        assert call("blockdev", "--getsize64", f"{device}p1").strip() == str(32 * MIB)
        call("mount", f"{device}p1", str(node.mountpoint))
        assert (node.mountpoint / "greeting").read_text() == "from the machine\n"
        data = os.urandom(2 * MIB)
        (node.mountpoint / "new").write_bytes(data)
        refused = node.dyskctl("detach", disk)
        assert refused.code == 1 and str(node.mountpoint) in refused.err
        call("umount", str(node.mountpoint))
        call(*FSCK["ext4"], f"{device}p1")
        Path(f"{device}p2").write_bytes(os.urandom(8 * MIB))  # to the end of the second partition
        before = device_digest(device)
        node.ok("detach", disk)

        assert blob_digest(node, "vm/disk.vhd", SIZE) == before
        assert blob.download_blob(SIZE, 512).readall() == last

    assert node.mount(disk, "partition=1,ro").code == 0
    assert used(node.mountpoint)["new"][0] == len(data)
    assert (node.mountpoint / "new").read_bytes() == data
    assert node.umount().code == 0
    assert node.nothing_left()


def test_the_last_sector_of_a_vhd_is_the_one_before_the_footer(node: Node) -> None:
    disk = node.disk("data.vhd")
    node.ok("create", disk, "--size", "8MiB", "--vhd")
    device = node.ok("attach", disk).strip()
    size = int(call("blockdev", "--getsize64", device))
    assert size == 8 * MIB  # what was asked for
    data = os.urandom(size)
    fd = os.open(device, os.O_WRONLY)
    try:
        assert os.pwrite(fd, data, 0) == size
        with pytest.raises(OSError, match="No space left"):
            os.pwrite(fd, b"x" * 512, size)
    finally:
        os.fsync(fd)
        os.close(fd)
    node.ok("detach", disk)
    device = node.ok("attach", disk, "--vhd", "no", "--read-only").strip()
    whole = Path(device).read_bytes()
    assert whole[:size] == data
    found = parse_footer(whole[size:])
    assert found is not None and found.current_size == size
    node.ok("detach", disk)
