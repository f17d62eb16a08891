"""PersistentVolumes: the fields that Kubernetes and the two drivers read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.kubernetes.convert_pv import Volume, persistent_volume, to_yaml

GIB = 1 << 30
VOLUME = Volume(
    disk=DiskAddress.parse("mystore/dysks/vol/data.vhd"), name="dyskAb_1", size=5 * GIB, secret_name="dyskcreds"
)


def test_flex_volume_is_what_the_original_printed() -> None:
    assert persistent_volume(VOLUME) == {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "dyskab-1"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "5Gi"},
            "persistentVolumeReclaimPolicy": "Retain",
            "flexVolume": {
                "driver": "azure/dysk",
                "fsType": "ext4",
                "readOnly": False,
                "secretRef": {"name": "dyskcreds"},
                "options": {"accountName": "mystore", "container": "dysks", "blob": "vol/data.vhd"},
            },
        },
    }


def test_csi_names_the_volume_and_where_the_secret_is() -> None:
    spec = persistent_volume(replace(VOLUME, read_only=True, access_mode="ReadOnlyMany"), csi=True)["spec"]
    assert spec == {
        "accessModes": ["ReadOnlyMany"],
        "capacity": {"storage": "5Gi"},
        "persistentVolumeReclaimPolicy": "Retain",
        "csi": {
            "driver": "csi-dysk",
            "volumeHandle": "mystore/dysks/vol/data.vhd",
            "fsType": "ext4",
            "readOnly": True,
            "nodePublishSecretRef": {"name": "dyskcreds", "namespace": "default"},
            "volumeAttributes": {"container": "dysks", "blob": "vol/data.vhd"},
        },
    }


def test_what_is_optional_is_in_the_volume_if_it_is_given() -> None:
    volume = replace(
        VOLUME,
        namespace="web",
        secret_namespace="secrets",
        labels={"app": "db"},
        storage_class="fast",
        reclaim_policy="Delete",
        fstype="xfs",
    )
    value = json.loads(json.dumps(persistent_volume(volume)))
    assert value["metadata"] == {"name": "dyskab-1", "namespace": "web", "labels": {"app": "db"}}
    assert value["spec"]["storageClassName"] == "fast"
    assert value["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    assert value["spec"]["flexVolume"]["fsType"] == "xfs"
    assert value["spec"]["flexVolume"]["secretRef"] == {"name": "dyskcreds", "namespace": "secrets"}


@pytest.mark.parametrize(
    ("size", "capacity"),
    [
        (GIB, "1Gi"),
        (32 * GIB + 512, "32Gi"),  # a VHD
        ((64 << 20) + 512, "64Mi"),
        (64 << 20, "64Mi"),
        (GIB + (512 << 20), "1536Mi"),
        (GIB - 512, "1023Mi"),
        (8 << 40, "8192Gi"),
        (64 << 10, "64Ki"),
        (512, "512"),
    ],
)
def test_capacity_is_what_is_there_and_no_more(size: int, capacity: str) -> None:
    spec = persistent_volume(replace(VOLUME, size=size))["spec"]
    assert isinstance(spec, dict) and spec["capacity"] == {"storage": capacity}


@pytest.mark.parametrize(("bytes_", "taken"), [(128, True), (129, False)])
def test_a_handle_that_csi_does_not_allow_is_refused(bytes_: int, taken: bool) -> None:
    head = f"{VOLUME.disk.account}/{VOLUME.disk.container}/"
    disk = replace(VOLUME.disk, blob="é" + "x" * (bytes_ - len(head) - 2))
    volume = replace(VOLUME, disk=disk, name="short")
    persistent_volume(volume)
    if taken:
        persistent_volume(volume, csi=True)
        return
    with pytest.raises(UsageError, match="129 bytes, and CSI allows 128"):
        persistent_volume(volume, csi=True)


@pytest.mark.parametrize("name", ["---", "a b", "ü", "x" * 254])
def test_names_that_kubernetes_does_not_take(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(VOLUME, name=name)
    assert "--name" in (caught.value.remedy or "")


def test_an_unknown_size_is_an_error() -> None:
    with pytest.raises(UsageError):
        replace(VOLUME, size=0)


def test_text_that_yaml_would_take_for_something_else_is_quoted() -> None:
    volume = replace(VOLUME, labels={"app": "yes", "version": "1.10", "what": 'a "b"', "plain": "web"})
    text = to_yaml(persistent_volume(volume))
    assert text.startswith("apiVersion: v1\nkind: PersistentVolume\nmetadata:\n  name: dyskab-1\n  labels:\n")
    assert '    app: "yes"\n' in text
    assert '    version: "1.10"\n' in text
    assert '    what: "a \\"b\\""\n' in text
    assert "    plain: web\n" in text
    assert "  accessModes:\n  - ReadWriteOnce\n" in text
    assert "    readOnly: false\n" in text
    assert "    driver: azure/dysk\n" in text
