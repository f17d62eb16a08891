"""What happens to volumes while they are in use: rotated secrets, disks that fail, vanished mounts, growth, memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.clone import clone
from blobfuse_dysk.options import AttachOptions
from tests.conftest import need
from tests.kubernetes.conftest import MIB, Cluster, mounts_below
from tests.kubernetes.nodes import Pod, capability, refused, until

GIB = 1 << 30
OTHER_KEY = "c2Vjb25kLWtleS1vZi10aGUtYWNjb3VudC13aGljaC1pcy1sb25nLWVub3VnaC10by1iZS1hLWtleS0tLS0tLQ=="


def test_a_rotated_secret_reaches_the_volume_with_the_next_publish_and_is_in_no_file(cluster: Cluster) -> None:
    pod = cluster.volume(at_publish=True)
    target = pod.up()
    cluster.server.reset_stats()
    pod.publish()  # as requiresRepublish has it
    assert set(cluster.server.stats()["requests"]) <= {"lease_renew"}, "the same secret is asked about"
    pod.secrets["accountkey"] = OTHER_KEY
    with refused("UNAUTHENTICATED", "the old credential stays in use"):
        pod.publish()
    (target / "file").write_text("kept")
    cluster.server.configure(accounts={cluster.server.account: [cluster.server.key, OTHER_KEY]})
    pod.publish()
    cluster.server.reset_stats()
    cluster.server.configure(accounts={cluster.server.account: OTHER_KEY})
    (target / "more").write_text("kept")
    subprocess.run(["sync", "-f", target], check=True)
    assert "AuthenticationFailed" not in cluster.server.stats()["codes"]
    cluster.plugin.stop()
    cluster.plugin.start()  # which knows nothing of the secret any more, and tries it
    pod.publish()
    logs = cluster.logs()
    assert OTHER_KEY not in logs and cluster.server.key not in logs
    pod.down()


def kill_holder(cluster: Cluster) -> None:
    """Both processes of the only attachment, as when the node's memory is out."""
    found = cluster.state()
    for process in (found["worker"], found["holder"]):
        os.kill(process["pid"], signal.SIGKILL)
    until(lambda: not state.alive(found["holder"]), "the holder's death")


@pytest.mark.parametrize(
    "at_publish",
    [pytest.param(False, id="stage"), pytest.param(True, id="publish", marks=pytest.mark.long)],  # a lease each
)
def test_a_disk_that_died_is_staged_again_and_the_pods_directory_is_never_the_nodes(
    cluster: Cluster, at_publish: bool
) -> None:
    pod = cluster.volume(at_publish=at_publish)
    target = pod.up()
    (target / "file").write_text("kept")
    subprocess.run(["sync", "-f", target], check=True)
    kill_holder(cluster)
    found = pod.stats()
    assert found.volume_condition.abnormal and "dead" in found.volume_condition.message
    (health,) = cluster.plugin.call("NodeGetVolumeHealth", volume_id=pod.disk).volume_health.health_statuses
    assert (health.status, health.reason) == (2, "dead")
    if not at_publish:
        pod.stage()
    pod.publish()
    (target / "more").write_text("kept")
    assert {"file", "more"} <= {path.name for path in target.iterdir()}
    assert not pod.stats().volume_condition.abnormal
    pod.down()
    assert mounts_below(cluster.dirs.root) == []
    assert {"file", "more"} <= {path.name for path in pod.up().iterdir()}
    pod.down()


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_unstaging_a_disk_that_failed_says_once_what_was_never_written(cluster: Cluster, fstype: str) -> None:
    """And then it is off the node, so that its pod can be elsewhere: a call that is repeated succeeds."""
    pod = cluster.volume(size=512 * MIB, how=capability(fstype=fstype))
    target = pod.up()
    cluster.server.fault("error", status=400, operation="put_page")
    with (target / "file").open("wb") as file:
        file.write(b"x" * MIB)
        file.flush()
        with pytest.raises(OSError, match="Input/output"):
            os.fsync(file.fileno())
    cluster.server.clear_faults()
    until(lambda: cluster.state()["state"] == "failed", "the disk has failed")
    condition = pod.stats().volume_condition
    assert condition.abnormal and "is failed" in condition.message
    with refused("FAILED_PRECONDITION", "larger", "400"):
        cluster.plugin.call(
            "NodeExpandVolume", volume_id=pod.disk, volume_path=str(target), capacity_range={"required_bytes": GIB}
        )
    pod.unpublish()
    with refused("DATA_LOSS", pod.disk, "400", "check its file system"):
        pod.unstage()
    assert cluster.attachments() == []
    pod.unstage()
    log = cluster.plugin.log.read_text()
    assert "NodeUnstageVolume" in log and "DATA_LOSS" in log
    assert "Traceback" not in log, log
    assert cluster.blob()["lease"]["state"] == "available"


def test_a_mount_that_vanished_is_made_again_and_not_bound_as_a_plain_directory(cluster: Cluster) -> None:
    pod = cluster.volume(at_publish=True)
    pod.stage()
    subprocess.run(["umount", pod.staged], check=True)
    (pod.publish() / "file").write_text("on the volume")
    assert list(pod.staged.iterdir()) != []
    subprocess.run(["umount", pod.staged], check=True)
    assert list(pod.staged.iterdir()) == [], "it was written to the node's own disk"
    pod.down()


def test_a_volume_that_is_being_let_go_is_not_staged_on_its_former_device(cluster: Cluster) -> None:
    """A detach that waits for the service: the loop device is free already, and another volume has it."""
    pod = cluster.volume(how=capability(block=True))
    with pod.up().open("r+b", buffering=0) as device:
        device.write(b"x" * 4096)
    former = str(cluster.state()["device"])
    pod.unpublish()
    cluster.server.fault("delay", operation="lease_release")  # until it is released
    call = cluster.plugin.begin("NodeUnstageVolume", volume_id=pod.disk, staging_target_path=str(pod.staged))
    until(lambda: not Path("/sys/block", Path(former).name, "loop").exists(), "that the device is let go")
    cluster.plugin.kill()
    cluster.plugin.stop()
    cluster.plugin.start()
    pod.how = capability()
    with refused("ABORTED", "is being detached right now"):
        pod.stage()
    cluster.server.clear_faults()
    cluster.server.release()
    pod.unstage()
    assert call.done()


def test_a_volume_grows_in_use(cluster: Cluster) -> None:
    pod = cluster.volume(size=512 * MIB, how=capability(fstype="xfs"))
    target = pod.up()
    before = os.statvfs(target).f_blocks
    for _ in range(2):
        answer = cluster.plugin.call(
            "NodeExpandVolume",
            volume_id=pod.disk,
            volume_path=str(target),
            staging_target_path=str(pod.staged),
            capacity_range={"required_bytes": 1024 * MIB},
        )
        assert answer.capacity_bytes == 1024 * MIB == cluster.blob()["size"]
    assert os.statvfs(target).f_blocks > 1.9 * before
    with refused("OUT_OF_RANGE", "more than limit_bytes"):
        cluster.plugin.call(
            "NodeExpandVolume", volume_id=pod.disk, volume_path=str(target), capacity_range={"limit_bytes": 1 * MIB}
        )
    with refused("NOT_FOUND", "is not on this node"):
        cluster.plugin.call("NodeExpandVolume", volume_id=pod.disk, volume_path=str(cluster.dirs.root))
    pod.down()


def test_a_clone_that_is_larger_than_its_file_system_is_filled_when_it_is_staged(cluster: Cluster) -> None:
    pod = cluster.volume(size=512 * MIB, how=capability(fstype="xfs"))
    before = os.statvfs(pod.up()).f_blocks
    pod.down()
    found = cluster.blob()
    cluster.server.configure()
    assert found["size"] == 512 * MIB
    from blobfuse_dysk.disk import DiskAddress
    from blobfuse_dysk.disks.resize import resize
    from blobfuse_dysk.options import AttachOptions

    conf = cluster.dirs.root / "account.conf"
    conf.write_text(f"account_key = {cluster.server.key}\nendpoint = {cluster.server.endpoint}\n")
    conf.chmod(0o600)
    resize(str(DiskAddress.parse(pod.disk)), 1024 * MIB, AttachOptions(credentials=str(conf)))
    assert os.statvfs(pod.up()).f_blocks > 1.9 * before
    pod.down()


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_a_clone_is_on_the_node_of_its_source_at_the_same_time(cluster: Cluster, fstype: str) -> None:
    """Both file systems have one UUID, which xfs minds unless it is told not to, and btrfs on older kernels."""
    release = [int(word) for word in re.findall(r"\d+", os.uname().release)[:2]]
    need(fstype != "btrfs" or release >= [6, 7], "btrfs mounts no clone beside its source before Linux 6.7")
    pod = cluster.volume(size=512 * MIB, how=capability(fstype=fstype))
    (pod.up() / "file").write_text("both")
    pod.down()
    conf = cluster.dirs.root / "account.conf"
    conf.touch(0o600)
    conf.write_text(f"account_key = {cluster.server.key}\nendpoint = {cluster.server.endpoint}\n")
    options = AttachOptions(credentials=str(conf))
    clone(DiskAddress.parse(pod.disk), DiskAddress.parse(f"{pod.disk}-copy"), options, options)
    copy = Pod(cluster.plugin, cluster.dirs.root / "copy", f"{pod.disk}-copy", cluster.secrets, how=pod.how)
    first, second = pod.up(), copy.up()
    (first / "own").write_text("first")
    (second / "own").write_text("second")
    pod.down()
    copy.down()
    for each, own in ((copy, "second"), (pod, "first")):
        target = each.up()
        assert [(target / name).read_text() for name in ("file", "own")] == ["both", own]
        each.down()


def test_worker_restarts_are_in_the_condition(cluster: Cluster) -> None:
    pod = cluster.volume()
    pod.up()
    os.kill(cluster.state()["worker"]["pid"], signal.SIGKILL)
    until(lambda: cluster.state()["restarts"] == 1 and cluster.state()["state"] == "attached", "the next worker")
    found = pod.stats().volume_condition
    assert "worker restarts: 1" in found.message
    pod.down()


def test_the_node_driver_stays_small(cluster: Cluster) -> None:
    """Less than 60 MiB, three volumes later; and it has loaded nothing of the Azure SDK."""
    for number in range(3):
        pod = cluster.volume(f"data{number}")
        pod.up()
        pod.down()
    assert cluster.plugin.process
    process = Path(f"/proc/{cluster.plugin.process.pid}")
    rollup = process.joinpath("smaps_rollup").read_text()
    (pss,) = [int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")]
    print(f"PSS of the node driver: {pss / 1024:.1f} MiB")
    assert pss < 60 << 10
    assert "/azure/" not in process.joinpath("maps").read_text()
