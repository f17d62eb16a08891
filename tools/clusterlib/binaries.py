"""What is built from the Go module proxy, and how: pinned by a go.mod in tests/kubernetes/go, nothing of it here.

A first build takes most of an hour on two cores (Kubernetes is large); a later one, with Go's cache warm, a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from functools import cache

from tools.clusterlib.places import BIN, MODULES, ClusterError

_KUBERNETES = "k8s.io/kubernetes"
_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
_SIDECARS = "github.com/kubernetes-csi"
_CNI = "github.com/containernetworking/plugins/plugins"
_OURS = "blobfuse-dysk.test/cluster"


@dataclass(frozen=True)
class Binary:
    """One program: where it goes below BIN, and the Go package that it is made of."""

    name: str
    package: str
    tags: str = ""
    cgo: bool = False
    test: bool = False  # a package of tests: `go test -c`
    module: str = "cluster"  # the folder of the go.mod that pins it
    for_suite: bool = False  # needed for External.Storage alone


_NO_DRIVERS = "no_btrfs,no_zfs,no_devmapper"  # snapshotters of containerd that are not used here

BINARIES = (
    Binary("etcd", "go.etcd.io/etcd/server/v3"),
    Binary("kube-apiserver", f"{_KUBERNETES}/cmd/kube-apiserver"),
    Binary("kubectl", f"{_KUBERNETES}/cmd/kubectl"),
    Binary("containerd", f"{_CONTAINERD}/containerd", tags=_NO_DRIVERS),
    Binary("ctr", f"{_CONTAINERD}/ctr", tags=_NO_DRIVERS),
    Binary("containerd-shim-runc-v2", f"{_CONTAINERD}/containerd-shim-runc-v2"),
    Binary("runc", "github.com/opencontainers/runc", tags="seccomp", cgo=True),
    Binary("kube-controller-manager", f"{_KUBERNETES}/cmd/kube-controller-manager"),
    Binary("kube-scheduler", f"{_KUBERNETES}/cmd/kube-scheduler"),
    Binary("kubelet", f"{_KUBERNETES}/cmd/kubelet"),
    Binary("kube-proxy", f"{_KUBERNETES}/cmd/kube-proxy"),
    Binary("cni/host-local", f"{_CNI}/ipam/host-local"),
    Binary("cni/bridge", f"{_CNI}/main/bridge"),
    Binary("cni/loopback", f"{_CNI}/main/loopback"),
    Binary("cni/portmap", f"{_CNI}/meta/portmap"),
    Binary("csi-provisioner", f"{_SIDECARS}/external-provisioner/v6/cmd/csi-provisioner"),
    Binary("csi-attacher", f"{_SIDECARS}/external-attacher/v4/cmd/csi-attacher"),
    Binary("csi-resizer", f"{_SIDECARS}/external-resizer/v2/cmd/csi-resizer"),
    Binary("csi-snapshotter", f"{_SIDECARS}/external-snapshotter/v8/cmd/csi-snapshotter"),
    Binary("snapshot-controller", f"{_SIDECARS}/external-snapshotter/v8/cmd/snapshot-controller"),
    Binary("node-driver-registrar", f"{_OURS}/registrar"),
    Binary("livenessprobe", f"{_OURS}/liveness"),
    Binary("standin-driver", f"{_OURS}/standin"),
    Binary("helm", "helm.sh/helm/v3/cmd/helm", module="helm"),
    Binary("csi-sanity", "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity", module="sanity"),
    Binary("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo", for_suite=True),  # runs the suite in several processes
    Binary("agnhost", f"{_KUBERNETES}/test/images/agnhost", for_suite=True),
    Binary("e2e.test", f"{_KUBERNETES}/test/e2e", test=True, for_suite=True),
)


@cache
def kubernetes_version() -> str:
    """The version of Kubernetes that go.mod pins, as v1.36.3."""
    return _module(_KUBERNETES)["Version"]


def module_folder(module: str) -> str:
    """Where Go keeps the unpacked source of a pinned module on this machine."""
    return _module(module)["Dir"]


def _module(name: str) -> dict[str, str]:
    subprocess.run(["go", "mod", "download", name], cwd=MODULES / "cluster", check=True)
    answer = subprocess.run(
        ["go", "list", "-m", "-json", name], cwd=MODULES / "cluster", check=True, stdout=subprocess.PIPE
    )
    found: dict[str, str] = json.loads(answer.stdout)
    return found


def _link_flags() -> str:
    """Versions for what calls itself v0.0.0-master otherwise, which nodes and suite compare, or for 1.20 (helm)."""
    version = kubernetes_version()
    major, minor, _ = version.removeprefix("v").split(".", 2)
    kubernetes, helm = "k8s.io/component-base/version.", "helm.sh/helm/v3/pkg/chartutil.k8sVersion"
    values = {
        f"{kubernetes}gitVersion": version,
        f"{kubernetes}gitMajor": major,
        f"{kubernetes}gitMinor": minor,
        f"{kubernetes}gitTreeState": "clean",
        f"{helm}Major": major,
        f"{helm}Minor": minor,
    }
    return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in values.items())])


def build(binary: Binary) -> None:
    """Builds one program, at low priority; Go's cache makes it quick where nothing changed."""
    target = BIN / binary.name
    target.parent.mkdir(parents=True, exist_ok=True)
    what = ["test", "-c", "-vet=off"] if binary.test else ["build"]
    command = ["nice", "-n", "15", "go", *what, "-trimpath", "-p", "2", "-ldflags", _link_flags(), "-o", str(target)]
    if binary.tags:
        command += ["-tags", binary.tags]
    environment = os.environ | {"CGO_ENABLED": "1" if binary.cgo else "0"}
    if subprocess.run([*command, binary.package], cwd=MODULES / binary.module, env=environment).returncode:
        raise ClusterError(f"{binary.name} did not build: the lines above are Go's")


def build_all(names: list[str]) -> None:
    """Builds the named programs (all, where none is named), with a line for each and the seconds it took."""
    unknown = set(names) - {binary.name for binary in BINARIES}
    if unknown:
        raise ClusterError(f"no program is called {', '.join(sorted(unknown))}: tools/cluster build --list shows them")
    for binary in BINARIES:
        if names and binary.name not in names:
            continue
        started = time.monotonic()
        build(binary)
        print(f"{binary.name}: {time.monotonic() - started:.0f} s", flush=True)


def require(for_suite: bool) -> None:
    """ClusterError if a program was not built yet: of those for the suite, or of all others."""
    absent = [binary.name for binary in BINARIES if binary.for_suite == for_suite and not (BIN / binary.name).exists()]
    if absent:
        raise ClusterError(f"not built yet: {', '.join(absent)}: run: tools/cluster build")
