"""Controller calls that change volumes: their size, their settings, their tier; by gRPC."""

from __future__ import annotations

import pytest

from blobfuse_dysk.disks.look import get_disk
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.parameters import Parameters
from blobfuse_dysk.kubernetes.settings import read_settings
from blobfuse_dysk.kubernetes.volume import volume_address, with_secret
from tests.kubernetes import ask
from tests.kubernetes.ask import GIB, MIB, create, delete, expand, volume
from tests.kubernetes.client import Client, refusal
from tests.kubernetes.leases import held_by
from tests.kubernetes.stack import Stack, stack


def test_a_volume_grows_where_it_lies_and_at_its_node_while_that_has_it(
    drivers: Stack, controller: Client, name: str
) -> None:
    made = volume(drivers, controller, name)
    disk, options = with_secret(volume_address(made.volume_id), drivers.secrets)
    grown = controller.ControllerExpandVolume(expand(drivers, made.volume_id, 128 * MIB))
    assert (grown.capacity_bytes, grown.node_expansion_required) == (128 * MIB, True)
    assert get_disk(disk, options).size == 128 * MIB
    again = controller.ControllerExpandVolume(expand(drivers, made.volume_id, 100 * MIB))
    assert again.capacity_bytes == 128 * MIB
    raw = controller.ControllerExpandVolume(expand(drivers, made.volume_id, 192 * MIB, volume_capability=ask.block()))
    assert (raw.capacity_bytes, raw.node_expansion_required) == (192 * MIB, False)
    with held_by("node-7", made.volume_id, drivers.secrets):
        later = controller.ControllerExpandVolume(
            expand(drivers, made.volume_id, 256 * MIB, volume_capability=ask.block())
        )
        assert (later.capacity_bytes, later.node_expansion_required) == (256 * MIB, True)
        assert get_disk(disk, options).size == 192 * MIB


def test_sizes_that_a_volume_cannot_have(drivers: Stack, controller: Client, name: str) -> None:
    made = volume(drivers, controller, name)
    for capacity, code in (
        (pb.CapacityRange(required_bytes=9 << 40), "OUT_OF_RANGE"),
        (pb.CapacityRange(limit_bytes=32 * MIB), "OUT_OF_RANGE"),
        (None, "INVALID_ARGUMENT"),
    ):
        request = expand(drivers, made.volume_id, 0, capacity_range=capacity)
        assert refusal(lambda request=request: controller.ControllerExpandVolume(request))[0] == code  # type: ignore[misc]
    assert refusal(lambda: controller.ControllerExpandVolume(expand(drivers, "fake-id", GIB)))[0] == "NOT_FOUND"


def test_settings_change_also_while_a_node_has_the_volume(drivers: Stack, controller: Client, name: str) -> None:
    made = volume(drivers, controller, name, parameters={"iops": "100"})

    def at_node() -> Parameters:
        """As NodeStageVolume hears it."""
        answer = controller.ControllerPublishVolume(ask.publish(drivers, made.volume_id, "node-7"))
        return Parameters.read(made.volume_context).with_settings(answer.publish_context)

    assert at_node() == Parameters.read(made.volume_context)
    controller.ControllerModifyVolume(ask.modify(drivers, made.volume_id, iops="200", cachingMode="ReadOnly"))
    with held_by("node-7", made.volume_id, drivers.secrets):
        controller.ControllerModifyVolume(ask.modify(drivers, made.volume_id, iops="300"))
        assert (at_node().options().iops, at_node().options().cache) == (300, "readonly")
    listed = controller.ListVolumes(pb.ListVolumesRequest()).entries
    assert not [each for each in listed if "settings" in each.volume.volume_id]
    controller.DeleteVolume(delete(drivers, made.volume_id))
    volume(drivers, controller, name, parameters={"iops": "100"})
    assert at_node() == Parameters.read(made.volume_context)


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"XXX_FakeKey": "x"}, "INVALID_ARGUMENT"),
        ({"container": "disks"}, "INVALID_ARGUMENT"),
        ({"iops": "none at all"}, "INVALID_ARGUMENT"),
        ({"tier": "P30"}, "INVALID_ARGUMENT"),
    ],
)
def test_settings_that_cannot_be_change_nothing(
    drivers: Stack, controller: Client, name: str, parameters: dict[str, str], code: str
) -> None:
    made = volume(drivers, controller, name)
    request = ask.modify(drivers, made.volume_id, **parameters, mbps="5")
    assert refusal(lambda: controller.ControllerModifyVolume(request))[0] == code
    disk, options = with_secret(volume_address(made.volume_id), drivers.secrets)
    assert read_settings(disk, options) == {}


def test_the_tier_of_a_volume_in_a_premium_account(name: str) -> None:
    with stack(sku="Premium_LRS") as premium:
        controller = premium.controller().client()
        made = volume(premium, controller, name, parameters={"tier": "P10"})
        disk, options = with_secret(volume_address(made.volume_id), premium.secrets)
        assert get_disk(disk, options).tier == "P10"
        with held_by("node-7", made.volume_id, premium.secrets):
            controller.ControllerModifyVolume(ask.modify(premium, made.volume_id, tier="P30"))
            controller.ControllerModifyVolume(ask.modify(premium, made.volume_id, tier="P30"))
        assert get_disk(disk, options).tier == "P30"
        lower = ask.modify(premium, made.volume_id, tier="P4", iops="5")
        assert refusal(lambda: controller.ControllerModifyVolume(lower))[0] == "INVALID_ARGUMENT"
        assert read_settings(disk, options) == {}
        small = create(premium, f"{name}-small", 64 << 30, parameters={"tier": "P4"})
        assert refusal(lambda: controller.CreateVolume(small))[0] == "INVALID_ARGUMENT"
        controller.close()
