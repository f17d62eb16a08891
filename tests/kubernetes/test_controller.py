"""Controller calls that make, delete, list, grow and change volumes; by gRPC, of a controller in its own process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from azure.storage.blob import BlobClient

from blobfuse_dysk.azure.marks import INCOMPLETE
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.create import create_disk
from blobfuse_dysk.disks.look import get_disk
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.volume import volume_address, with_secret
from blobfuse_dysk.testing import PageBlobServer
from tests.kubernetes import ask
from tests.kubernetes.ask import GIB, MIB, MODE, create, delete, volume
from tests.kubernetes.client import Client, refusal
from tests.kubernetes.leases import held_by, written
from tests.kubernetes.stack import Stack
from tests.polling import eventually

ACCOUNT = PageBlobServer().account


def listed(controller: Client, **more: Any) -> list[str]:
    answer = controller.ListVolumes(pb.ListVolumesRequest(**more))
    return [entry.volume.volume_id for entry in answer.entries]


def test_a_volume_is_made_found_again_and_deleted(drivers: Stack, controller: Client, name: str) -> None:
    made = volume(drivers, controller, name, 100 * MIB + 1)
    assert made.capacity_bytes == 101 * MIB
    assert made.volume_id == f"{drivers.server.account}/volumes/{name}"
    assert dict(made.volume_context) == {"container": "volumes", "blob": name}
    assert volume(drivers, controller, name, 100 * MIB + 1) == made
    assert made.volume_id in listed(controller)
    controller.DeleteVolume(delete(drivers, made.volume_id))
    controller.DeleteVolume(delete(drivers, made.volume_id))
    assert made.volume_id not in listed(controller)


def test_what_a_class_says_becomes_of_a_volume(drivers: Stack, controller: Client, name: str) -> None:
    parameters = {
        "blobPrefix": "prod/",
        "cachingMode": "None",
        "fsType": "xfs",
        "iops": "500",
        "ioTimeout": "10m",
        "vhd": "true",
        "csiProvisionerSecretName": "dysk",
        "csi.storage.k8s.io/pvc/name": "data",
    }
    made = volume(drivers, controller, name, parameters=parameters, mutable_parameters={"iops": "700"})
    assert made.volume_id.endswith(f"/volumes/prod/{name}")
    assert dict(made.volume_context) == {
        "container": "volumes",
        "blob": f"prod/{name}",
        "cachingMode": "none",
        "fsType": "xfs",
        "iops": "700",
        "ioTimeout": "10m",
        "vhd": "true",
    }
    disk, options = with_secret(volume_address(made.volume_id), drivers.secrets)
    found = get_disk(disk, options)
    assert found.vhd
    assert found.size == made.capacity_bytes == 64 * MIB


def test_the_same_name_for_something_else_exists_already(
    drivers: Stack, controller: Client, names: Callable[[], str]
) -> None:
    name, other = names(), names()
    made = volume(drivers, controller, name)
    source = ask.from_volume(volume(drivers, controller, other).volume_id)
    smaller = pb.CapacityRange(required_bytes=MIB, limit_bytes=32 * MIB)
    for request in (
        create(drivers, name, 128 * MIB),
        create(drivers, name, capacity_range=smaller),
        create(drivers, name, parameters={"vhd": "true"}),
        create(drivers, name, volume_content_source=source),
    ):
        code, line = refusal(lambda request=request: controller.CreateVolume(request))  # type: ignore[misc]
        assert (code, made.volume_id in line) == ("ALREADY_EXISTS", True)


def test_a_disk_of_somebody_else_is_not_taken_for_a_volume(drivers: Stack, controller: Client, name: str) -> None:
    disk, options = with_secret(volume_address(f"{drivers.server.account}/volumes/{name}"), drivers.secrets)
    create_disk(disk, 64 * MIB, options)
    code, line = refusal(lambda: controller.CreateVolume(create(drivers, name)))
    assert code == "ALREADY_EXISTS"
    assert "was not made by this driver" in line


@pytest.mark.parametrize("data", [b"", b"x" * 512])
def test_a_vhd_whose_maker_was_killed_before_the_footer_is_made_again_unless_it_has_data(
    drivers: Stack, controller: Client, name: str, data: bytes
) -> None:
    disk, options = with_secret(volume_address(f"{ACCOUNT}/volumes/{name}"), drivers.secrets)
    create_disk(disk, 64 * MIB + 512, options, metadata={"dysk_volume": name})
    if data:
        written(disk.key, drivers.secrets, (MIB, data))
    request = create(drivers, name, parameters={"vhd": "true"})
    if data:
        assert refusal(lambda: controller.CreateVolume(request))[0] == "ALREADY_EXISTS"
        assert get_disk(disk, options, allocated=True).allocated == 512
        return
    assert controller.CreateVolume(request).volume.capacity_bytes == 64 * MIB
    assert get_disk(disk, options).vhd


@pytest.mark.parametrize("operation", ["put_blob", "put_page"])
def test_a_driver_that_is_killed_while_it_makes_a_volume_leaves_what_the_next_one_finishes(
    drivers: Stack, controller: Client, name: str, operation: str
) -> None:
    request = create(drivers, name, parameters={"vhd": "true"})
    first = drivers.controller()
    fault = drivers.server.fault("delay", operation=operation, blob=f"volumes/{name}", times=1)
    call = first.client().future("CreateVolume", request)
    eventually(lambda: any(each["hits"] for each in drivers.server.faults() if each["id"] == fault))
    first.kill()
    assert refusal(call.result)[0] == "UNAVAILABLE"
    drivers.server.release()
    eventually(lambda: id_or_code(controller, request) == f"{ACCOUNT}/volumes/{name}")
    disk, options = with_secret(volume_address(f"{ACCOUNT}/volumes/{name}"), drivers.secrets)
    found = get_disk(disk, options)
    assert (found.vhd, found.size) == (True, 64 * MIB)


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ({"name": ""}, "INVALID_ARGUMENT", "no name"),
        ({"name": "x" * 129}, "INVALID_ARGUMENT", "129 bytes"),
        ({"volume_capabilities": []}, "INVALID_ARGUMENT", "no volume_capabilities"),
        (
            {"volume_capabilities": [ask.mount(MODE.MULTI_NODE_MULTI_WRITER)]},
            "INVALID_ARGUMENT",
            "one writer at a time",
        ),
        ({"volume_capabilities": [ask.mount(fs_type="zfs")]}, "INVALID_ARGUMENT", "'zfs' is not known"),
        ({"capacity_range": pb.CapacityRange(required_bytes=9 << 40)}, "OUT_OF_RANGE", "at most 8TiB"),
        ({"capacity_range": pb.CapacityRange(required_bytes=-1)}, "INVALID_ARGUMENT", "negative"),
        ({"capacity_range": pb.CapacityRange(required_bytes=9, limit_bytes=8)}, "OUT_OF_RANGE", "below required_bytes"),
        ({"parameters": {"cacheMode": "x"}}, "INVALID_ARGUMENT", "did you mean cachingMode?"),
        ({"parameters": {"tier": "P30"}}, "INVALID_ARGUMENT", "no tiers"),
        ({"mutable_parameters": {"fsType": "xfs"}}, "INVALID_ARGUMENT", "cannot be changed"),
        (
            {"secrets": {"accountname": "devstoreaccount1"}, "parameters": {"account": "another"}},
            "UNAUTHENTICATED",
            "is of account",
        ),
        ({"secrets": {"password": "secret"}}, "UNAUTHENTICATED", "unknown key"),
        (
            {"secrets": {"accountname": "devstoreaccount1", "accountkey": "not base64!"}},
            "UNAUTHENTICATED",
            "not base64",
        ),
        ({"volume_content_source": ask.from_volume("fake-vol-id")}, "NOT_FOUND", "fake-vol-id"),
        ({"volume_content_source": ask.from_snapshot("fake-id")}, "NOT_FOUND", "fake-id"),
        ({"volume_content_source": pb.VolumeContentSource()}, "INVALID_ARGUMENT", "neither"),
    ],
)
def test_a_volume_that_cannot_be_is_refused_and_nothing_is_made(
    drivers: Stack, controller: Client, name: str, change: dict[str, Any], code: str, told: str
) -> None:
    request = create(drivers, **{"name": name, **change})
    refused, line = refusal(lambda: controller.CreateVolume(request))
    assert (refused, told in line, "\n" in line) == (code, True, False), line
    assert not [each for each in listed(controller) if each.endswith(f"/{name}")]


def test_a_wrong_key_is_told_and_shows_in_no_log(drivers: Stack, controller: Client, name: str) -> None:
    wrong = {**drivers.secrets, "accountkey": "d3Jvbmcga2V5IHRoYXQgaXMgbm90IHRoZSBvbmU="}
    code, line = refusal(lambda: controller.CreateVolume(create(drivers, name, secrets=wrong)))
    assert code in ("UNAUTHENTICATED", "PERMISSION_DENIED")
    logged = drivers.drivers[0].log.read_text()
    for secret in (wrong["accountkey"], drivers.server.key):
        assert secret not in line
        assert secret not in logged
    assert "Traceback" not in logged


def test_a_volume_without_a_wish_for_its_size(drivers: Stack, controller: Client, name: str) -> None:
    assert volume(drivers, controller, name, capacity_range=None).capacity_bytes == GIB


@pytest.mark.parametrize("title", ["x" * 128, "a b/c", "ü" * 64])
def test_names_of_all_kinds(drivers: Stack, controller: Client, title: str) -> None:
    made = volume(drivers, controller, title)
    assert volume(drivers, controller, title) == made
    controller.DeleteVolume(delete(drivers, made.volume_id))


def test_the_same_volume_asked_for_many_times_at_once_is_made_once(
    drivers: Stack, controller: Client, name: str
) -> None:
    with ThreadPoolExecutor(8) as several:
        calls = [several.submit(id_or_code, controller, create(drivers, name)) for _ in range(8)]
    told = {call.result() for call in calls}
    assert told <= {"ABORTED", f"{drivers.server.account}/volumes/{name}"}
    assert f"{drivers.server.account}/volumes/{name}" in told
    assert listed(controller).count(f"{drivers.server.account}/volumes/{name}") == 1


def id_or_code(controller: Client, request: pb.CreateVolumeRequest) -> str:
    """The id of the volume that was made, or the code of the refusal."""
    try:
        return str(controller.CreateVolume(request).volume.volume_id)
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return str(error.code().name)


def test_a_call_that_is_cancelled_leaves_what_the_next_one_finds(drivers: Stack, controller: Client, name: str) -> None:
    fault = drivers.server.fault("delay", operation="put_blob", blob=f"volumes/{name}", times=1)
    call = controller.future("CreateVolume", create(drivers, name))
    eventually(lambda: any(each["hits"] for each in drivers.server.faults() if each["id"] == fault))
    call.cancel()
    assert refusal(lambda: controller.CreateVolume(create(drivers, name)))[0] == "ABORTED"
    drivers.server.release()
    eventually(lambda: id_or_code(controller, create(drivers, name)) == f"{drivers.server.account}/volumes/{name}")


@pytest.mark.parametrize("volume_id", ["fake-vol-id", f"{ACCOUNT}/volumes/never-was", f"{ACCOUNT}/nowhere/x"])
def test_deleting_what_is_not_there_is_no_error(drivers: Stack, controller: Client, volume_id: str) -> None:
    controller.DeleteVolume(delete(drivers, volume_id))


def test_a_volume_in_use_is_not_deleted(drivers: Stack, controller: Client, name: str) -> None:
    made = volume(drivers, controller, name)
    with held_by("node-7", made.volume_id, drivers.secrets):
        code, line = refusal(lambda: controller.DeleteVolume(delete(drivers, made.volume_id)))
        assert code == "FAILED_PRECONDITION"
        assert "node-7" in line
        assert "--break-lease" not in line
    controller.DeleteVolume(delete(drivers, made.volume_id))


def test_lists_come_in_pieces_with_the_node_that_has_a_volume(
    drivers: Stack, controller: Client, names: Callable[[], str]
) -> None:
    made = [volume(drivers, controller, names()).volume_id for _ in range(3)]
    seen: list[str] = []
    token = ""
    while True:
        answer = controller.ListVolumes(pb.ListVolumesRequest(max_entries=2, starting_token=token))
        assert len(answer.entries) <= 2
        seen += [entry.volume.volume_id for entry in answer.entries]
        token = answer.next_token
        if not token:
            break
    assert len(seen) == len(set(seen))
    assert set(made) <= set(seen)
    with held_by("node-7", made[0], drivers.secrets):
        entries = controller.ListVolumes(pb.ListVolumesRequest()).entries
        nodes = {entry.volume.volume_id: list(entry.status.published_node_ids) for entry in entries}
        assert (nodes[made[0]], nodes[made[1]]) == (["node-7"], [])
        got = controller.ControllerGetVolume(pb.ControllerGetVolumeRequest(volume_id=made[0]))
        assert list(got.status.published_node_ids) == ["node-7"]
        assert not got.status.volume_condition.abnormal
    code, _ = refusal(lambda: controller.ListVolumes(pb.ListVolumesRequest(starting_token="invalid-token")))
    assert code == "ABORTED"


def test_capabilities_are_looked_at(drivers: Stack, controller: Client, name: str) -> None:
    made = volume(drivers, controller, name)

    def validated(volume_id: str, *capabilities: pb.VolumeCapability, **more: Any) -> Any:
        return controller.ValidateVolumeCapabilities(
            pb.ValidateVolumeCapabilitiesRequest(
                volume_id=volume_id, volume_capabilities=capabilities, secrets=drivers.secrets, **more
            )
        )

    good = [ask.mount(), ask.block(MODE.SINGLE_NODE_MULTI_WRITER), ask.mount(MODE.MULTI_NODE_READER_ONLY)]
    context = dict(made.volume_context)
    answer = validated(made.volume_id, *good, volume_context=context)
    assert list(answer.confirmed.volume_capabilities) == good
    assert dict(answer.confirmed.volume_context) == context
    answer = validated(made.volume_id, ask.mount(), ask.mount(MODE.MULTI_NODE_MULTI_WRITER))
    assert not answer.HasField("confirmed")
    assert "one writer at a time" in answer.message
    assert refusal(lambda: validated("fake-id", ask.mount()))[0] == "NOT_FOUND"
    assert refusal(lambda: validated(made.volume_id))[0] == "INVALID_ARGUMENT"


def test_the_health_of_a_volume(drivers: Stack, controller: Client, name: str) -> None:
    made = volume(drivers, controller, name)
    asked = pb.ControllerGetVolumeHealthRequest(volume_id=made.volume_id, secrets=drivers.secrets)
    assert not controller.ControllerGetVolumeHealth(asked).volume_health.health_statuses
    half = DiskAddress.parse(f"{drivers.server.account}/volumes/{name}-half")
    disk, options = with_secret(half, drivers.secrets)
    create_disk(disk, MIB, options)
    with BlobClient.from_connection_string(drivers.server.connection_string, "volumes", f"{name}-half") as blob:
        blob.set_blob_metadata({INCOMPLETE: "mystore/disks/data"})
    entries = controller.ControllerListVolumeHealth(pb.ControllerListVolumeHealthRequest()).entries
    assert [(each.volume_id, each.health_statuses[0].reason) for each in entries] == [(half.key, "CloneIncomplete")]
    got = controller.ControllerGetVolume(pb.ControllerGetVolumeRequest(volume_id=half.key))
    assert got.status.volume_condition.abnormal
    code, _ = refusal(lambda: controller.ControllerPublishVolume(ask.publish(drivers, half.key)))
    assert code == "FAILED_PRECONDITION"


def capabilities(controller: Client) -> set[int]:
    answer = controller.ControllerGetCapabilities(pb.ControllerGetCapabilitiesRequest())
    return {each.rpc.type for each in answer.capabilities}


def test_what_is_claimed_is_there_and_alpha_only_if_it_is_asked_for(drivers: Stack, controller: Client) -> None:
    rpc = pb.ControllerServiceCapability.RPC
    claimed = {
        each.rpc.type
        for each in controller.ControllerGetCapabilities(pb.ControllerGetCapabilitiesRequest()).capabilities
    }
    assert {rpc.LIST_VOLUMES, rpc.MODIFY_VOLUME, rpc.CLONE_VOLUME} <= claimed
    assert not {rpc.GET_CAPACITY, rpc.GET_SNAPSHOT, rpc.GET_VOLUME_HEALTH, rpc.PUBLISH_READONLY} & claimed
    assert refusal(lambda: controller.GetCapacity(pb.GetCapacityRequest()))[0] == "UNIMPLEMENTED"
    driver = drivers.start("controller", "--alpha")
    client = driver.client()
    claimed = {
        each.rpc.type for each in client.ControllerGetCapabilities(pb.ControllerGetCapabilitiesRequest()).capabilities
    }
    assert {rpc.GET_SNAPSHOT, rpc.GET_VOLUME_HEALTH} <= claimed
    assert not {rpc.LIST_VOLUMES, rpc.LIST_SNAPSHOTS, rpc.GET_VOLUME} & claimed  # without a container to list
    client.close()
    assert driver.end() == 0
