"""Requests as side-cars send them."""

from __future__ import annotations

from typing import Any

from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from tests.kubernetes.client import Client
from tests.kubernetes.stack import NODE, Stack

__all__ = ["GIB", "MIB", "MODE", "block", "create", "delete", "expand", "mount", "publish", "snapshot", "unpublish"]

MIB, GIB = 1 << 20, 1 << 30
MODE = pb.VolumeCapability.AccessMode


def mount(mode: Any = MODE.SINGLE_NODE_WRITER, fs_type: str = "") -> pb.VolumeCapability:
    """A capability of a mounted volume."""
    return pb.VolumeCapability(
        mount=pb.VolumeCapability.MountVolume(fs_type=fs_type), access_mode=pb.VolumeCapability.AccessMode(mode=mode)
    )


def block(mode: Any = MODE.SINGLE_NODE_WRITER) -> pb.VolumeCapability:
    """A capability of a raw device."""
    return pb.VolumeCapability(
        block=pb.VolumeCapability.BlockVolume(), access_mode=pb.VolumeCapability.AccessMode(mode=mode)
    )


def create(stack: Stack, name: str, size: int = 64 * MIB, **more: Any) -> pb.CreateVolumeRequest:
    """A CreateVolumeRequest; parameters are added to those of the stack."""
    parameters = {**stack.parameters, **more.pop("parameters", {})}
    given: dict[str, Any] = {
        "name": name,
        "capacity_range": pb.CapacityRange(required_bytes=size),
        "volume_capabilities": [mount()],
        "parameters": parameters,
        "secrets": stack.secrets,
    }
    return pb.CreateVolumeRequest(**{**given, **more})


def volume(stack: Stack, controller: Client, name: str, size: int = 64 * MIB, **more: Any) -> pb.Volume:
    """A volume that was made."""
    made = controller.CreateVolume(create(stack, name, size, **more)).volume
    assert isinstance(made, pb.Volume)
    return made


def delete(stack: Stack, volume_id: str) -> pb.DeleteVolumeRequest:
    return pb.DeleteVolumeRequest(volume_id=volume_id, secrets=stack.secrets)


def publish(stack: Stack, volume_id: str, node: str = NODE, **more: Any) -> pb.ControllerPublishVolumeRequest:
    given: dict[str, Any] = {"volume_capability": mount(), "secrets": stack.secrets}
    return pb.ControllerPublishVolumeRequest(volume_id=volume_id, node_id=node, **{**given, **more})


def unpublish(stack: Stack, volume_id: str, node: str = NODE) -> pb.ControllerUnpublishVolumeRequest:
    return pb.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=node, secrets=stack.secrets)


def expand(stack: Stack, volume_id: str, size: int, **more: Any) -> pb.ControllerExpandVolumeRequest:
    given: dict[str, Any] = {
        "capacity_range": pb.CapacityRange(required_bytes=size),
        "volume_capability": mount(),
        "secrets": stack.secrets,
    }
    return pb.ControllerExpandVolumeRequest(volume_id=volume_id, **{**given, **more})


def modify(stack: Stack, volume_id: str, **parameters: str) -> pb.ControllerModifyVolumeRequest:
    return pb.ControllerModifyVolumeRequest(volume_id=volume_id, mutable_parameters=parameters, secrets=stack.secrets)


def snapshot(stack: Stack, volume_id: str, name: str) -> pb.CreateSnapshotRequest:
    return pb.CreateSnapshotRequest(source_volume_id=volume_id, name=name, secrets=stack.secrets)


def from_snapshot(snapshot_id: str) -> pb.VolumeContentSource:
    return pb.VolumeContentSource(snapshot=pb.VolumeContentSource.SnapshotSource(snapshot_id=snapshot_id))


def from_volume(volume_id: str) -> pb.VolumeContentSource:
    return pb.VolumeContentSource(volume=pb.VolumeContentSource.VolumeSource(volume_id=volume_id))
