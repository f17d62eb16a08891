"""What goes through the device: verified content, sizes of requests, sectors, partitions, errors."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.device.ipc.control import Control
from blobfuse_dysk.device.ipc.state import control_path
from blobfuse_dysk.errors import BusyError, DeviceError, UsageError
from blobfuse_dysk.mount import filesystem
from blobfuse_dysk.testing.azurite import Azurite
from blobfuse_dysk.vhd import footer
from tests.device.conftest import MIB, Node, fill, flush, wait_for
from tests.device.programs import use_worker
from tests.leaks import RunDirs
from tools.fiojobs import command


def fio(device: str, **changed: str | int | None) -> None:
    result = subprocess.run(command("verify", device, **changed), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_fio_reads_back_what_it_wrote(node: Node, sector_size: int) -> None:
    attached = node.attach(node.create(), sector_size=sector_size)
    queue = Path("/sys/block", Path(attached.device).name, "queue")
    assert int((queue / "logical_block_size").read_text()) == sector_size
    fio(attached.device, bsrange=f"{sector_size}-128k", size="32m", loops=1)
    attachment.detach("data")


@pytest.mark.parametrize("fstype", ["ext4", "ext3", "ext2"])
@pytest.mark.parametrize("size", [8 * MIB, 64 * MIB])
def test_a_small_file_system_is_mounted_with_either_sector_size(
    node: Node, tmp_path: Path, fstype: str, size: int
) -> None:
    """mke2fs makes blocks of 1 KiB below 512 MiB, which a device with sectors of 4096 bytes cannot be asked for."""
    disk = node.create(size=size)
    for sector_size in (512, 4096):
        attached = node.attach(disk, sector_size=sector_size)
        if sector_size == 512:
            filesystem.make_file_system(fstype, attached.device, [])
            assert not filesystem.lacks_journal(fstype, attached.device)
        mounted = subprocess.run(["mount", "-t", fstype, attached.device, tmp_path], capture_output=True, text=True)
        assert mounted.returncode == 0, mounted.stderr
        (tmp_path / "file").write_text("kept")
        subprocess.run(["umount", tmp_path], check=True)
        attachment.detach("data")


def test_fio_verify_on_azurite(
    run_dirs: RunDirs, azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blobfuse_dysk.azure.credential.resolve import resolve
    from blobfuse_dysk.azure.management import create_disk
    from blobfuse_dysk.disk import DiskAddress
    from blobfuse_dysk.options import AttachOptions

    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string)
    disk = DiskAddress.parse(f"{azurite.account}/{container}/data")
    create_disk(*resolve(disk, AttachOptions()), 16 * MIB)
    attached = attachment.attach(disk)
    fio(attached.device, bsrange="16k-16k", iodepth=8, size="4m", loops=1, verify_backlog=None)
    attachment.detach("data")


def test_large_requests_are_not_cut_small(node: Node) -> None:
    """The loop driver cuts at 128 pieces of memory, which is 512 KiB at the worst; FUSE at 1 MiB. Nothing else does."""
    attached = node.attach(node.create(), cache="none")
    random = node.dirs.root / "random"
    random.write_bytes(os.urandom(8 * MIB))
    command = ["dd", f"if={random}", f"of={attached.device}", "bs=1M", "count=8", "oflag=direct", "status=none"]
    subprocess.run(command, check=True)
    command = ["dd", f"if={attached.device}", "of=/dev/null", "bs=1M", "count=8", "iflag=direct", "status=none"]
    subprocess.run(command, check=True)
    requests = attachment.status("data")["requests"]["calls"]
    assert 8 <= requests["put"] <= 16
    assert 8 <= requests["get"] <= 16
    attachment.detach("data")


def test_one_write_of_16_mib(node: Node) -> None:
    attached = node.attach(node.create())
    written = os.urandom(16 * MIB)
    with Path(attached.device).open("r+b", buffering=0) as device:
        assert device.write(written) == len(written)
        os.fsync(device.fileno())
    subprocess.run(["blockdev", "--flushbufs", attached.device], check=True)
    assert Path(attached.device).read_bytes()[: 16 * MIB] == written
    attachment.detach("data")


def test_reads_of_the_file_itself_need_no_alignment(node: Node) -> None:
    attached = node.attach(node.create(size=MIB))
    written = fill(attached.device, 7, MIB)
    flush(attached.device)
    file = node.dirs.run / "data" / "fs" / "disk"
    assert list(file.parent.iterdir()) == [file]
    assert file.stat().st_size == MIB
    fd = os.open(file, os.O_RDWR)
    assert os.pread(fd, 10, 505) == written[505:515]
    assert os.pread(fd, 4096, MIB - 100) == written[-100:]
    assert os.pread(fd, 4096, MIB) == b""
    for offset, length, error in ((1, 512, errno.EINVAL), (0, 513, errno.EINVAL), (MIB, 512, errno.ENOSPC)):
        with pytest.raises(OSError) as caught:
            os.pwrite(fd, bytes(length), offset)
        assert caught.value.errno == error
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        (file.parent / "other").stat()
    assert attachment.get("data").state == "attached"  # closing the file is not the end: the loop device has it
    attachment.detach("data")


def test_a_read_only_attachment_takes_no_lease_and_no_write(node: Node) -> None:
    disk = node.create()
    attached = node.attach(disk)
    written = fill(attached.device, 8, MIB)
    attachment.detach("data")
    attached = node.attach(disk, read_only=True)
    assert (attached.read_only, attached.lease) == (True, None)
    assert node.blob()["lease"]["state"] == "available"
    assert Path(attached.device).read_bytes()[:MIB] == written
    with (
        pytest.raises(OSError, match=r"not permitted|Read-only"),
        Path(attached.device).open("r+b", buffering=0) as device,
    ):
        device.write(bytes(512))
    with pytest.raises(OSError, match="Read-only"):
        (node.dirs.run / "data" / "fs" / "disk").open("r+b")
    attachment.detach("data")


def test_a_partitioned_vhd(node: Node, tmp_path: Path) -> None:
    """The footer is hidden, the partitions get devices, and a mounted partition keeps the disk."""
    disk = node.create(size=64 * MIB + 512)
    attached = node.attach(disk)
    with Path(attached.device).open("r+b", buffering=0) as device:
        device.seek(64 * MIB)
        device.write(footer(64 * MIB))
    layout = "label: gpt\nsize=16MiB\nsize=32MiB\n"
    attachment.detach("data")
    attached = node.attach(disk, partscan=True)
    assert (attached.vhd, attached.size, attached.partitions) == (True, 64 * MIB, [])
    subprocess.run(["sfdisk", "-q", "--no-tell-kernel", attached.device], input=layout, text=True, check=True)
    assert attachment.is_blank("data") is False
    attachment.detach("data")
    attached = node.attach(disk, partscan=True)
    assert attached.partitions == [f"{attached.device}p1", f"{attached.device}p2"]
    assert all(Path(partition).is_block_device() for partition in attached.partitions)
    subprocess.run(["mkfs.ext4", "-q", attached.partitions[1]], check=True)
    subprocess.run(["mount", attached.partitions[1], str(tmp_path)], check=True)
    assert attachment.get("data").mountpoints == [str(tmp_path)]
    with pytest.raises(BusyError, match="mounted on"):
        attachment.detach("data")
    subprocess.run(["umount", str(tmp_path)], check=True)
    attachment.detach("data")


def test_a_vhd_footer_alone_is_blank(node: Node) -> None:
    disk = node.create(size=MIB + 512)
    attached = node.attach(disk, vhd="no")
    assert attached.size == MIB + 512
    with Path(attached.device).open("r+b", buffering=0) as device:
        device.seek(MIB)
        device.write(footer(MIB))
        os.fsync(device.fileno())
    assert not attachment.is_blank("data")
    attachment.detach("data")
    node.attach(disk)
    assert attachment.is_blank("data")
    attachment.detach("data")


def test_an_error_of_the_service_is_an_i_o_error_and_no_more(node: Node) -> None:
    """A blob that was deleted: EIO for each request, and the attachment lives on to be detached."""
    attached = node.attach(node.create(), io_timeout_s=1.0, cache="none")
    fill(attached.device, 9, MIB)
    flush(attached.device)
    node.server.remove(node.container, "data")
    subprocess.run(["blockdev", "--flushbufs", attached.device], check=True)
    with pytest.raises(OSError, match="Input/output error"), Path(attached.device).open("rb", buffering=0) as device:
        device.read(4096)
    for look in (filesystem.probe, filesystem.content):
        with pytest.raises(DeviceError, match=f"{attached.device} cannot be read: Input/output error"):
            look(attached.device)
    assert attachment.get("data").restarts == 0
    assert "failed" in node.log("data")
    attachment.detach("data")


def test_io_timeout_is_changed_while_attached(node: Node) -> None:
    node.attach(node.create())
    with Control(control_path(str(node.dirs.run), "data"), "data") as control:
        control.ask("set", io_timeout_s=7)
        assert attachment.status("data")["io_timeout_s"] == 7
        wait_for(lambda: node.state("data")["io_timeout_s"] == 7, "what the holder writes down")
        with pytest.raises(UsageError, match="io-timeout"):
            control.ask("set", io_timeout_s=0.5)
        with pytest.raises(UsageError, match="does not know 'dance'"):
            control.ask("dance")
        control.ask("stop")  # the loop device has the file, so this changes nothing
        assert control.ask("blank")["blank"]
    attachment.detach("data")


def test_requests_for_data_do_not_come_to_pyfuse3(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is given the socket that stands for the device, and all else comes by that (device/worker/others.py)."""
    calls = tmp_path / "calls"
    use_worker(
        monkeypatch,
        tmp_path,
        "import struct\n"
        "from blobfuse_dysk.device.worker.others import Others\n"
        f"file = open({str(calls)!r}, 'a', buffering=1)\n"  # while it is root still
        "def noted(self, request, real=Others.send):\n"
        "    print(struct.unpack_from('<4xI', request)[0], file=file)\n"
        "    real(self, request)\n"
        "Others.send = noted\n",
    )
    attached = node.attach(node.create())
    fill(attached.device, MIB, MIB)
    flush(attached.device)
    with Path(attached.device).open("rb", buffering=0) as device:
        os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for number in range(20):
            os.pread(device.fileno(), 4096, number * MIB)
    attachment.detach("data")
    opcodes = set(map(int, calls.read_text().split()))
    assert opcodes >= {1, 14, 18}  # LOOKUP, OPEN, RELEASE
    assert not opcodes & {15, 16, 20}  # READ, WRITE, FSYNC
