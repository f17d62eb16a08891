"""Objects of Kubernetes that more than one part of the cluster is made of."""

from __future__ import annotations

from typing import Any

from tools.clusterlib.api import Manifest
from tools.clusterlib.imagelist import REGISTRY

__all__ = ["rights", "snapshot_controller", "workload"]


def rights(namespace: str) -> list[Manifest]:
    """A service account `driver` that may do everything: the least that a driver needs is its chart's to say."""
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "driver", "namespace": namespace}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"driver:{namespace}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "driver", "namespace": namespace}],
        },
    ]


def workload(kind: str, name: str, namespace: str, containers: list[Manifest], **pod: Any) -> Manifest:
    """A Deployment of one, or a DaemonSet, of these containers, as service account `driver`."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            **({"replicas": 1} if kind == "Deployment" else {}),
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"serviceAccountName": "driver", "containers": containers, **pod},
            },
        },
    }


def snapshot_controller() -> list[Manifest]:
    """The controller of VolumeSnapshots: once in a cluster, whatever drivers there are."""
    container = {
        "name": "controller",
        "image": f"{REGISTRY}/snapshot-controller:1",
        "args": ["--leader-election=false"],
    }
    return [*rights("kube-system"), workload("Deployment", "snapshot-controller", "kube-system", [container])]
