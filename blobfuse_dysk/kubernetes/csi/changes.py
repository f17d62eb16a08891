"""Controller calls that change a volume: its size, and what a VolumeAttributesClass says.

A disk that a node has attached can only be grown by the node, which has its lease: so the node is asked to, with the
size that is told here as the volume's.
"""

from __future__ import annotations

from blobfuse_dysk.disks.resize import resize
from blobfuse_dysk.disks.tier import set_tier
from blobfuse_dysk.errors import LeasedError
from blobfuse_dysk.kubernetes.csi.calls import Context
from blobfuse_dysk.kubernetes.csi.capacity import fits, size_for
from blobfuse_dysk.kubernetes.csi.modes import check_modes
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.tombstones import find_volume
from blobfuse_dysk.kubernetes.parameters import Parameters
from blobfuse_dysk.kubernetes.settings import write_settings
from blobfuse_dysk.kubernetes.volume import volume_address, with_secret

__all__ = ["ChangeCalls"]


class ChangeCalls:
    """ControllerExpandVolume and ControllerModifyVolume."""

    def ControllerExpandVolume(
        self, request: pb.ControllerExpandVolumeRequest, context: Context
    ) -> pb.ControllerExpandVolumeResponse:
        if request.HasField("volume_capability"):
            check_modes([request.volume_capability])
        disk, options = with_secret(volume_address(request.volume_id), request.secrets)
        found = find_volume(disk, options)
        wanted = request.capacity_range
        size = found.size if fits(found.size, wanted) else size_for(wanted, vhd=bool(found.vhd), least=found.size)
        leased = found.lease_state == "leased"
        if size > found.size and not leased:
            try:
                resize(disk, size, options)
            except LeasedError:  # since a moment ago
                leased = True
        at_node = leased or not request.volume_capability.HasField("block")
        return pb.ControllerExpandVolumeResponse(capacity_bytes=size, node_expansion_required=at_node)

    def ControllerModifyVolume(
        self, request: pb.ControllerModifyVolumeRequest, context: Context
    ) -> pb.ControllerModifyVolumeResponse:
        parameters = Parameters.read(request.mutable_parameters, mutable=True)
        disk, options = with_secret(volume_address(request.volume_id), request.secrets)
        found = find_volume(disk, options)
        if parameters.tier and parameters.tier != found.tier:
            set_tier(disk, options, parameters.tier)
        write_settings(disk, options, parameters)
        return pb.ControllerModifyVolumeResponse()
