"""What users run on volumes, as manifests: a database behind a service, and a writer that ends at its first error."""

from __future__ import annotations

from tools.clusterlib.api import Manifest
from tools.clusterlib.imagelist import REGISTRY
from tools.clusterlib.network import POD_RANGE

__all__ = ["DATABASE", "WRITER", "claim", "database", "service", "sleeper", "snapshot", "writer"]

DATABASE, WRITER = "database", "writer"

_START_POSTGRES = f"""set -e
data=/data/postgres
as_postgres="setpriv --reuid=postgres --regid=postgres --init-groups"
if ! [ -s $data/PG_VERSION ]; then
    install -d -o postgres -g postgres -m 700 $data
    $as_postgres initdb --pgdata=$data --auth=trust
    echo "host all all {POD_RANGE} trust" >>$data/pg_hba.conf
fi
rm -f $data/postmaster.pid
exec $as_postgres postgres -D $data -c listen_addresses='*' -c unix_socket_directories=/tmp
"""

# A number a line, each on the disk before it is printed. Any error ends the pod as Failed; nothing starts it again.
_WRITE = """set -e
n=0
while sleep 0.05; do
    n=$((n + 1))
    echo $n >/data/number.new
    sync /data/number.new
    mv /data/number.new /data/number
    sync /data
    echo $n
done
"""


def claim(name: str, class_name: str, size: str, source: Manifest | None = None) -> Manifest:
    """A PersistentVolumeClaim, empty or from a `dataSource`."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": class_name,
            "resources": {"requests": {"storage": size}},
            **({"dataSource": source} if source else {}),
        },
    }


def snapshot(name: str, class_name: str, of_claim: str) -> Manifest:
    """A VolumeSnapshot of a claim."""
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": class_name, "source": {"persistentVolumeClaimName": of_claim}},
    }


def database(name: str, of_claim: str) -> Manifest:
    """PostgreSQL in a Deployment of one, on a claim: what the SQL Server of dysk's walk-through was."""
    container = {
        "name": "postgres",
        "image": f"{REGISTRY}/postgres:1",
        "command": ["/bin/bash", "-c", _START_POSTGRES],
        "ports": [{"containerPort": 5432}],
        "readinessProbe": {"exec": {"command": ["pg_isready", "-h", "127.0.0.1"]}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # two of it would wait for one volume
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [container], "volumes": [_volume(of_claim)]},
            },
        },
    }


def service(name: str) -> Manifest:
    """The database by one address, wherever its pod is."""
    spec = {"selector": {"app": name}, "ports": [{"port": 5432}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def writer(of_claim: str) -> Manifest:
    """A pod that writes until an operation fails."""
    container = {
        "name": "writer",
        "image": f"{REGISTRY}/tools:1",
        "command": ["/bin/bash", "-c", _WRITE],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": WRITER},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [_volume(of_claim)],
        },
    }


def sleeper(name: str, of_claim: str, node: str) -> Manifest:
    """A pod on this node that has the volume and does nothing: what is measured is the volume."""
    container = {
        "name": "sleeper",
        "image": f"{REGISTRY}/tools:1",
        "command": ["/bin/bash", "-c", "touch /data/there && exec sleep infinity"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "measured"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [_volume(of_claim)],
        },
    }


def _volume(of_claim: str) -> Manifest:
    return {"name": "data", "persistentVolumeClaim": {"claimName": of_claim}}
