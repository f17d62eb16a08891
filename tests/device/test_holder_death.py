"""A holder that is killed: nothing hangs, what happened is shown, what is left is found and cleared away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.device.attacher.leftovers import elsewhere, leftovers
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.kernel import fuse, loop, usage
from blobfuse_dysk.errors import NotFoundError
from tests.conftest import entries
from tests.device.conftest import MIB, Node, fill, wait_for
from tests.device.test_worker_death import verifying
from tests.namespaces import need_private_mounts


def kill_holder(node: Node) -> None:
    found = node.state("data")
    os.kill(found["holder"]["pid"], signal.SIGKILL)
    wait_for(lambda: not state.alive(found["worker"]), "the worker's end")


@pytest.mark.parametrize("service", ["well", "silent"])
def test_a_load_gets_errors_when_the_holder_dies(node: Node, service: str) -> None:
    """Every request gets its error; attaching anew works at once, with what the service has."""
    node.server.configure(latency_ms=2)
    disk = node.create()
    attached = node.attach(disk, io_timeout_s=None)
    fio = subprocess.Popen(
        verifying(attached.device, loops=1000),  # it does not end by itself, however slow we are
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: attachment.status("data")["io"], "I/O")
    if service == "silent":
        node.server.outage("silent")
        wait_for(lambda: attachment.status("data")["requests"]["in_flight"], "requests on their way")
    kill_holder(node)
    output = fio.communicate(timeout=30)[0]
    assert fio.returncode != 0 and "Input/output error" in output
    found = attachment.get("data")
    assert found.state == "dead" and "holder process is gone" in str(found.detail)
    node.server.outage(None)
    again = node.attach(disk)
    assert again.state == "attached"
    written = fill(again.device, 1, MIB)
    assert Path(again.device).read_bytes()[:MIB] == written
    attachment.detach("data")
    node.assert_nothing_left()


def test_a_file_system_gets_errors_when_the_holder_dies_and_keeps_what_was_synced(node: Node, tmp_path: Path) -> None:
    """The file system reports errors and can be unmounted; what was synced is there afterwards."""
    disk = node.create()
    attached = node.attach(disk)
    subprocess.run(["mkfs.ext4", "-q", attached.device], check=True)
    subprocess.run(["mount", attached.device, str(tmp_path)], check=True)
    (tmp_path / "kept").write_bytes(b"x" * MIB)
    subprocess.run(["sync", "-f", str(tmp_path)], check=True)
    kill_holder(node)
    with pytest.raises(OSError, match=r"Input/output|Read-only"), (tmp_path / "lost").open("wb") as file:
        file.write(b"y" * MIB)
        os.fsync(file.fileno())
    subprocess.run(["umount", str(tmp_path)], check=True, timeout=30)
    attached = node.attach(disk)
    subprocess.run(["mount", attached.device, str(tmp_path)], check=True)
    assert (tmp_path / "kept").read_bytes() == b"x" * MIB
    subprocess.run(["umount", str(tmp_path)], check=True)
    attachment.detach("data")
    node.assert_nothing_left()


def test_leftovers_are_found(node: Node) -> None:
    """What no state tells of: each is named with what clears it away, and that does."""
    run, dev = str(node.dirs.run), str(node.dirs.dev)
    assert leftovers(run, dev) == []
    attached = node.attach(node.create())
    assert leftovers(run, dev) == []
    kill_holder(node)
    assert leftovers(run, dev) == []  # its state tells of it
    (node.dirs.run / "data" / "state.json").unlink()
    assert leftovers(run, dev) == [
        (f"{run}/data was begun and never finished", "dyskctl detach data --force"),
    ]
    with pytest.raises(NotFoundError):
        attachment.detach("data")
    attachment.detach("data", force=True)
    assert leftovers(run, dev) == []
    assert loop.backing_file(attached.device) is None

    (node.dirs.dev / "old").symlink_to("../loop99999")
    ((what, remedy),) = leftovers(run, dev)
    assert "belongs to no attachment" in what
    subprocess.run(remedy.split(), check=True)
    assert leftovers(run, dev) == []


def test_a_device_whose_attachment_is_not_seen_is_left_alone_while_it_lives(node: Node) -> None:
    """As in a container that shares /dev, but not /run: the kernel shows the file's path as the host sees it."""
    run, dev = str(node.dirs.run), str(node.dirs.dev)
    attached = node.attach(node.create())
    found = node.state("data")
    mount = ["mount", "-t", "tmpfs", "tmpfs", run]
    subprocess.run(mount, check=True)  # so that the path is the same, and the directory is not seen
    try:
        assert leftovers(run, dev) == []
        assert elsewhere(run) == [attached.device]
        node.server.outage("silent")
        assert leftovers(run, dev) == [], "that a service does not answer is no death"
        node.server.outage(None)
        for which in ("holder", "worker"):
            os.kill(found[which]["pid"], signal.SIGKILL)
        wait_for(lambda: usage.is_dead(attached.device), "the end of its connection")
        ((what, remedy), *links) = leftovers(run, dev)
        assert (what, links) == (f"{attached.device} has a file of data, which is gone, behind it", [])
        subprocess.run(remedy.split(), check=True)
        wait_for(lambda: loop.backing_file(attached.device) is None, "the release of the device")
        assert [remedy for _, remedy in leftovers(run, dev)] == [f"rm {attached.by_blob}", f"rm {attached.link}"]
    finally:
        node.server.outage(None)
        subprocess.run(["umount", run], check=True)
    attachment.detach("data")


def test_a_device_of_the_same_path_in_another_container_is_left_alone(node: Node) -> None:
    """Two containers with a /run of their own have the same paths for different disks."""
    need_private_mounts()
    run = str(node.dirs.run)
    attached = node.attach(node.create())
    script = (
        "import os, sys; from blobfuse_dysk import attachment; from blobfuse_dysk.device.kernel import loop;"
        "assert loop.backing_file(sys.argv[1]) == sys.argv[2] + '/data/fs/disk', loop.backing_file(sys.argv[1]);"
        "os.mkdir(sys.argv[2] + '/data');"  # begun, and never finished
        "attachment.detach('data', force=True); print([n for n in os.listdir(sys.argv[2]) if n[0] != '.'])"
    )
    inside = f'umount -l {run}/data/fs && mount -t tmpfs tmpfs {run} && exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inside, "sh", sys.executable, "-c", script]
    done = subprocess.run([*command, attached.device, run], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
    assert loop.backing_file(attached.device) == f"{run}/data/fs/disk", "the other's disk was let go of"
    assert os.path.realpath(attached.by_blob) == os.path.realpath(attached.link) == attached.device
    fill(attached.device, 1, MIB)
    attachment.detach("data")
    assert node.blob()["allocated"] == MIB


def test_force_from_another_mount_namespace(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the FUSE mount cannot be seen, its connection is known all the same, so that I/O which waits ends."""
    need_private_mounts()
    disk = node.create()
    script = "import sys; from blobfuse_dysk.attachment import attach; from blobfuse_dysk.options import AttachOptions;"
    script += "print(attach(sys.argv[1], AttachOptions(io_timeout_s=None)).device)"
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script, disk]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    node.server.outage("silent")
    stuck = subprocess.Popen(
        ["dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=8", "oflag=direct", "conv=fsync"],
        stderr=subprocess.DEVNULL,
    )
    found = node.state("data")
    wait_for(lambda: attachment.status("data")["requests"]["in_flight"], "requests on their way")
    os.kill(found["worker"]["pid"], signal.SIGSTOP)  # it cannot end by itself, as when the kernel holds it
    aborted: list[int] = []
    real = fuse.abort

    def abort(number: int) -> None:
        aborted.append(number)
        real(number)

    monkeypatch.setattr(fuse, "abort", abort)
    attachment.detach("data", force=True, lose_data=True)
    assert aborted == [found["connection"]]
    assert stuck.wait(20) != 0
    assert not state.alive(found["holder"])
    assert entries(node.dirs.run) == []
    node.server.outage(None)
