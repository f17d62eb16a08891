"""Snapshots and copies of volumes, what outlives a volume, and the ranges that a backup reads; through gRPC."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from blobfuse_dysk.disks.look import get_disk
from blobfuse_dysk.errors import NotFoundError
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.volume import volume_address, with_secret
from tests.kubernetes import ask
from tests.kubernetes.ask import GIB, MIB, create, delete, snapshot, volume
from tests.kubernetes.client import Client, refusal
from tests.kubernetes.leases import held_by, written
from tests.kubernetes.stack import Stack
from tests.polling import eventually

Names = Callable[[], str]
ONE, TWO = b"1" * 4096, b"2" * 4096


def taken(drivers: Stack, controller: Client, volume_id: str, name: str) -> pb.Snapshot:
    made = controller.CreateSnapshot(snapshot(drivers, volume_id, name)).snapshot
    assert isinstance(made, pb.Snapshot)
    return made


def dropped(drivers: Stack, snapshot_id: str) -> pb.DeleteSnapshotRequest:
    return pb.DeleteSnapshotRequest(snapshot_id=snapshot_id, secrets=drivers.secrets)


def listed(drivers: Stack, controller: Client, **more: Any) -> list[str]:
    answer = controller.ListSnapshots(pb.ListSnapshotsRequest(secrets=drivers.secrets, **more))
    return [entry.snapshot.snapshot_id for entry in answer.entries]


def content(drivers: Stack, volume_id: str, offset: int, length: int) -> bytes:
    """What is in a volume that nobody has."""
    with held_by("reader", volume_id, drivers.secrets) as holder:
        return holder.read(offset, length)


def test_a_snapshot_is_made_found_again_listed_and_deleted(drivers: Stack, controller: Client, names: Names) -> None:
    made = volume(drivers, controller, names())
    name = names()
    first = taken(drivers, controller, made.volume_id, name)
    assert (first.source_volume_id, first.size_bytes, first.ready_to_use) == (made.volume_id, 64 * MIB, True)
    assert first.creation_time.seconds > 1_700_000_000
    assert taken(drivers, controller, made.volume_id, name) == first
    second = taken(drivers, controller, made.volume_id, "x" * 128)
    assert listed(drivers, controller, source_volume_id=made.volume_id) == [first.snapshot_id, second.snapshot_id]
    assert listed(drivers, controller, snapshot_id=first.snapshot_id) == [first.snapshot_id]
    got = controller.GetSnapshot(pb.GetSnapshotRequest(snapshot_id=first.snapshot_id, secrets=drivers.secrets))
    assert got.snapshot == first
    for _ in range(2):
        controller.DeleteSnapshot(dropped(drivers, first.snapshot_id))
    assert listed(drivers, controller, snapshot_id=first.snapshot_id) == []
    assert listed(drivers, controller, source_volume_id=made.volume_id) == [second.snapshot_id]
    controller.DeleteSnapshot(dropped(drivers, second.snapshot_id))
    controller.ControllerPublishVolume(ask.publish(drivers, made.volume_id))  # the volume is still there


def test_snapshots_of_a_volume_that_a_node_has(drivers: Stack, controller: Client, names: Names) -> None:
    made = volume(drivers, controller, names())
    with held_by("node-7", made.volume_id, drivers.secrets) as holder:
        holder.write(0, ONE)
        first = taken(drivers, controller, made.volume_id, names())
        holder.write(0, TWO)
    copy = volume(drivers, controller, names(), volume_content_source=ask.from_snapshot(first.snapshot_id))
    assert content(drivers, copy.volume_id, 0, 4096) == ONE
    assert content(drivers, made.volume_id, 0, 4096) == TWO


def test_a_snapshot_of_this_name_of_another_volume_exists_already(
    drivers: Stack, controller: Client, names: Names
) -> None:
    one, other = (volume(drivers, controller, names()) for _ in range(2))
    name = names()
    taken(drivers, controller, one.volume_id, name)
    code, line = refusal(lambda: controller.CreateSnapshot(snapshot(drivers, other.volume_id, name)))
    assert (code, one.volume_id in line) == ("ALREADY_EXISTS", True)


def test_a_snapshot_of_kubernetes_name_is_asked_of_its_own_volume_alone(
    drivers: Stack, controller: Client, names: Names
) -> None:
    """external-snapshotter calls it after the UID of its object, which no other has: the container is not searched."""
    other, made = (volume(drivers, controller, names()) for _ in range(2))
    for _ in range(3):
        taken(drivers, controller, other.volume_id, names())
    name = f"snapshot-{uuid.uuid4()}"
    drivers.server.reset_stats()
    first = taken(drivers, controller, made.volume_id, name)
    assert drivers.server.stats()["requests"] == {
        "get_blob_properties": 2,  # whether the volume is there, and how it is at that moment
        "get_blob": 1,  # whether it is a VHD
        "list_blobs": 1,
        "snapshot_blob": 1,
    }
    drivers.server.reset_stats()
    assert taken(drivers, controller, made.volume_id, name) == first, "the call is repeated"
    assert drivers.server.stats()["requests"] == {"get_blob_properties": 1, "get_blob": 1, "list_blobs": 1}


def test_snapshots_that_cannot_be(drivers: Stack, controller: Client, names: Names) -> None:
    made = volume(drivers, controller, names())
    for request, code in (
        (snapshot(drivers, made.volume_id, ""), "INVALID_ARGUMENT"),
        (snapshot(drivers, "", names()), "INVALID_ARGUMENT"),
        (snapshot(drivers, "fake-id", names()), "NOT_FOUND"),
        (snapshot(drivers, f"{made.volume_id}-never-was", names()), "NOT_FOUND"),
        (
            pb.CreateSnapshotRequest(
                source_volume_id=made.volume_id, name=names(), secrets=drivers.secrets, parameters={"incremental": "x"}
            ),
            "INVALID_ARGUMENT",
        ),
    ):
        assert refusal(lambda request=request: controller.CreateSnapshot(request))[0] == code  # type: ignore[misc]
    controller.DeleteSnapshot(dropped(drivers, "fake-id"))
    gone = f"{made.volume_id}?snapshot=2026-01-31T12:00:00.0000000Z"
    controller.DeleteSnapshot(dropped(drivers, gone))
    asked = pb.GetSnapshotRequest(snapshot_id=gone, secrets=drivers.secrets)
    assert refusal(lambda: controller.GetSnapshot(asked))[0] == "NOT_FOUND"
    assert listed(drivers, controller, snapshot_id=gone) == []
    assert listed(drivers, controller, source_volume_id="fake-id") == []


def test_lists_of_snapshots_come_in_pieces(drivers: Stack, controller: Client, names: Names) -> None:
    made = [volume(drivers, controller, names()) for _ in range(2)]
    own = [taken(drivers, controller, made[number % 2].volume_id, names()).snapshot_id for number in range(5)]
    every = listed(drivers, controller)
    assert set(own) <= set(every)
    for wanted, expected in (("", every), (made[0].volume_id, own[0::2])):
        seen: list[str] = []
        token = ""
        while True:
            request = pb.ListSnapshotsRequest(
                max_entries=2, starting_token=token, source_volume_id=wanted, secrets=drivers.secrets
            )
            answer = controller.ListSnapshots(request)
            seen += [entry.snapshot.snapshot_id for entry in answer.entries]
            token = answer.next_token
            assert len(answer.entries) == 2 or not token
            if not token:
                break
        assert seen == expected
    for wanted in ("", made[0].volume_id):
        request = pb.ListSnapshotsRequest(starting_token="not ours", source_volume_id=wanted, secrets=drivers.secrets)
        assert refusal(lambda request=request: controller.ListSnapshots(request))[0] == "ABORTED"  # type: ignore[misc]


def test_a_volume_from_a_snapshot_has_its_bytes_and_may_be_larger(
    drivers: Stack, controller: Client, names: Names
) -> None:
    made = volume(drivers, controller, names())
    written(made.volume_id, drivers.secrets, (0, ONE), (32 * MIB, TWO))
    first = taken(drivers, controller, made.volume_id, names())
    source = ask.from_snapshot(first.snapshot_id)
    name = names()
    copy = volume(drivers, controller, name, 128 * MIB, volume_content_source=source)
    assert copy.capacity_bytes == 128 * MIB
    assert copy.content_source == source
    assert content(drivers, copy.volume_id, 32 * MIB, 4096) == TWO
    assert content(drivers, copy.volume_id, 64 * MIB, 4096) == bytes(4096)
    assert volume(drivers, controller, name, 128 * MIB, volume_content_source=source) == copy
    code, _ = refusal(lambda: controller.CreateVolume(create(drivers, name, 128 * MIB)))
    assert code == "ALREADY_EXISTS"
    same = volume(drivers, controller, names(), capacity_range=None, volume_content_source=source)
    assert same.capacity_bytes == 64 * MIB
    small = create(drivers, names(), 32 * MIB, volume_content_source=source)
    assert refusal(lambda: controller.CreateVolume(small))[0] == "OUT_OF_RANGE"
    asvhd = create(drivers, names(), volume_content_source=source, parameters={"vhd": "true"})
    assert refusal(lambda: controller.CreateVolume(asvhd))[0] == "INVALID_ARGUMENT"


def test_a_volume_from_a_volume(drivers: Stack, controller: Client, names: Names) -> None:
    made = volume(drivers, controller, names(), parameters={"vhd": "true"})
    written(made.volume_id, drivers.secrets, (0, ONE))
    with held_by("node-7", made.volume_id, drivers.secrets):
        copy = volume(drivers, controller, names(), volume_content_source=ask.from_volume(made.volume_id))
    disk, options = with_secret(volume_address(copy.volume_id), drivers.secrets)
    assert get_disk(disk, options).vhd
    assert content(drivers, copy.volume_id, 0, 4096) == ONE
    assert listed(drivers, controller, source_volume_id=made.volume_id) == []  # none is left of the copy


def test_a_source_that_is_gone_is_not_found(drivers: Stack, controller: Client, names: Names) -> None:
    made = volume(drivers, controller, names())
    first = taken(drivers, controller, made.volume_id, names())
    controller.DeleteSnapshot(dropped(drivers, first.snapshot_id))
    controller.DeleteVolume(delete(drivers, made.volume_id))
    for source in (ask.from_snapshot(first.snapshot_id), ask.from_volume(made.volume_id)):
        request = create(drivers, names(), volume_content_source=source)
        assert refusal(lambda request=request: controller.CreateVolume(request))[0] == "NOT_FOUND"  # type: ignore[misc]


def test_a_copy_that_takes_long_is_aborted_for_now_and_found_complete_later(
    drivers: Stack, controller: Client, names: Names
) -> None:
    made = volume(drivers, controller, names())
    written(made.volume_id, drivers.secrets, (0, ONE))
    name = names()
    request = create(drivers, name, 128 * MIB, volume_content_source=ask.from_volume(made.volume_id))
    drivers.server.configure(copies="pending")
    try:
        code, line = refusal(lambda: controller.CreateVolume(request, timeout=3.0))
        assert (code, "is being copied" in line) == ("ABORTED", True), line
        copy_id = f"{drivers.server.account}/volumes/{name}"
        publish = ask.publish(drivers, copy_id)
        assert refusal(lambda: controller.ControllerPublishVolume(publish))[0] == "FAILED_PRECONDITION"
    finally:
        drivers.server.configure(copies="success")
    drivers.server.copy("volumes", name, "success")
    eventually(lambda: _made(controller, request), limit_s=60)
    assert content(drivers, copy_id, 0, 4096) == ONE


def test_a_copy_goes_on_after_the_driver_was_killed(drivers: Stack, controller: Client, names: Names) -> None:
    made = volume(drivers, controller, names())
    written(made.volume_id, drivers.secrets, (0, ONE))
    name = names()
    request = create(drivers, name, 128 * MIB, volume_content_source=ask.from_volume(made.volume_id))
    drivers.server.configure(copies="pending")
    try:
        first = drivers.controller()
        assert refusal(lambda: first.client().CreateVolume(request, timeout=3.0))[0] == "ABORTED"
        first.kill()
    finally:
        drivers.server.configure(copies="success")
    second = drivers.controller()
    assert refusal(lambda: second.client().CreateVolume(request, timeout=3.0))[0] == "ABORTED"
    drivers.server.copy("volumes", name, "success")
    eventually(lambda: _made(second.client(), request), limit_s=60)
    assert content(drivers, f"{drivers.server.account}/volumes/{name}", 0, 4096) == ONE
    assert second.end() == 0


def test_a_copy_that_failed_leaves_nothing_and_may_be_asked_for_again(
    drivers: Stack, controller: Client, names: Names
) -> None:
    made = volume(drivers, controller, names())
    name = names()
    request = create(drivers, name, 128 * MIB, volume_content_source=ask.from_volume(made.volume_id))
    drivers.server.configure(copies="pending")
    try:
        assert refusal(lambda: controller.CreateVolume(request, timeout=3.0))[0] == "ABORTED"
    finally:
        drivers.server.configure(copies="success")
    drivers.server.copy("volumes", name, "failed")
    eventually(lambda: _code(controller, request) == "INTERNAL", limit_s=60)
    assert _made(controller, request)


def test_a_volume_that_is_being_copied_can_be_deleted(drivers: Stack, controller: Client, names: Names) -> None:
    made = volume(drivers, controller, names())
    name = names()
    request = create(drivers, name, 128 * MIB, volume_content_source=ask.from_volume(made.volume_id))
    drivers.server.configure(copies="pending")
    try:
        assert refusal(lambda: controller.CreateVolume(request, timeout=3.0))[0] == "ABORTED"
        controller.DeleteVolume(delete(drivers, f"{drivers.server.account}/volumes/{name}"))
    finally:
        drivers.server.configure(copies="success")
    with pytest.raises(ValueError):
        drivers.server.blob("volumes", name)
    assert _made(controller, request)


def _code(controller: Client, request: pb.CreateVolumeRequest) -> str:
    return refusal(lambda: controller.CreateVolume(request))[0]


def _made(controller: Client, request: pb.CreateVolumeRequest) -> bool:
    try:
        controller.CreateVolume(request)
    except Exception as error:
        assert "ABORTED" in str(error)
        return False
    return True


def test_snapshots_outlive_their_volume_and_its_blob_goes_with_the_last(
    drivers: Stack, controller: Client, names: Names
) -> None:
    name = names()
    made = volume(drivers, controller, name)
    written(made.volume_id, drivers.secrets, (0, ONE))
    first, second = (taken(drivers, controller, made.volume_id, names()) for _ in range(2))
    for _ in range(2):
        controller.DeleteVolume(delete(drivers, made.volume_id))
    every = [entry.volume.volume_id for entry in controller.ListVolumes(pb.ListVolumesRequest()).entries]
    assert made.volume_id not in every
    for gone in (
        lambda: controller.ControllerPublishVolume(ask.publish(drivers, made.volume_id)),
        lambda: controller.CreateSnapshot(snapshot(drivers, made.volume_id, names())),
        lambda: controller.ControllerExpandVolume(ask.expand(drivers, made.volume_id, GIB)),
        lambda: controller.ControllerGetVolume(pb.ControllerGetVolumeRequest(volume_id=made.volume_id)),
    ):
        assert refusal(gone)[0] == "NOT_FOUND"
    assert refusal(lambda: controller.CreateVolume(create(drivers, name)))[0] == "ALREADY_EXISTS"
    assert listed(drivers, controller, source_volume_id=made.volume_id) == [first.snapshot_id, second.snapshot_id]
    copy = volume(drivers, controller, names(), volume_content_source=ask.from_snapshot(second.snapshot_id))
    assert content(drivers, copy.volume_id, 0, 4096) == ONE
    disk, options = with_secret(volume_address(made.volume_id), drivers.secrets)
    controller.DeleteSnapshot(dropped(drivers, first.snapshot_id))
    assert get_disk(disk, options)
    controller.DeleteSnapshot(dropped(drivers, second.snapshot_id))
    with pytest.raises(NotFoundError):
        get_disk(disk, options)
    controller.DeleteSnapshot(dropped(drivers, second.snapshot_id))


def test_a_deleted_volume_whose_last_snapshot_went_without_it_is_taken_away_by_the_next_call(
    drivers: Stack, controller: Client, names: Names
) -> None:
    """The controller ended between the two requests of DeleteSnapshot."""
    made = volume(drivers, controller, names())
    first = taken(drivers, controller, made.volume_id, names())
    controller.DeleteVolume(delete(drivers, made.volume_id))
    fault = drivers.server.fault("error", operation="delete_blob", status=503, skip=1)
    blob = made.volume_id.partition("/")[2]
    code, _ = refusal(lambda: controller.DeleteSnapshot(dropped(drivers, first.snapshot_id)))
    assert code == "UNAVAILABLE"
    drivers.server.clear_faults(fault)
    controller.DeleteSnapshot(dropped(drivers, first.snapshot_id))
    disk, options = with_secret(volume_address(f"{drivers.server.account}/{blob}"), drivers.secrets)
    with pytest.raises(NotFoundError):
        get_disk(disk, options)


def blocks(answers: list[pb.GetMetadataAllocatedResponse]) -> list[tuple[int, int]]:
    for each in answers:
        assert each.block_metadata_type == pb.VARIABLE_LENGTH
        assert each.volume_capacity_bytes == 64 * MIB
    return [(block.byte_offset, block.size_bytes) for each in answers for block in each.block_metadata]


def test_a_backup_is_told_what_is_in_use_and_what_changed(drivers: Stack, controller: Client, names: Names) -> None:
    made = volume(drivers, controller, names())
    written(made.volume_id, drivers.secrets, (0, ONE), (8 * MIB, ONE), (16 * MIB, ONE))
    base = taken(drivers, controller, made.volume_id, names()).snapshot_id
    written(made.volume_id, drivers.secrets, (8 * MIB, TWO), (16 * MIB, bytes(4096)), (24 * MIB, TWO))
    target = taken(drivers, controller, made.volume_id, names()).snapshot_id

    def allocated(snapshot_id: str, **more: int) -> list[tuple[int, int]]:
        request = pb.GetMetadataAllocatedRequest(snapshot_id=snapshot_id, secrets=drivers.secrets, **more)
        return blocks(controller.GetMetadataAllocated(request))

    def changed(older: str, newer: str, **more: int) -> list[tuple[int, int]]:
        request = pb.GetMetadataDeltaRequest(
            base_snapshot_id=older, target_snapshot_id=newer, secrets=drivers.secrets, **more
        )
        return blocks(controller.GetMetadataDelta(request))

    assert allocated(base) == [(0, 4096), (8 * MIB, 4096), (16 * MIB, 4096)]
    assert allocated(target) == [(0, 4096), (8 * MIB, 4096), (24 * MIB, 4096)]
    assert changed(base, target) == [(8 * MIB, 4096), (16 * MIB, 4096), (24 * MIB, 4096)]
    assert changed(base, target, starting_offset=16 * MIB, max_results=1) == [(16 * MIB, 4096), (24 * MIB, 4096)]
    assert allocated(base, starting_offset=64 * MIB) == []
    answers = controller.GetMetadataAllocated(
        pb.GetMetadataAllocatedRequest(snapshot_id=base, secrets=drivers.secrets, max_results=2)
    )
    assert [len(each.block_metadata) for each in answers] == [2, 1]
    gone = f"{made.volume_id}?snapshot=2026-01-31T12:00:00.0000000Z"
    other = f"{made.volume_id}x?snapshot=2026-01-31T12:00:00.0000000Z"
    for call, code in (
        (lambda: allocated("fake-id"), "NOT_FOUND"),
        (lambda: allocated(gone), "NOT_FOUND"),
        (lambda: allocated(base, starting_offset=-1), "OUT_OF_RANGE"),
        (lambda: allocated(base, starting_offset=65 * MIB), "OUT_OF_RANGE"),
        (lambda: allocated(base, max_results=-1), "INVALID_ARGUMENT"),
        (lambda: changed(target, base), "INVALID_ARGUMENT"),
        (lambda: changed(other, target), "INVALID_ARGUMENT"),
        (lambda: changed(gone, target), "NOT_FOUND"),
        (lambda: changed("", target), "INVALID_ARGUMENT"),
    ):
        assert refusal(call)[0] == code
