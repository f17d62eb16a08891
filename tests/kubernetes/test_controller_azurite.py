"""The controller against Azurite: another service's answers to the same requests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.testing.azurite import Azurite
from tests.kubernetes import ask
from tests.kubernetes.ask import MIB, create, delete, expand, publish, snapshot, unpublish, volume
from tests.kubernetes.client import Client, refusal
from tests.kubernetes.leases import held_by, written
from tests.kubernetes.stack import Stack, stack_on


@pytest.fixture
def drivers(azurite: Azurite) -> Iterator[Stack]:
    with stack_on(azurite, container=f"t-{uuid.uuid4().hex[:12]}") as made:
        yield made


@pytest.fixture
def controller(drivers: Stack) -> Iterator[Client]:
    client = drivers.controller().client()
    yield client
    client.close()


def test_the_life_of_a_volume(drivers: Stack, controller: Client) -> None:
    made = volume(drivers, controller, "pvc-1", parameters={"vhd": "true"})
    assert volume(drivers, controller, "pvc-1", parameters={"vhd": "true"}) == made
    controller.ControllerPublishVolume(publish(drivers, made.volume_id))
    written(made.volume_id, drivers.secrets, (MIB, b"x" * 512))
    taken = controller.CreateSnapshot(snapshot(drivers, made.volume_id, "snapshot-1")).snapshot
    assert controller.CreateSnapshot(snapshot(drivers, made.volume_id, "snapshot-1")).snapshot == taken
    listed = controller.ListSnapshots(pb.ListSnapshotsRequest(secrets=drivers.secrets))
    assert [entry.snapshot for entry in listed.entries] == [taken]
    copy = volume(drivers, controller, "pvc-2", 128 * MIB, volume_content_source=ask.from_snapshot(taken.snapshot_id))
    with held_by("node-2", copy.volume_id, drivers.secrets) as holder:
        assert holder.read(MIB, 512) == b"x" * 512
    grown = controller.ControllerExpandVolume(expand(drivers, made.volume_id, 256 * MIB))
    assert grown.capacity_bytes == 256 * MIB
    volumes = controller.ListVolumes(pb.ListVolumesRequest()).entries
    assert {entry.volume.volume_id: entry.volume.capacity_bytes for entry in volumes} == {
        made.volume_id: 256 * MIB,
        copy.volume_id: 128 * MIB,
    }
    controller.ControllerModifyVolume(ask.modify(drivers, made.volume_id, iops="100"))
    answer = controller.ControllerPublishVolume(publish(drivers, made.volume_id))
    assert dict(answer.publish_context) == {"dysk_set_iops": "100"}
    controller.ControllerUnpublishVolume(unpublish(drivers, made.volume_id))
    controller.DeleteVolume(delete(drivers, made.volume_id))
    dropped = pb.DeleteSnapshotRequest(snapshot_id=taken.snapshot_id, secrets=drivers.secrets)
    controller.DeleteSnapshot(dropped)
    controller.DeleteVolume(delete(drivers, copy.volume_id))
    assert not controller.ListVolumes(pb.ListVolumesRequest()).entries


def test_what_azurite_cannot_tell_is_refused_and_not_trusted(drivers: Stack, controller: Client) -> None:
    """It ignores what changes are asked for since."""
    made = volume(drivers, controller, "pvc-3")
    one = controller.CreateSnapshot(snapshot(drivers, made.volume_id, "one")).snapshot.snapshot_id
    written(made.volume_id, drivers.secrets, (MIB, b"x" * 512))
    two = controller.CreateSnapshot(snapshot(drivers, made.volume_id, "two")).snapshot.snapshot_id
    allocated = pb.GetMetadataAllocatedRequest(snapshot_id=two, secrets=drivers.secrets)
    (answer,) = controller.GetMetadataAllocated(allocated)
    assert [(block.byte_offset, block.size_bytes) for block in answer.block_metadata] == [(MIB, 512)]
    delta = pb.GetMetadataDeltaRequest(base_snapshot_id=one, target_snapshot_id=two, secrets=drivers.secrets)
    code, line = refusal(lambda: controller.GetMetadataDelta(delta))
    assert (code, "Azurite" in line) == ("FAILED_PRECONDITION", True)


def test_a_node_that_does_not_answer_is_fenced(drivers: Stack, controller: Client) -> None:
    made = volume(drivers, controller, "pvc-4")
    with held_by("node-1", made.volume_id, drivers.secrets):
        code, _ = refusal(lambda: controller.ControllerPublishVolume(publish(drivers, made.volume_id, "node-2")))
        assert code == "FAILED_PRECONDITION"
        controller.ControllerUnpublishVolume(unpublish(drivers, made.volume_id, "node-1"))
        controller.ControllerPublishVolume(publish(drivers, made.volume_id, "node-2"))
        with held_by("node-2", made.volume_id, drivers.secrets):
            pass
    assert refusal(lambda: controller.CreateVolume(create(drivers, "pvc-4", 999 * MIB)))[0] == "ALREADY_EXISTS"
