"""What a node refuses: the right code, one line, and nothing half-made."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.options import AttachOptions
from tests.kubernetes.conftest import MIB, Cluster, mounts_below
from tests.kubernetes.nodes import CallFailed, Pod, capability, refused
from tests.unit.test_imageformat import dynamic


def nothing(cluster: Cluster) -> None:
    assert cluster.attachments() == []
    assert mounts_below(cluster.dirs.root) == []


def test_wrong_and_missing_words_of_a_request(cluster: Cluster) -> None:
    pod = cluster.volume()
    fields = pod.stage_fields()
    for change, code, says in (
        ({"volume_id": ""}, "INVALID_ARGUMENT", "no volume_id"),
        ({"staging_target_path": ""}, "INVALID_ARGUMENT", "no staging_target_path"),
        ({"staging_target_path": "relative"}, "INVALID_ARGUMENT", "not an absolute path"),
        ({"volume_capability": None}, "INVALID_ARGUMENT", "no volume_capability"),
        ({"volume_id": "what"}, "NOT_FOUND", "'what'"),
        ({"volume_context": {"container": "other"}}, "NOT_FOUND", "its attributes other"),
        ({"volume_context": {"iobs": "5"}}, "INVALID_ARGUMENT", "did you mean iops?"),
        ({"volume_capability": capability(fstype="zfs")}, "INVALID_ARGUMENT", "zfs"),
        ({"volume_capability": capability(flags=["remount"])}, "INVALID_ARGUMENT", "mount option remount"),
        ({"volume_capability": capability(flags=["no-such-option"])}, "FAILED_PRECONDITION", "failed"),
        ({"volume_capability": capability("MULTI_NODE_MULTI_WRITER")}, "FAILED_PRECONDITION", "one writer"),
        ({"secrets": {**pod.secrets, "accountname": "other"}}, "UNAUTHENTICATED", "of account other"),
        ({"secrets": {**pod.secrets, "accountkey": "c2VjcmV0"}}, "UNAUTHENTICATED", ""),
        ({"secrets": {"what": "ever"}}, "UNAUTHENTICATED", "unknown key"),
    ):
        with refused(code, says):
            cluster.plugin.call("NodeStageVolume", **{**fields, **change})
        nothing(cluster)
    fields = pod.publish_fields()
    with refused("FAILED_PRECONDITION", "no staging_target_path"):
        cluster.plugin.call("NodePublishVolume", **{**fields, "staging_target_path": ""})
    assert cluster.server.key not in cluster.logs()


def image(kind: str) -> bytes:
    """The beginning of a disk image that blkid does not know."""
    if kind == "VHDX":
        return b"vhdxfile" + bytes(4088)
    if kind == "QCOW2":
        return b"QFI\xfb" + struct.pack(">I", 3) + bytes(4088)
    return dynamic(3) + bytes(3584)


@pytest.mark.parametrize("content", ["VHDX", "QCOW2", "dynamic VHD", "something else"])
def test_a_disk_with_content_is_never_formatted(cluster: Cluster, content: str) -> None:
    pod = cluster.volume(at_publish=True)
    data = b"precious" * 512 if content == "something else" else image(content)
    attached = attachment.attach(
        pod.disk, AttachOptions(endpoint=cluster.server.endpoint, credentials=str(credentials(cluster)))
    )
    with Path(attached.device).open("r+b", buffering=0) as device:
        device.write(data)
    attachment.detach(attached.name)
    before = cluster.blob()["allocated"]
    for call in (pod.stage, pod.publish):
        with refused(
            "FAILED_PRECONDITION", "not formatted" if content == "something else" else "nothing was formatted"
        ):
            call()
        nothing(cluster)
    assert cluster.blob()["allocated"] == before


def credentials(cluster: Cluster) -> Path:
    path = cluster.dirs.root / "account.conf"
    path.write_text(f"account_key = {cluster.server.key}\nendpoint = {cluster.server.endpoint}\n")
    path.chmod(0o600)
    return path


def test_a_blob_that_is_gone_or_taken(cluster: Cluster) -> None:
    pod = cluster.volume()
    cluster.server.remove(cluster.container, "data")
    with refused("NOT_FOUND", "data"):
        pod.stage()
    nothing(cluster)
    taken = cluster.volume("taken")
    conf = str(credentials(cluster))
    held = attachment.attach(taken.disk, AttachOptions(credentials=conf, name="by-hand"))
    with refused("FAILED_PRECONDITION", "attached on this node already, as by-hand", "dyskctl detach by-hand"):
        taken.stage()
    assert cluster.attachments() == ["by-hand"]
    attachment.detach(held.name)


def test_somebody_elses_attachment_of_the_volumes_name_is_left_alone(cluster: Cluster) -> None:
    pod = cluster.volume(at_publish=True)
    pod.up()
    (name,) = cluster.attachments()
    pod.down()
    other = cluster.disk("other")
    attachment.attach(other, AttachOptions(credentials=str(credentials(cluster)), name=name))
    calls: list[Callable[[], object]] = [pod.stage, pod.publish, pod.unpublish, pod.unstage, pod.stats]
    for call in calls:
        with refused("FAILED_PRECONDITION", f"{name} is an attachment of {other}"):
            call()
    assert attachment.get(name).disk == other
    attachment.detach(name)


def test_places_that_cannot_be_mounted_on(cluster: Cluster) -> None:
    pod = cluster.volume(at_publish=True)
    pod.staged.rmdir()
    pod.staged.write_text("a file")
    with refused("FAILED_PRECONDITION", "is not a directory"):
        pod.stage()
    nothing(cluster)
    pod.staged.unlink()
    subprocess.run(["mount", "-t", "tmpfs", "none", pod.staged.parent], check=True)
    pod.staged.mkdir()
    (pod.staged.parent / "pods").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", pod.staged.parent], check=True)
    pod.stage()  # a directory that is there is all it takes
    with refused("FAILED_PRECONDITION", "cannot be made: Read-only file system"):
        pod.publish()
    pod.unstage()
    subprocess.run(["umount", pod.staged.parent], check=True)
    pod.target().parent.mkdir(exist_ok=True)
    pod.staged.mkdir(exist_ok=True)
    pod.target().write_text("a file")
    pod.stage()
    with refused("FAILED_PRECONDITION", "not a directory"):
        pod.publish()
    pod.target().unlink()
    subprocess.run(["mount", "-t", "tmpfs", "none", pod.publish()], check=True)
    with refused("FAILED_PRECONDITION", "something else is mounted"):
        pod.publish()
    with refused("FAILED_PRECONDITION", "another file system"):
        pod.unpublish()
    subprocess.run(["umount", pod.target()], check=True)
    pod.down()


def test_files_below_a_target_are_the_nodes_and_stay(cluster: Cluster) -> None:
    pod = cluster.volume()
    pod.up()
    subprocess.run(["umount", pod.target()], check=True)
    (pod.target() / "file").write_text("the node's")
    with refused("FAILED_PRECONDITION", "there are files of the node's in it"):
        pod.unpublish()
    assert (pod.target() / "file").read_text() == "the node's"
    (pod.target() / "file").unlink()
    pod.down()


def test_a_volume_for_one_workload_is_not_for_two(cluster: Cluster) -> None:
    pod = cluster.volume(how=capability("SINGLE_NODE_SINGLE_WRITER"))
    pod.up()
    pod.publish()
    with refused("FAILED_PRECONDITION", "one workload at a time", str(pod.target())):
        pod.publish("two")
    assert not pod.target("two").exists()
    with refused("ALREADY_EXISTS"):
        pod.publish(readonly=True)
    with refused("FAILED_PRECONDITION", "is still mounted on"):
        pod.unstage()
    pod.down()
    shared = cluster.volume("shared", how=capability("SINGLE_NODE_MULTI_WRITER"))
    shared.up()
    shared.publish("two", readonly=True)
    shared.down("one", "two")


def test_a_call_while_another_is_under_way_is_aborted(cluster: Cluster) -> None:
    pod = cluster.volume()
    cluster.server.configure(latency_ms=300)
    first = cluster.plugin.begin("NodeStageVolume", **pod.stage_fields())
    codes: list[str] = []

    def again() -> None:  # whichever of them is there first has the volume
        while not first.done():
            try:
                pod.stage()
                codes.append("OK")
            except CallFailed as error:
                codes.append(error.code)

    thread = threading.Thread(target=again)
    thread.start()
    with contextlib.suppress(grpc.RpcError):
        first.result()
    codes.append(first.code().name)
    thread.join()
    cluster.server.configure(latency_ms=0)
    assert "ABORTED" in codes and set(codes) <= {"ABORTED", "OK"}
    pod.stage()
    assert mounts_below(cluster.dirs.root).count(str(pod.staged)) == 1
    pod.unstage()


def test_a_call_that_nobody_waits_for_any_more_is_done_all_the_same(cluster: Cluster) -> None:
    pod = cluster.volume()
    cluster.server.configure(latency_ms=200)
    cluster.plugin.begin("NodeStageVolume", **pod.stage_fields()).cancel()
    cluster.server.configure(latency_ms=0)
    while True:
        try:
            pod.stage()
            break
        except CallFailed as error:
            assert error.code == "ABORTED"
    pod.publish()
    pod.down()


def test_stats_of_what_is_not_there(cluster: Cluster) -> None:
    pod = cluster.volume()
    with refused("NOT_FOUND", "is not on this node"):
        pod.stats()
    target = pod.up()
    found = pod.stats()
    by_unit = {int(each.unit): each for each in found.usage}
    seen = os.statvfs(target)
    assert by_unit[1].total == seen.f_blocks * seen.f_frsize > 32 * MIB
    assert by_unit[2].total == seen.f_files and by_unit[2].used == seen.f_files - seen.f_ffree
    assert not found.volume_condition.abnormal and found.volume_condition.message
    with refused("NOT_FOUND", "is not on this node at"):
        cluster.plugin.call("NodeGetVolumeStats", volume_id=pod.disk, volume_path=str(cluster.dirs.root))
    pod.down()


def test_a_reader_of_what_is_written_elsewhere(cluster: Cluster) -> None:
    pod = cluster.volume()
    (pod.up() / "file").write_text("kept")
    pod.down()
    reader = Pod(
        cluster.plugin, cluster.dirs.root / "r", pod.disk, cluster.secrets, how=capability("MULTI_NODE_READER_ONLY")
    )
    target = reader.up()  # readonly is not set, as a kubelet has it for ReadOnlyMany
    assert (target / "file").read_text() == "kept"
    assert cluster.blob()["lease"]["state"] == "available"
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").write_text("changed")
    with refused("ALREADY_EXISTS", "attached read-only on this node"):
        pod.stage()
    reader.down()
