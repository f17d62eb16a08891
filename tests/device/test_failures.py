"""An attach that cannot be: a typed error with a remedy, and nothing left."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.kernel import loop
from blobfuse_dysk.errors import AttachedError, DeviceError, DyskError, NotFoundError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.vhd import footer
from tests.conftest import entries
from tests.device.conftest import MIB, Node, fill, flush
from tests.device.programs import use_worker
from tests.leaks import end_templates
from tests.namespaces import need_private_mounts


def refused(node: Node, disk: str, kind: type[DyskError], match: str, **options: object) -> DyskError:
    """Attach, expect this error with a remedy, and look for what is left."""
    before = entries(node.dirs.run)
    with pytest.raises(kind, match=match) as caught:
        attachment.attach(disk, AttachOptions(**options))  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert caught.value.remedy
    assert entries(node.dirs.run) == before
    return caught.value


def test_no_such_blob(node: Node) -> None:
    node.create("other")
    refused(node, f"{node.server.account}/{node.container}/none", NotFoundError, "none")
    assert list(node.dirs.dev.iterdir()) == []


def test_a_snapshot_that_is_not_there(node: Node) -> None:
    disk = node.create()
    refused(node, f"{disk}?snapshot=2026-01-31T12:00:00.0000000Z", NotFoundError, "snapshot")


@pytest.mark.parametrize(
    ("size", "options", "match"),
    [
        (MIB + 512, {"sector_size": 4096}, "no multiple of the sector size 4096"),
        (MIB, {"vhd": "yes"}, "does not end with a VHD footer"),
    ],
)
def test_a_size_or_footer_that_does_not_fit(node: Node, size: int, options: dict[str, object], match: str) -> None:
    """Found out after the lease was taken, so that has to be given back."""
    refused(node, node.create(size=size), UsageError, match, **options)
    assert node.blob()["lease"]["state"] == "available"


def test_a_worker_that_fails_unexpectedly_says_why(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tasks run in groups, and a group's traceback ends with a frame of dashes."""
    use_worker(
        monkeypatch,
        node.dirs.root,
        "from blobfuse_dysk.store import open as module\n"
        "async def fail(*args): raise ValueError('no such thing')\n"
        "module._look = fail",
    )
    refused(node, node.create(), DeviceError, "exit status 1: ValueError: no such thing\\)$")


def test_a_vhd_and_4096_byte_sectors(node: Node) -> None:
    disk = node.create(size=MIB + 512)
    attached = node.attach(disk)
    with Path(attached.device).open("r+b", buffering=0) as device:
        device.seek(MIB)
        device.write(footer(MIB))
    attachment.detach("data")
    refused(node, disk, UsageError, "no multiple", sector_size=4096, vhd="no")
    attached = node.attach(disk, sector_size=4096)
    assert (attached.size, attached.vhd) == (MIB, True)
    attachment.detach("data")


def test_the_name_is_taken(node: Node) -> None:
    node.attach(node.create(), name="db")
    refused(node, node.create("other"), AttachedError, "the name db is taken", name="db")
    attachment.detach("db")


def test_the_disk_is_attached_already(node: Node) -> None:
    disk = node.create()
    attached = node.attach(disk)
    for options in ({}, {"name": "data"}, {"name": "second"}, {"read_only": True}, {"break_lease": True}):
        refused(node, disk, AttachedError, "as data|name data", **options)
    assert Path(attached.device).read_bytes()[:512] == bytes(512)
    attachment.detach("data")
    node.assert_nothing_left()


def test_read_only_attachments_of_one_disk_live_side_by_side(node: Node) -> None:
    disk = node.create()
    first, second = node.attach(disk, read_only=True), node.attach(disk, read_only=True, name="again")
    assert first.device != second.device
    with pytest.raises(AttachedError, match="more than once: again, data"):
        attachment.get(disk)
    refused(node, disk, AttachedError, "attached here already")
    attachment.detach("data")
    assert Path(second.device).read_bytes()[:512] == bytes(512)
    attachment.detach("again")


def test_two_attaches_of_one_disk_at_once(node: Node) -> None:
    disk = node.create()
    script = "import sys; from blobfuse_dysk.attachment import attach; attach(sys.argv[1])"
    starts = [
        subprocess.Popen([sys.executable, "-c", script, disk], stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    errors = [start.communicate()[1] for start in starts]
    assert sorted(start.returncode for start in starts) == [0, 1, 1, 1]
    assert all("AttachedError" in error for error in errors if error)
    assert len(attachment.attachments()) == 1
    assert node.blob()["lease"]["id"] == node.lease(disk)["id"]
    attachment.detach(disk)
    node.assert_nothing_left()


@contextlib.contextmanager
def small(node: Node, *options: str) -> Iterator[None]:
    """A run directory with a file system of its own, on which a template has its socket."""
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(node.dirs.run)], check=True)
    try:
        yield
    finally:
        end_templates(node.dirs)
        subprocess.run(["umount", str(node.dirs.run)], check=True)


@pytest.mark.parametrize("inodes", range(2, 8))
def test_run_is_full(node: Node, inodes: int) -> None:
    """With room for so many files in /run/dysk that each step fails in turn. The root takes one, a template another."""
    disk = node.create()
    with small(node, "-o", f"size=64k,nr_inodes={inodes}"):
        try:
            node.attach(disk)
        except DeviceError as error:
            assert "No space left" in str(error)
            assert error.remedy == f"free space in {node.dirs.run}"
            assert entries(node.dirs.run) == []
        else:
            attachment.detach(disk)
            assert inodes == 7
    assert node.blob()["lease"]["state"] == "available"
    assert list(node.dirs.dev.iterdir()) == []


def test_run_is_full_while_attached(node: Node) -> None:
    """State that cannot be written is logged; the disk works on, over a worker's death, too."""
    disk = node.create()
    with small(node, "-o", "size=64k"):
        attached = node.attach(disk)
        with contextlib.suppress(OSError):
            (node.dirs.run / "filler").write_bytes(bytes(MIB))
        os.kill(node.state("data")["worker"]["pid"], 9)
        written = fill(attached.device, 1, MIB)
        flush(attached.device)
        assert Path(attached.device).read_bytes()[:MIB] == written
        assert "cannot write state.json" in node.log("data")
        attachment.detach("data")
    assert node.blob()["lease"]["state"] == "available"


def test_no_dev_fuse(node: Node) -> None:
    """In a mount namespace of its own, /dev/fuse is hidden behind something that is no FUSE device."""
    need_private_mounts()
    script = "import sys; from blobfuse_dysk.attachment import attach; attach(sys.argv[1])"
    shell = 'mount --bind /dev/null /dev/fuse && exec "$1" -c "$2" "$3"'
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", sys.executable, script, node.create()]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "DeviceError: cannot mount FUSE" in result.stderr
    node.assert_nothing_left()


def test_attaching_needs_root(node: Node) -> None:
    disk = node.create()
    script = "import os, sys; from blobfuse_dysk.attachment import attach; os.seteuid(65534); attach(sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", script, disk], capture_output=True, text=True)
    assert "DeviceError: attaching a disk needs root" in result.stderr
    node.assert_nothing_left()


def test_no_loop_control(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_CONTROL", "/dev/no-such-control")
    error = refused(node, node.create(), DeviceError, "cannot open /dev/no-such-control")
    assert error.remedy == "modprobe loop"
    node.assert_nothing_left()


def test_loop_devices_are_taken_by_others_meanwhile(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """LOOP_CTL_GET_FREE names a device that somebody else configures first."""
    other = node.attach(node.create("other"))
    answers = iter([int(other.device.removeprefix("/dev/loop"))] * 3)
    real = loop._get_free
    monkeypatch.setattr(loop, "_get_free", lambda control: next(answers, None) or real(control))
    attached = node.attach(node.create())
    assert attached.device != other.device
    attachment.detach("data")
    attachment.detach("other")


def test_the_node_of_a_loop_device_is_made(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no devtmpfs makes it."""
    hidden = []
    real = loop._get_free

    def hide(control: int) -> int:
        """As it is right after LOOP_CTL_GET_FREE in a container."""
        hidden.append(Path(f"/dev/loop{real(control)}"))
        hidden[-1].unlink()
        return real(control)

    monkeypatch.setattr(loop, "_get_free", hide)
    attached = node.attach(node.create())
    assert Path(attached.device) in hidden
    assert stat.S_ISBLK(Path(attached.device).stat().st_mode)
    attachment.detach("data")


def test_the_link_is_something_else(node: Node) -> None:
    (node.dirs.dev / "data").write_text("mine")
    refused(node, node.create(), AttachedError, "is not a link of ours", name="data")
    (node.dirs.dev / "data").unlink()
    node.assert_nothing_left()


@pytest.mark.parametrize("last_words", ["import nothing_of_that_name", "import sys; sys.exit('no memory')"])
def test_a_worker_that_cannot_start(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, last_words: str
) -> None:
    program = tmp_path / "worker.py"
    program.write_text(last_words)
    monkeypatch.setattr("blobfuse_dysk.device.attacher.launch.WORKER", str(program))
    refused(node, node.create(), DeviceError, r"worker could not start .*(nothing_of_that_name|no memory)")
    node.assert_nothing_left()


def test_a_holder_that_cannot_start(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "holder.py"
    program.write_text("import nothing_of_that_name")
    monkeypatch.setattr("blobfuse_dysk.device.attacher.launch.HOLDER", str(program))
    refused(node, node.create(), DeviceError, r"the holder process ended: .*nothing_of_that_name")
    node.assert_nothing_left()


def test_a_service_that_does_not_answer(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = node.create()
    node.server.outage("refuse")
    with pytest.raises(DyskError) as caught:
        node.attach(disk)
    assert caught.value.line()
    assert entries(node.dirs.run) == []
    node.server.outage(None)
    node.assert_nothing_left()


def test_a_directory_that_a_killed_holder_left_before_its_first_state(node: Node) -> None:
    (node.dirs.run / "data" / "fs").mkdir(parents=True)
    attached = node.attach(node.create(), name="data")
    assert attached.state == "attached"
    attachment.detach("data")


def test_threads_of_one_process_attach_at_once(node: Node) -> None:
    disks = [node.create(f"disk{n}", MIB) for n in range(4)]
    threads = [threading.Thread(target=node.attach, args=(disk,)) for disk in disks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state.names(str(node.dirs.run)) == ["disk0", "disk1", "disk2", "disk3"]
    for disk in disks:
        attachment.detach(disk)


@pytest.mark.parametrize(
    ("offset", "content", "options", "warned"),
    [
        (0, b"QFI\xfb\0\0\0\3", {}, "is a qcow2 image: qemu-img convert -f qcow2 -O raw {}"),
        (MIB - 512, footer(2 * MIB), {}, "is a VHD whose footer is of a disk of 2MiB, in a blob of 1MiB: "),
        (MIB - 512, footer(2 * MIB), {"vhd": "no"}, None),
        (0, b"LUKS\xba\xbe\0\2", {}, None),
        (0, b"", {}, None),
    ],
)
def test_an_image_of_another_format_is_named_when_it_is_attached(
    node: Node, caplog: pytest.LogCaptureFixture, offset: int, content: bytes, options: Any, warned: str | None
) -> None:
    disk = node.create(size=MIB)
    attached = node.attach(disk, vhd="no")
    with Path(attached.device).open("r+b", buffering=0) as device:
        os.pwrite(device.fileno(), content + bytes(-len(content) % 512), offset)
    attachment.detach("data")
    caplog.clear()
    attached = node.attach(disk, **options)
    found = [each for each in caplog.messages if disk in each]
    assert len(found) == (warned is not None)
    assert all(f"{disk} {warned}".format(attached.by_blob) in each for each in found)
    attachment.detach("data")
