"""The cluster as a whole: made, looked at, and removed without a trace."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from tools.clusterlib import api, binaries, control, imagelist
from tools.clusterlib.node import FOLDERS, SHARED, Node
from tools.clusterlib.places import BIN, KUBECONFIG, LOGS, RUN, ClusterError

__all__ = ["down", "load_images", "nodes", "up", "wait_until_ready"]

_API_S, _READY_S = 120.0, 180.0
_HELLO = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "hello"},
    "spec": {
        "restartPolicy": "Never",
        "containers": [
            {"name": "hello", "image": f"{imagelist.REGISTRY}/tools:1", "command": ["/bin/sh", "-c", "echo hello"]}
        ],
    },
}


def nodes() -> list[Node]:
    """The nodes that this cluster was made with, whether they run or not."""
    return [Node(number) for number in range(1, 1 + len(list(RUN.glob("node*-disk"))))]


def up(count: int) -> None:
    """Makes a cluster of `count` nodes and proves it with a pod that says hello. What is half made stays."""
    if RUN.exists():
        raise ClusterError("there is a cluster: remove it first with: tools/cluster down")
    binaries.require(for_suite=False)
    archive = imagelist.cluster_archive()
    RUN.mkdir(parents=True, mode=0o700)
    wanted = [Node(number) for number in range(1, count + 1)]
    for node in wanted:
        node.disk.mkdir()
    control.create([node.name for node in wanted])
    took = api.wait_until("the API is ready", lambda: api.kubectl("get", "--raw=/readyz") == "ok", _API_S)
    print(f"the API is ready: {took:.0f} s", flush=True)
    control.start_controllers()
    _create_rights()
    for node in wanted:
        node.start()
    for node in wanted:
        load_images(node, archive)
    print(f"{count} nodes are ready: {wait_until_ready():.0f} s", flush=True)
    _create_snapshot_kinds()
    _say_hello()
    print(f"export KUBECONFIG={KUBECONFIG}")
    print(f"{BIN}/kubectl get nodes")


def down() -> None:
    """Ends everything and removes what is left of it on this machine; also what an `up` left half made."""
    for node in nodes():
        node.kill()
    control.CONTROL.kill()
    if RUN.exists():
        shutil.rmtree(RUN)
    for folder in (*FOLDERS.values(), SHARED, control.ETCD_FOLDER, "/dev/dysk"):
        with suppress(OSError):
            Path(folder).rmdir()  # the empty folder that was mounted upon; another's is not empty


def wait_until_ready() -> float:
    """Waits until every node is ready; returns the seconds it took."""
    return api.wait_until("all nodes are ready", _all_ready, _READY_S)


def load_images(node: Node, archive: Path, name: str | None = None) -> None:
    """Gives a node an archive's images, under the names that it carries, or as `name`."""
    index_name = ["--index-name", name] if name else []
    done = subprocess.run(node.ctr("images", "import", "--local", *index_name, archive), capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"{node.name} does not take {archive.name}: {done.stderr.strip().splitlines()[-1]}")


def _all_ready() -> bool:
    items = json.loads(api.kubectl("get", "nodes", "-o", "json"))["items"]
    ready = [
        any(state["type"] == "Ready" and state["status"] == "True" for state in item["status"]["conditions"])
        for item in items
    ]
    return len(ready) == len(nodes()) and all(ready)


def _create_rights() -> None:
    """What kubeadm would grant: kube-proxy reads services and endpoints."""
    api.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "cluster:kube-proxy"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:kube-proxy"}],
        }
    )


def _create_snapshot_kinds() -> None:
    """The VolumeSnapshot kinds, from the snapshotter's own module; a cluster has them once, not each driver."""
    folder = Path(binaries.module_folder("github.com/kubernetes-csi/external-snapshotter/client/v8")) / "config" / "crd"
    for file in sorted(folder.glob("*.yaml")):
        if file.name != "kustomization.yaml":
            api.kubectl("apply", "--server-side", "-f", file)


def _say_hello() -> None:
    """A pod runs, on whatever node, and its output is to be had by way of the kubelet."""
    api.wait_until("the default service account is there", lambda: bool(api.get("serviceaccount", "default")), _READY_S)
    api.apply(_HELLO)
    took = api.wait_until("pod hello has run", api.pod_is("Succeeded", "hello"), _READY_S)
    if (said := api.kubectl("logs", "hello").strip()) != "hello":
        raise ClusterError(f"pod hello was to say hello and said {said!r}: see {LOGS}")
    print(f"pod hello has run: {took:.1f} s", flush=True)
    api.delete("pod", "hello")
