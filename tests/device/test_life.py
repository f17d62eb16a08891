"""An attachment's life when nothing goes wrong: attach, look at it, use it, detach."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from blobfuse_dysk import attachment, live
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.kernel import fuse, loop
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import NotFoundError
from tests.device.conftest import MIB, Node, fill
from tests.polling import eventually


def test_attach_use_detach(node: Node) -> None:
    disk = node.create()
    attached = node.attach(disk)
    assert (attached.name, attached.disk, attached.size) == ("data", disk, 64 * MIB)
    assert (attached.state, attached.read_only, attached.vhd, attached.sector_size) == ("attached", False, False, 512)
    assert attached.link == str(node.dirs.dev / "data")
    assert os.path.realpath(attached.link) == attached.device
    assert attached.lease is not None
    assert attached.lease["id"] == node.blob()["lease"]["id"]
    written = fill(attached.device, 1, MIB)
    with Path(attached.device).open("r+b", buffering=0) as device:
        os.fsync(device.fileno())
    attachment.detach(attached.name)
    node.assert_nothing_left()
    again = node.attach(disk, read_only=True)
    assert Path(again.device).read_bytes()[:MIB] == written
    attachment.detach(disk)
    node.assert_nothing_left()


def test_everything_written_is_on_the_server_when_detach_returns(node: Node) -> None:
    """Without any fsync: the kernel's page cache is written out by the detach."""
    attached = node.attach(node.create())
    fill(attached.device, 2, 8 * MIB)
    attachment.detach(attached.device)
    assert node.blob()["allocated"] == 8 * MIB


def test_an_attachment_is_found_by_name_device_link_and_disk(node: Node) -> None:
    disk = node.create("a b/c.vhd")
    attached = node.attach(disk)
    assert attached.name == "c.vhd"
    url = str(DiskAddress.parse(f"{node.server.endpoint}/{node.container}/a%20b/c.vhd"))
    for target in ("c.vhd", attached.device, attached.link, attached.by_blob, disk, url):
        assert attachment.get(target) == attached
    with pytest.raises(NotFoundError, match="not attached here"):
        attachment.get("/dev/loop-none")
    assert attachment.attachments() == [attached]
    assert attachment.status("c.vhd")["state"] == "attached"
    attachment.detach("c.vhd")
    assert attachment.attachments() == []


def test_names_are_made_of_the_blob_and_do_not_collide(node: Node) -> None:
    names = [node.attach(node.create(blob)).name for blob in ("x/data.vhd", "y/data", "z/!", "data@")]
    assert names == ["data.vhd", "data", "x_21", "data_40"]
    for name in names:
        attachment.detach(name)


def test_blank_is_what_the_page_map_says(node: Node) -> None:
    attached = node.attach(node.create())
    assert attachment.is_blank("data")
    fd = os.open(attached.device, os.O_RDWR | os.O_DIRECT)
    os.close(fd)
    with Path(attached.device).open("r+b", buffering=0) as device:
        device.seek(40 * MIB)
        device.write(b"x" * 4096)
        os.fsync(device.fileno())
    assert not attachment.is_blank("data")
    attachment.detach("data")


def test_queue_and_connection_are_set(node: Node) -> None:
    attached = node.attach(node.create())
    queue = Path("/sys/block", Path(attached.device).name, "queue")
    assert "[none]" in (queue / "scheduler").read_text()
    assert int((queue / "read_ahead_kb").read_text()) == 4096
    assert int((queue / "max_sectors_kb").read_text()) == 1024
    assert int((queue / "discard_max_bytes").read_text()) == 0
    number = fuse.connection(str(node.dirs.run / "data" / "fs"))
    background = Path(f"/sys/fs/fuse/connections/{number}/max_background")
    assert int(background.read_text()) == 256
    assert loop.backing_file(attached.device) == str(node.dirs.run / "data" / "fs" / "disk")
    attachment.detach("data")


def test_a_run_directory_behind_a_link(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """As /var/run is one to /run."""
    link = node.dirs.root / "link"
    link.symlink_to(node.dirs.run)
    monkeypatch.setenv("DYSK_RUN_DIR", str(link))
    attached = node.attach(node.create())
    assert attachment.get(attached.device) == attached
    attachment.detach("data")
    node.assert_nothing_left()


def test_df_passes_over_the_mount(node: Node) -> None:
    node.attach(node.create())
    result = subprocess.run(["df"], capture_output=True, text=True)
    assert str(node.dirs.run) not in result.stdout + result.stderr
    attachment.detach("data")


def test_secrets_are_neither_in_files_nor_in_what_processes_show(node: Node) -> None:
    node.attach(node.create())
    key = node.server.key
    found = node.state("data")
    directory = node.dirs.run / "data"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "state.json").stat().st_mode) == 0o600
    assert key not in (directory / "state.json").read_text()
    assert key not in node.log("data")
    for process in (found["holder"], found["worker"]):
        proc = Path("/proc", str(process["pid"]))
        assert key.encode() not in (proc / "cmdline").read_bytes()
        assert b"--name\0data" in (proc / "cmdline").read_bytes()
        assert key.encode() not in (proc / "environ").read_bytes()
    attachment.detach("data")


def test_no_secret_gets_into_a_core_file_or_into_swap(node: Node) -> None:
    """The configuration, which only the holder keeps, stays in memory; after a change of the credential as well."""
    node.attach(node.create())
    found = node.state("data")
    for process in (found["holder"], found["worker"]):
        limits = Path("/proc", str(process["pid"]), "limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.M)
    maps = Path("/proc", str(found["holder"]["pid"]), "smaps")
    config = re.compile(r"^\S+ r--p .*memfd:dysk-config.*?^Size: +(\d+) kB.*?^Locked: +(\d+) kB", re.S | re.M)
    inode = re.compile(r"^\S+ r--p \S+ \S+ (\d+) .*memfd:dysk-config", re.M)

    def locked_inode() -> str:
        """Of the only configuration in the holder's memory, if all of it is locked."""
        text = maps.read_text()
        sizes, found = config.findall(text), inode.findall(text)
        return str(found[0]) if len(sizes) == len(found) == 1 and sizes[0][0] == sizes[0][1] != "0" else ""

    before = locked_inode()
    assert before
    path = node.dirs.config / "again.conf"
    path.write_text(f"account_key = {node.server.key}\nendpoint = {node.server.endpoint}\n")
    path.chmod(0o600)
    live.reload_credential("data", str(path))
    eventually(lambda: locked_inode() not in {"", before})
    attachment.detach("data")


def test_the_holder_belongs_to_nobody(node: Node) -> None:
    """It is no child of the attaching process, holds none of its files, and is in no session of a terminal."""
    node.attach(node.create())
    pid = node.state("data")["holder"]["pid"]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[1]) != os.getpid()
    assert int(fields[3]) != os.getsid(0)
    assert Path(f"/proc/{pid}/cwd").resolve() == Path("/")
    assert {Path(f"/proc/{pid}/fd/{fd}").resolve() for fd in range(3)} == {Path("/dev/null")}
    attachment.detach("data")


def test_processes_stay_small(node: Node) -> None:
    node.attach(node.create())
    found = node.state("data")
    pss = 0
    for process in (found["holder"], found["worker"]):
        lines = Path(f"/proc/{process['pid']}/smaps_rollup").read_text().splitlines()
        pss += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    assert pss < 40 * 1024
    attachment.detach("data")


def test_32_at_once(node: Node) -> None:
    """Also more than the machine's eight loop devices."""
    script = "import sys; from blobfuse_dysk.attachment import attach; print(attach(sys.argv[1]).device)"
    disks = [node.create(f"disk{n}", MIB) for n in range(32)]
    starts = [
        subprocess.Popen([sys.executable, "-c", script, disk], stdout=subprocess.PIPE, text=True) for disk in disks
    ]
    devices = [start.communicate()[0].strip() for start in starts]
    assert all(start.returncode == 0 for start in starts)
    assert len(set(devices)) == 32
    assert [found.state for found in attachment.attachments()] == ["attached"] * 32
    for name in state.names(str(node.dirs.run)):
        attachment.detach(name)
    assert all(node.blob(f"disk{n}")["lease"]["state"] == "available" for n in range(32))


@pytest.mark.parametrize("leased", [True, False])
def test_a_reader_of_a_disk_that_another_node_writes_is_told_so(
    node: Node, caplog: pytest.LogCaptureFixture, leased: bool
) -> None:
    from azure.storage.blob import BlobClient, BlobLeaseClient

    disk = node.create()
    credential = {"account_name": node.server.account, "account_key": node.server.key}
    url = f"{node.server.endpoint}/{node.container}/data"
    with BlobClient.from_blob_url(url, credential=credential) as blob:
        blob.set_blob_metadata({"dysk_node": "seven", "dysk_since": "2026-01-31T12:00:00Z"})
        if leased:
            BlobLeaseClient(blob).acquire()
    node.attach(disk, read_only=True)
    writer = "leased by node seven since 2026-01-31T12:00:00Z" if leased else None
    assert attachment.writer_of("data") == writer
    warnings = [each for each in caplog.messages if f"{disk} is {writer}, which writes to it" in each]
    assert len(warnings) == leased
    attachment.detach("data")
    node.attach(disk, name="taken", break_lease=True)
    assert attachment.writer_of("taken") is None
    attachment.detach("taken")
