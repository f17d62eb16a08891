"""The Identity service: what this driver is, what it can do, whether it is well."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from google.protobuf.wrappers_pb2 import BoolValue
from grpc import StatusCode

from blobfuse_dysk import environment
from blobfuse_dysk.azure.credential.file import read_conf
from blobfuse_dysk.azure.credential.resolve import resolve
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DeviceError, DyskError
from blobfuse_dysk.kubernetes.csi.calls import Context
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.status import CallError
from blobfuse_dysk.options import AttachOptions

__all__ = ["Check", "IdentityService", "check_account", "check_credentials", "check_devices"]

Check = Callable[[], None]
"""Raises DyskError if something that calls need is not as it must be."""

_Service = pb.PluginCapability.Service
_Expansion = pb.PluginCapability.VolumeExpansion


class IdentityService:
    """checks: what Probe looks at."""

    def __init__(self, name: str, version: str, checks: Sequence[Check]) -> None:
        self._name = name
        self._version = version
        self._checks = checks

    def GetPluginInfo(self, request: pb.GetPluginInfoRequest, context: Context) -> pb.GetPluginInfoResponse:
        return pb.GetPluginInfoResponse(name=self._name, vendor_version=self._version)

    def GetPluginCapabilities(
        self, request: pb.GetPluginCapabilitiesRequest, context: Context
    ) -> pb.GetPluginCapabilitiesResponse:
        """All of the driver's, in whichever of its processes it is asked. Volumes are in reach from every node."""
        services = (_Service.CONTROLLER_SERVICE, _Service.SNAPSHOT_METADATA_SERVICE)
        found = [pb.PluginCapability(service=_Service(type=each)) for each in services]
        found.append(pb.PluginCapability(volume_expansion=_Expansion(type=_Expansion.ONLINE)))
        return pb.GetPluginCapabilitiesResponse(capabilities=found)

    def Probe(self, request: pb.ProbeRequest, context: Context) -> pb.ProbeResponse:
        for check in self._checks:
            try:
                check()
            except DyskError as error:
                raise CallError(StatusCode.FAILED_PRECONDITION, str(error), remedy=error.remedy) from error
        return pb.ProbeResponse(ready=BoolValue(value=True))


def check_credentials() -> None:
    """Whether the credential files that there are on this machine can be read. There need not be any."""
    for path in sorted(environment.config_dir().glob("*.conf")):
        read_conf(path)


def check_account(container: DiskAddress) -> None:
    """Whether there is a credential for the account of a container that is to be listed. No request is sent."""
    resolve(container, AttachOptions())


def check_devices() -> None:
    """Whether this machine has what a node needs: FUSE and loop devices."""
    for device, module in (("/dev/fuse", "fuse"), ("/dev/loop-control", "loop")):
        try:
            os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise DeviceError(
                f"{device} cannot be opened: {error.strerror}",
                remedy=f"on the node run: modprobe {module}; its pod must be privileged and see the node's /dev",
            ) from error
