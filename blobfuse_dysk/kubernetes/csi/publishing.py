"""Controller calls that say which node may have a volume.

Who has a disk is its lease, which the node takes when it attaches it and gives up when it detaches it; nothing is
written here. So publishing is a look, and unpublishing does something only if the node still has the lease: then
Kubernetes has given the node up (it does not answer, or is marked out-of-service), and the disk is taken from it at
once, so that nothing of it can land any more and the next node waits for nothing.
"""

from __future__ import annotations

import logging

from grpc import StatusCode

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.fence import fence
from blobfuse_dysk.disks.look import Disk, get_disk
from blobfuse_dysk.errors import CredentialError, NotFoundError
from blobfuse_dysk.kubernetes.csi.calls import Context
from blobfuse_dysk.kubernetes.csi.modes import check_modes, is_for_one_node, only_reads, why_not
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.status import CallError
from blobfuse_dysk.kubernetes.csi.tombstones import find_volume
from blobfuse_dysk.kubernetes.parameters import Parameters
from blobfuse_dysk.kubernetes.settings import read_settings
from blobfuse_dysk.kubernetes.volume import volume_address, with_secret
from blobfuse_dysk.options import AttachOptions

__all__ = ["PublishCalls"]

log = logging.getLogger("dysk-csi")


class PublishCalls:
    """ControllerPublishVolume and its opposite, and ValidateVolumeCapabilities."""

    def ControllerPublishVolume(
        self, request: pb.ControllerPublishVolumeRequest, context: Context
    ) -> pb.ControllerPublishVolumeResponse:
        check_modes([request.volume_capability])
        attributes = Parameters.read(request.volume_context)
        disk, options = with_secret(volume_address(request.volume_id), request.secrets, attributes)
        if disk.snapshot and not only_reads(request.volume_capability):
            raise CallError(
                StatusCode.INVALID_ARGUMENT, f"{disk} is a snapshot, which can only be read", remedy="use ReadOnlyMany"
            )
        found = _find(disk, options, with_secrets=bool(request.secrets))
        if found is None:
            return pb.ControllerPublishVolumeResponse()
        _check_free(found, request.node_id, request.volume_capability)
        return pb.ControllerPublishVolumeResponse(publish_context=read_settings(disk, options))

    def ControllerUnpublishVolume(
        self, request: pb.ControllerUnpublishVolumeRequest, context: Context
    ) -> pb.ControllerUnpublishVolumeResponse:
        done = pb.ControllerUnpublishVolumeResponse()
        try:
            disk, options = with_secret(volume_address(request.volume_id), request.secrets)
            if disk.snapshot:
                return done
            node = request.node_id
            if not node:  # from all of them
                node = get_disk(disk, options).holder or ""
            if node and fence(disk, options, node=node):
                log.warning("%s was taken from node %s, which still had it", disk, node)
        except NotFoundError:
            return done
        except CredentialError as error:
            if request.secrets:
                raise
            log.warning("%s: nothing was looked at, as there is no secret for it: %s", request.volume_id, error)
        return done

    def ValidateVolumeCapabilities(
        self, request: pb.ValidateVolumeCapabilitiesRequest, context: Context
    ) -> pb.ValidateVolumeCapabilitiesResponse:
        disk, options = with_secret(volume_address(request.volume_id), request.secrets)
        find_volume(disk, options)
        if why := why_not(request.volume_capabilities):
            return pb.ValidateVolumeCapabilitiesResponse(message=why)
        Parameters.read(request.parameters)
        Parameters.read(request.volume_context)
        Parameters.read(request.mutable_parameters, mutable=True)
        confirmed = pb.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
            mutable_parameters=request.mutable_parameters,
        )
        return pb.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)


def _find(disk: DiskAddress, options: AttachOptions, *, with_secrets: bool) -> Disk | None:
    """The volume; None where there is nothing to look at it with. Then the node finds out what is to be known.

    That is so for static volumes of the original, which have a secret for NodePublishVolume alone.
    """
    try:
        return find_volume(disk, options)
    except CredentialError as error:
        if with_secrets:
            raise
        log.warning("%s: nothing was looked at, as there is no secret for it: %s", disk, error)
        return None


def _check_free(found: Disk, node: str, capability: pb.VolumeCapability) -> None:
    """Raise CallError(FAILED_PRECONDITION) if the node cannot have it."""
    if found.incomplete:
        raise CallError(
            StatusCode.FAILED_PRECONDITION, f"volume {found.disk} is a copy that is not complete yet", remedy="wait"
        )
    if found.lease_state != "leased" or found.holder == node:
        return
    if is_for_one_node(capability) or only_reads(capability):
        holder = f"node {found.holder} since {found.since}" if found.holder else "another holder of its lease"
        raise CallError(
            StatusCode.FAILED_PRECONDITION,
            f"volume {found.disk} is in use by {holder}",
            remedy="it is free once that has let go of it",
        )
