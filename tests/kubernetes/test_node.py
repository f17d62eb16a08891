"""The Node service by a kubelet's calls: real disks, mounts and processes."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.kubernetes.conftest import MIB, Cluster, mounts_below
from tests.kubernetes.nodes import capability, refused


def fstype(path: Path) -> str:
    lines = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if line.split()[4] == str(path)]
    return lines[-1].partition(" - ")[2].split()[0] if lines else ""


def test_a_volume_goes_to_a_pod_and_back_and_what_was_written_is_there(cluster: Cluster) -> None:
    pod = cluster.volume()
    target = pod.up()
    assert fstype(target) == "ext4"
    (target / "file").write_text("kept")
    pod.down()
    assert not target.exists() and pod.staged.is_dir()
    assert cluster.attachments() == [] and mounts_below(cluster.dirs.root) == []
    assert cluster.blob()["lease"]["state"] == "available"
    target = pod.up()
    assert (target / "file").read_text() == "kept"
    pod.down()


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_other_file_systems(cluster: Cluster, kind: str) -> None:
    pod = cluster.volume(size=512 * MIB, how=capability(fstype=kind))
    target = pod.up()
    assert fstype(target) == kind
    pod.publish("two", readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        (pod.target("two") / "file").touch()
    pod.down("one", "two")


def test_a_disk_is_formatted_once_also_when_it_is_staged_again(cluster: Cluster) -> None:
    """Nothing of the first time says that it should be, while it is attached as before."""
    pod = cluster.volume(at_publish=True)
    pod.stage()
    assert not list(cluster.dirs.run.glob(".csi-*"))
    (pod.publish() / "file").write_text("kept")
    pod.unpublish()
    subprocess.run(["umount", pod.staged], check=True)
    assert (pod.publish() / "file").read_text() == "kept"
    pod.down()


def test_every_call_may_come_twice(cluster: Cluster) -> None:
    pod = cluster.volume()
    for _ in range(2):
        pod.stage()
    for _ in range(2):
        pod.publish()
    assert len([mount for mount in mounts_below(cluster.dirs.root) if mount == str(pod.target())]) == 1
    assert len([mount for mount in mounts_below(cluster.dirs.root) if mount == str(pod.staged)]) == 1
    for _ in range(2):
        pod.unpublish()
    for _ in range(2):
        pod.unstage()


def test_raw_block(cluster: Cluster) -> None:
    pod = cluster.volume(how=capability(block=True))
    target = pod.up()
    assert stat.S_ISBLK(target.stat().st_mode)
    with target.open("r+b", buffering=0) as device:
        device.write(b"x" * 4096)
        os.fsync(device.fileno())
    found = pod.stats()
    assert [(each.unit, each.total, each.used) for each in found.usage] == [(1, 64 * MIB, 0)]
    with refused("FAILED_PRECONDITION", "is in use on this node to be written"):
        pod.publish("two", readonly=True)
    with refused("FAILED_PRECONDITION", "is still mounted on"):
        pod.unstage()
    pod.unpublish()
    pod.publish("two", readonly=True)
    with pytest.raises(OSError), pod.target("two").open("r+b", buffering=0) as device:
        device.write(b"y" * 4096)
    with refused("ALREADY_EXISTS"):
        pod.publish("two")
    loop = str(cluster.state()["device"])
    pod.unpublish("two")
    with Path(loop).open("r+b", buffering=0):  # it is not left read-only to whoever is given the loop device next
        pass
    pod.unstage()
    assert cluster.blob()["allocated"] == 4096


def test_a_volume_of_the_original_has_its_secret_at_publish_alone(cluster: Cluster) -> None:
    context = {"container": cluster.container, "blob": "data"}
    pod = cluster.volume(at_stage=False, at_publish=True, context=context)
    pod.stage()
    assert cluster.attachments() == []
    (pod.publish() / "file").write_text("kept")
    pod.publish("two")
    assert (pod.target("two") / "file").read_text() == "kept"
    pod.down("one", "two")


def test_without_any_secret_the_event_says_where_one_is_named(cluster: Cluster) -> None:
    pod = cluster.volume(at_stage=False)
    pod.stage()
    with refused("FAILED_PRECONDITION", "no secret came with the call: name one in the class"):
        pod.publish()
    pod.unstage()
