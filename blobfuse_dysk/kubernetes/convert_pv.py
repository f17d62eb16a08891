"""A disk as a Kubernetes PersistentVolume, for the FlexVolume driver `azure/dysk` or the CSI driver `csi-dysk`.

Field names and defaults are those of the original's convert-pv and of its examples; the API's are at
https://kubernetes.io/docs/reference/kubernetes-api/config-and-storage-resources/persistent-volume-v1/ .
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import UsageError

__all__ = ["ACCESS_MODES", "CSI_DRIVER", "FLEX_DRIVER", "RECLAIM_POLICIES", "Volume", "persistent_volume", "to_yaml"]

FLEX_DRIVER = "azure/dysk"
CSI_DRIVER = "csi-dysk"
ACCESS_MODES = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")
RECLAIM_POLICIES = ("Retain", "Delete", "Recycle")
_UNITS = ((30, "Gi"), (20, "Mi"), (10, "Ki"))
_MOST_HANDLE = 128  # bytes; source: the Container Storage Interface's specification, "Size Limits"
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")  # RFC 1123
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*\Z")
_YAML_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


@dataclass(frozen=True, slots=True)
class Volume:
    """What a PersistentVolume says, apart from which driver it is for. size: bytes of the blob."""

    disk: DiskAddress
    name: str
    size: int
    secret_name: str
    secret_namespace: str | None = None
    namespace: str | None = None
    reclaim_policy: str = "Retain"
    access_mode: str = "ReadWriteOnce"
    fstype: str = "ext4"
    labels: Mapping[str, str] = field(default_factory=dict)
    storage_class: str | None = None
    read_only: bool = False

    def __post_init__(self) -> None:
        if not _SUBDOMAIN.match(self.kubernetes_name) or len(self.kubernetes_name) > 253:
            raise UsageError(
                f"{self.name!r} cannot be made the name of a PersistentVolume",
                remedy="choose one with --name: lower-case letters, digits, '-' and '.'",
            )
        if self.disk.snapshot:  # neither driver's fields have a place for it: they would name the disk itself
            raise UsageError("a PersistentVolume is of a disk, not a snapshot of it", remedy="leave ?snapshot= out")
        if self.size < 1:
            raise UsageError("the disk's size is not known", remedy="say it, for example --size 32GiB")

    @property
    def kubernetes_name(self) -> str:
        """The name in lower case, as the original has it, and without what Kubernetes does not take."""
        return self.name.lower().replace("_", "-").strip("-.")


def persistent_volume(volume: Volume, *, csi: bool = False) -> dict[str, object]:
    """The PersistentVolume as a JSON object."""
    metadata: dict[str, object] = {"name": volume.kubernetes_name}
    if volume.namespace:
        metadata["namespace"] = volume.namespace
    if volume.labels:
        metadata["labels"] = dict(volume.labels)
    spec: dict[str, object] = {
        "accessModes": [volume.access_mode],
        "capacity": {"storage": _quantity(volume.size)},
        "persistentVolumeReclaimPolicy": volume.reclaim_policy,
    }
    if volume.storage_class:
        spec["storageClassName"] = volume.storage_class
    spec.update(_csi(volume) if csi else _flex_volume(volume))
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}


def _quantity(size: int) -> str:
    """Bytes as Kubernetes writes them: all that is there and no more, so what a VHD's footer takes is left out."""
    mebibytes = size >> 20 << 20 if size >> 20 else size
    for exponent, unit in _UNITS:
        if mebibytes and not mebibytes % (1 << exponent):
            return f"{mebibytes >> exponent}{unit}"
    return str(size)


def to_yaml(value: Mapping[str, object]) -> str:
    """Write an object of strings, booleans, lists of strings and such objects as YAML."""
    return "".join(f"{line}\n" for line in _yaml_lines(value, ""))


def _flex_volume(volume: Volume) -> dict[str, object]:
    secret = {"name": volume.secret_name}
    if volume.secret_namespace:
        secret["namespace"] = volume.secret_namespace
    return {
        "flexVolume": {
            "driver": FLEX_DRIVER,
            "fsType": volume.fstype,
            "readOnly": volume.read_only,
            "secretRef": secret,
            "options": {
                "accountName": volume.disk.account,
                "container": volume.disk.container,
                "blob": volume.disk.blob,
            },
        }
    }


def _csi(volume: Volume) -> dict[str, object]:
    # A CSI secret reference must name its namespace; `default` is what the original's example has.
    secret = {"name": volume.secret_name, "namespace": volume.secret_namespace or "default"}
    disk = volume.disk
    handle = f"{disk.account}/{disk.container}/{disk.blob}"
    if len(handle.encode()) > _MOST_HANDLE:
        raise UsageError(
            f"the volume's handle would have {len(handle.encode())} bytes, and CSI allows {_MOST_HANDLE}: {handle}",
            remedy="copy the disk to a blob with a shorter name, or leave --csi out",
        )
    return {
        "csi": {
            "driver": CSI_DRIVER,
            "volumeHandle": handle,
            "fsType": volume.fstype,
            "readOnly": volume.read_only,
            "nodePublishSecretRef": secret,
            "volumeAttributes": {"container": disk.container, "blob": disk.blob},
        }
    }


def _yaml_lines(value: Mapping[str, object], indent: str) -> list[str]:
    lines = []
    for key, item in value.items():
        head = f"{indent}{_scalar(key)}:"
        if isinstance(item, Mapping):
            lines += [head, *_yaml_lines(item, indent + "  ")]
        elif isinstance(item, list):
            lines += [head, *(f"{indent}- {_scalar(entry)}" for entry in item)]
        else:
            lines.append(f"{head} {_scalar(item)}")
    return lines


def _scalar(value: object) -> str:
    """A string is quoted, as JSON does it, unless every YAML reader takes it for a string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    return text if _PLAIN.match(text) and text.lower() not in _YAML_WORDS else json.dumps(text)
