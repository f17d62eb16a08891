"""Which node may have a volume, and how it is taken from one that does not answer; through gRPC."""

from __future__ import annotations

import pytest

from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from tests.kubernetes import ask
from tests.kubernetes.ask import MODE, publish, snapshot, unpublish, volume
from tests.kubernetes.client import Client, refusal
from tests.kubernetes.leases import held_by
from tests.kubernetes.stack import Stack

DATA = b"x" * 512


def test_a_volume_is_published_and_unpublished_again_and_again(drivers: Stack, controller: Client, name: str) -> None:
    made = volume(drivers, controller, name)
    for _ in range(2):
        controller.ControllerPublishVolume(publish(drivers, made.volume_id, volume_context=made.volume_context))
    with held_by("node-1", made.volume_id, drivers.secrets):
        controller.ControllerPublishVolume(publish(drivers, made.volume_id, "node-1"))
    for _ in range(2):
        controller.ControllerUnpublishVolume(unpublish(drivers, made.volume_id))


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        (MODE.SINGLE_NODE_WRITER, "FAILED_PRECONDITION"),
        (MODE.SINGLE_NODE_SINGLE_WRITER, "FAILED_PRECONDITION"),
        (MODE.SINGLE_NODE_MULTI_WRITER, "FAILED_PRECONDITION"),
        (MODE.SINGLE_NODE_READER_ONLY, "FAILED_PRECONDITION"),
        (MODE.MULTI_NODE_READER_ONLY, "FAILED_PRECONDITION"),
        (MODE.MULTI_NODE_SINGLE_WRITER, ""),
        (MODE.MULTI_NODE_MULTI_WRITER, "INVALID_ARGUMENT"),
    ],
)
def test_a_volume_that_another_node_writes_to(
    drivers: Stack, controller: Client, name: str, mode: int, code: str
) -> None:
    made = volume(drivers, controller, name)
    request = publish(drivers, made.volume_id, "node-2", volume_capability=ask.mount(mode))
    with held_by("node-1", made.volume_id, drivers.secrets):
        if not code:
            controller.ControllerPublishVolume(request)
            return
        refused, line = refusal(lambda: controller.ControllerPublishVolume(request))
        assert refused == code
        assert "node-1" in line or code == "INVALID_ARGUMENT"


def test_a_snapshot_is_published_for_reading_only(drivers: Stack, controller: Client, name: str) -> None:
    made = volume(drivers, controller, name)
    taken = controller.CreateSnapshot(snapshot(drivers, made.volume_id, f"{name}-s")).snapshot.snapshot_id
    reading = publish(drivers, taken, volume_capability=ask.mount(MODE.MULTI_NODE_READER_ONLY))
    controller.ControllerPublishVolume(reading)
    controller.ControllerUnpublishVolume(unpublish(drivers, taken))
    assert refusal(lambda: controller.ControllerPublishVolume(publish(drivers, taken)))[0] == "INVALID_ARGUMENT"


def test_publishing_what_cannot_be(drivers: Stack, controller: Client, name: str) -> None:
    made = volume(drivers, controller, name)
    other = {**drivers.secrets, "accountname": "another"}
    for request, code in (
        (publish(drivers, "fake-id"), "NOT_FOUND"),
        (publish(drivers, f"{made.volume_id}-never-was"), "NOT_FOUND"),
        (publish(drivers, ""), "INVALID_ARGUMENT"),
        (publish(drivers, made.volume_id, ""), "INVALID_ARGUMENT"),
        (publish(drivers, made.volume_id, volume_capability=None), "INVALID_ARGUMENT"),
        (publish(drivers, made.volume_id, volume_context={"nonsense": "1"}), "INVALID_ARGUMENT"),
        (publish(drivers, made.volume_id, secrets=other), "UNAUTHENTICATED"),
    ):
        assert refusal(lambda request=request: controller.ControllerPublishVolume(request))[0] == code  # type: ignore[misc]
    controller.ControllerUnpublishVolume(unpublish(drivers, "fake-id"))
    controller.ControllerUnpublishVolume(unpublish(drivers, f"{made.volume_id}-never-was"))
    assert refusal(lambda: controller.ControllerUnpublishVolume(unpublish(drivers, "")))[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("told", ["node-1", ""])
def test_a_node_that_does_not_answer_loses_the_volume_and_can_write_nothing(
    drivers: Stack, controller: Client, name: str, told: str
) -> None:
    made = volume(drivers, controller, name)
    with held_by("node-1", made.volume_id, drivers.secrets) as lost:
        lost.write(0, DATA)
        controller.ControllerUnpublishVolume(unpublish(drivers, made.volume_id, told))
        with held_by("node-2", made.volume_id, drivers.secrets) as next_one:  # at once, without waiting for a lease
            with pytest.raises(DyskError):
                lost.write(0, b"y" * 512)
            assert next_one.read(0, 512) == DATA
            next_one.write(0, b"z" * 512)
            assert next_one.read(0, 512) == b"z" * 512


def test_unpublishing_from_one_node_leaves_another_alone(drivers: Stack, controller: Client, name: str) -> None:
    made = volume(drivers, controller, name)
    with held_by("node-2", made.volume_id, drivers.secrets) as holder:
        controller.ControllerUnpublishVolume(unpublish(drivers, made.volume_id, "node-1"))
        holder.write(0, DATA)
        assert holder.read(0, 512) == DATA


def test_a_static_volume_whose_secret_is_for_the_node_alone_is_left_to_it(
    drivers: Stack, controller: Client, name: str
) -> None:
    """As the original's: nodePublishSecretRef, and volumeAttributes with container and blob."""
    foreign = "anotheraccount/disks/data.vhd"
    context = {"container": "disks", "blob": "data.vhd"}
    request = pb.ControllerPublishVolumeRequest(
        volume_id=foreign, node_id="node-1", volume_capability=ask.mount(), volume_context=context
    )
    controller.ControllerPublishVolume(request)
    controller.ControllerUnpublishVolume(pb.ControllerUnpublishVolumeRequest(volume_id=foreign, node_id="node-1"))


def test_a_service_that_does_not_answer_is_unavailable(drivers: Stack, controller: Client, name: str) -> None:
    made = volume(drivers, controller, name)
    fault = drivers.server.fault("error", operation="any", blob=f"volumes/{name}", status=503)
    try:
        code, line = refusal(lambda: controller.ControllerPublishVolume(publish(drivers, made.volume_id)))
        assert code == "UNAVAILABLE"
        assert "Traceback" not in line
    finally:
        drivers.server.clear_faults(fault)
    controller.ControllerPublishVolume(publish(drivers, made.volume_id))
