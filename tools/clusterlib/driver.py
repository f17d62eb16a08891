"""What the steps and the suite need to know of a CSI driver, whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["COMMON", "Driver"]

# Capabilities in the words of Kubernetes' storage tests (test/e2e/storage/framework/testdriver.go).
COMMON = {
    "persistence": True,
    "fsGroup": True,
    "exec": True,
    "multipods": True,
    "snapshotDataSource": True,
    "pvcDataSource": True,
    "controllerExpansion": True,
    "nodeExpansion": True,
    "offlineExpansion": True,
    "onlineExpansion": True,
    "readWriteOncePod": True,
}


@dataclass(frozen=True)
class Driver:
    """A driver by its `name`, which is that of its StorageClass and VolumeSnapshotClass, too.

    `install` puts it and its classes into the cluster, and what it needs beside; again is no harm. `controller` and
    `node` are its workloads in `namespace`, as kubectl takes them.
    """

    name: str
    namespace: str
    image: str
    controller: str
    node: str
    install: Callable[[], None]
    capabilities: Mapping[str, bool]
    own_filesystems: bool  # a volume is a device with a file system, which has a size
    minimum_size: str = "1Mi"
    mount_options: tuple[str, ...] = ()  # that a class may name, so that pods see them
    attributes_class: bool = False  # whether `install` makes a VolumeAttributesClass of the same name
    flex_volume: Mapping[str, object] | None = None  # how a volume names its FlexVolume driver, and with which secret
    next_image: Path | None = None  # the OCI archive of another build, which the driver is upgraded to under load
