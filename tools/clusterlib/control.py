"""The control plane: etcd, API server, controller manager and scheduler in a space of their own."""

from __future__ import annotations

import socket
from pathlib import Path

from tools.clusterlib import keys, network
from tools.clusterlib.places import BIN, KEYS, KUBECONFIG, RUN
from tools.clusterlib.space import Space

__all__ = ["CONTROL", "ETCD_FOLDER", "create", "node_kubeconfig", "start_controllers"]

CONTROL = Space("control")
ETCD_FOLDER = "/var/lib/etcd"

_SERVER = f"https://{network.CONTROL_ADDRESS}:{network.API_PORT}"
_MANAGER, _SCHEDULER = RUN / "controller-manager.kubeconfig", RUN / "scheduler.kubeconfig"


def create(node_names: list[str]) -> None:
    """Makes the keys, and starts etcd and the API server; returns before the API answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        _create_keys(f"https://127.0.0.1:{listener.getsockname()[1]}", node_names)
        binds = {RUN / "etcd": ETCD_FOLDER}
        pid = CONTROL.start(binds, (network.CONTROL_ADDRESS, network.API_PORT), listener)
    network.prepare_control(pid)
    CONTROL.spawn("etcd", _etcd())
    CONTROL.spawn("kube-apiserver", _apiserver())


def start_controllers() -> None:
    """Starts the rest, once the API is ready: the controller manager ends if its rights are not there yet."""
    CONTROL.spawn("kube-controller-manager", _controller_manager())
    CONTROL.spawn("kube-scheduler", _scheduler())


def node_kubeconfig(node: str) -> Path:
    """How a node's kubelet (and its kube-proxy, by the same rights) speaks with the API."""
    return RUN / f"{node}.kubeconfig"


def _create_keys(outside: str, node_names: list[str]) -> None:
    """`outside` is the API's address for the machine, where `up` prints a kubeconfig for."""
    authority = keys.Authority.create()
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1")
    authority.issue("apiserver", "kube-apiserver", names=(*names, network.SERVICE_ADDRESS, network.CONTROL_ADDRESS))
    authority.issue("apiserver-kubelet", "kube-apiserver-kubelet", "system:masters")
    authority.issue("admin", "admin", "system:masters")
    authority.issue("controller-manager", "system:kube-controller-manager")
    authority.issue("scheduler", "system:kube-scheduler")
    authority.issue("kube-proxy", "system:kube-proxy")
    keys.create_signing_pair("service-accounts")
    keys.write_kubeconfig(KUBECONFIG, outside, "admin")
    keys.write_kubeconfig(_MANAGER, _SERVER, "controller-manager")
    keys.write_kubeconfig(_SCHEDULER, _SERVER, "scheduler")
    keys.write_kubeconfig(RUN / "kube-proxy.kubeconfig", _SERVER, "kube-proxy")
    for node in node_names:
        authority.issue(node, f"system:node:{node}", "system:nodes")
        keys.write_kubeconfig(node_kubeconfig(node), _SERVER, node)


def _etcd() -> list[str | Path]:
    # Without fsync: a cluster that is made for a test need not outlive the machine.
    return [BIN / "etcd", f"--data-dir={ETCD_FOLDER}", "--unsafe-no-fsync", "--log-level=warn"]


def _apiserver() -> list[str | Path]:
    return [
        BIN / "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={network.CONTROL_ADDRESS}",
        f"--secure-port={network.API_PORT}",
        f"--service-cluster-ip-range={network.SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",  # a CSI driver's node part mounts
        "--enable-admission-plugins=NodeRestriction",
        f"--client-ca-file={KEYS}/ca.crt",
        f"--tls-cert-file={KEYS}/apiserver.crt",
        f"--tls-private-key-file={KEYS}/apiserver.key",
        f"--kubelet-client-certificate={KEYS}/apiserver-kubelet.crt",
        f"--kubelet-client-key={KEYS}/apiserver-kubelet.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={KEYS}/service-accounts.pub",
        f"--service-account-signing-key-file={KEYS}/service-accounts.key",
    ]


def _controller_manager() -> list[str | Path]:
    return [
        BIN / "kube-controller-manager",
        f"--kubeconfig={_MANAGER}",
        f"--authentication-kubeconfig={_MANAGER}",
        f"--authorization-kubeconfig={_MANAGER}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials",
        f"--root-ca-file={KEYS}/ca.crt",
        f"--service-account-private-key-file={KEYS}/service-accounts.key",
        f"--cluster-signing-cert-file={KEYS}/ca.crt",
        f"--cluster-signing-key-file={KEYS}/ca.key",
    ]


def _scheduler() -> list[str | Path]:
    return [
        BIN / "kube-scheduler",
        f"--kubeconfig={_SCHEDULER}",
        f"--authentication-kubeconfig={_SCHEDULER}",
        f"--authorization-kubeconfig={_SCHEDULER}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
    ]
