"""The node's driver is killed at each step of each call; the call that is repeated to the next one does the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.kubernetes import dying
from tests.kubernetes.conftest import Cluster, mounts_below, take_down
from tests.kubernetes.nodes import CallFailed, Plugin, capability, refused, until
from tests.leaks import RunDirs

K = "blobfuse_dysk.kubernetes"
STAGE = [
    f"{K}.staging:_refuse_other_attachments:after",
    f"{K}.staging:Staging._attached:after",
    f"{K}.formatting:Making.before_mkfs:after",
    "blobfuse_dysk.mount.filesystem:make_file_system:cut",
    "blobfuse_dysk.mount.filesystem:make_file_system:after",
    f"{K}.formatting:Making.after_mkfs:after",
    f"{K}.mounting:mount:before",
    f"{K}.mounting:mount:after",
]
PUBLISH = [f"{K}.publishing:_make:after", f"{K}.publishing:_show:after"]
UNPUBLISH = [f"{K}.mounting:unmount:before", f"{K}.mounting:unmount:after", f"{K}.publishing:_remove:after"]
UNSTAGE = [
    f"{K}.mounting:unmount:before",
    f"{K}.mounting:unmount:after",
    "blobfuse_dysk.attachment:detach:before",
    "blobfuse_dysk.attachment:detach:after",
]


@pytest.fixture
def killed(server: PageBlobServer, run_dirs: RunDirs, container: str) -> Iterator[Cluster]:
    """A cluster whose node plugin is started by the test."""
    found = Cluster(run_dirs, server, container, Plugin(run_dirs))
    try:
        yield found
        assert found.attachments() == []
    finally:
        found.plugin.stop()
        take_down(run_dirs)


def start_dying(plugin: Plugin, step: str) -> None:
    plugin.stop()
    plugin.start([sys.executable, dying.__file__, step])


def start_again(plugin: Plugin) -> None:
    """Another one, after the first one's death."""
    assert plugin.process
    until(lambda: plugin.process and plugin.process.poll() is not None, "the driver's death")
    plugin.stop()
    plugin.start()


def name_of(step: str) -> str:
    return step.rpartition(".")[2]


@pytest.mark.parametrize("step", STAGE, ids=name_of)
def test_killed_while_it_stages(killed: Cluster, step: str) -> None:
    pod = killed.volume()
    start_dying(killed.plugin, step)
    with refused("UNAVAILABLE"):
        pod.stage()
    start_again(killed.plugin)
    (pod.up() / "file").write_text("kept")
    assert mounts_below(killed.dirs.root).count(str(pod.staged)) == 1
    pod.down()
    target = pod.up()
    assert (target / "file").read_text() == "kept"
    pod.down()
    assert not list(killed.dirs.run.glob(".csi-*"))


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_mkfs_that_refuses_what_looks_like_a_file_system_is_done_again_all_the_same(killed: Cluster, kind: str) -> None:
    pod = killed.volume(size=512 << 20, how=capability(fstype=kind))
    start_dying(killed.plugin, "blobfuse_dysk.mount.filesystem:make_file_system:after")
    with refused("UNAVAILABLE"):
        pod.stage()
    start_again(killed.plugin)
    pod.up()
    pod.down()


def test_what_a_killed_mkfs_left_is_made_a_file_system_before_the_disk_is_let_go(killed: Cluster) -> None:
    """The pod was deleted meanwhile; another node would find neither a blank disk nor a file system."""
    pod = killed.volume()
    start_dying(killed.plugin, "blobfuse_dysk.mount.filesystem:make_file_system:cut")
    with refused("UNAVAILABLE"):
        pod.stage()
    start_again(killed.plugin)
    pod.unstage()
    pod.up()
    pod.down()


def test_what_looks_like_a_killed_mkfs_of_another_attachment_is_never_formatted(killed: Cluster) -> None:
    """The note of a mkfs says nothing once the disk was let go: anybody may have written to it since."""
    pod = killed.volume()
    start_dying(killed.plugin, "blobfuse_dysk.mount.filesystem:make_file_system:cut")
    with refused("UNAVAILABLE"):
        pod.stage()
    (note,) = killed.dirs.run.glob(".csi-*.mkfs")
    text = note.read_text()
    start_again(killed.plugin)
    note.unlink()
    pod.unstage()
    note.write_text(text)
    for _ in range(2):
        with refused("FAILED_PRECONDITION", "was not formatted"):
            pod.stage()
    assert not note.exists()
    assert killed.attachments() == []


def test_mkfs_that_outlives_the_driver_is_waited_for(killed: Cluster) -> None:
    pod = killed.volume()
    killed.plugin.start()
    killed.server.fault("delay", operation="write")  # until released
    call = killed.plugin.begin("NodeStageVolume", **pod.stage_fields())
    until(lambda: list(killed.dirs.run.glob(".csi-*.mkfs")) and running("mkfs.ext4", pod_device(killed)), "mkfs")
    killed.plugin.kill()
    start_again(killed.plugin)
    for _ in range(2):
        with refused("ABORTED", "a file system is being made on"):
            pod.stage()
    killed.server.clear_faults()
    killed.server.release()

    def staged() -> bool:
        try:
            pod.stage()
        except CallFailed as error:
            assert error.code == "ABORTED", error
            return False
        return True

    until(staged, "the end of mkfs", 60)
    assert call.done()
    pod.publish()
    pod.down()


def pod_device(cluster: Cluster) -> str:
    return str(cluster.state()["device"])


def running(program: str, word: str) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(program.encode()) and word.encode() in words:
                return True
    return False


@pytest.mark.parametrize("step", PUBLISH, ids=name_of)
@pytest.mark.parametrize("how", ["rw", "ro", "block"])
def test_killed_while_it_publishes(killed: Cluster, step: str, how: str) -> None:
    pod = killed.volume(how=capability(block=how == "block"))
    start_dying(killed.plugin, step)
    pod.stage()
    with refused("UNAVAILABLE"):
        pod.publish(readonly=how == "ro")
    start_again(killed.plugin)
    target = pod.publish(readonly=how == "ro")
    assert mounts_below(killed.dirs.root).count(str(target)) == 1
    if how == "ro":
        with pytest.raises(OSError, match="Read-only"):
            (target / "file").touch()
    pod.down()


@pytest.mark.parametrize("step", UNPUBLISH, ids=name_of)
def test_killed_while_it_unpublishes(killed: Cluster, step: str) -> None:
    pod = killed.volume()
    start_dying(killed.plugin, step)
    (pod.up() / "file").write_text("kept")
    with refused("UNAVAILABLE"):
        pod.unpublish()
    start_again(killed.plugin)
    pod.down()
    assert not pod.target().exists()


@pytest.mark.parametrize("step", UNSTAGE, ids=name_of)
def test_killed_while_it_unstages(killed: Cluster, step: str) -> None:
    pod = killed.volume()
    killed.plugin.start()
    (pod.up() / "file").write_text("kept")
    pod.unpublish()
    start_dying(killed.plugin, step)
    with refused("UNAVAILABLE"):
        pod.unstage()
    start_again(killed.plugin)
    pod.unstage()
    assert killed.blob()["lease"]["state"] == "available"
    assert (pod.up() / "file").read_text() == "kept"
    pod.down()


def test_the_half_that_the_test_writes_is_no_file_system() -> None:
    assert len(dying.HALF) > 4096
