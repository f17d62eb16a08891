"""A node: containerd, kubelet and kube-proxy in a space of their own, with their folders where hosts have them."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tools.clusterlib import cgroups, control, leftovers, network
from tools.clusterlib.places import BIN, KEYS, LOGS, RUN, ClusterError
from tools.clusterlib.space import Space

_SOCKET = "/run/containerd/containerd.sock"
_DEADLINE_S = 60.0
# What a node keeps on its disk, and where: the usual paths, which CSI drivers have in their manifests.
FOLDERS = {
    "kubelet": "/var/lib/kubelet",
    "containerd": "/var/lib/containerd",
    "cni": "/var/lib/cni",
    "logs": "/var/log/pods",
    "links": "/var/log/containers",
    "dysk": "/var/lib/dysk",
}
PLUGINS = "/var/lib/kubelet/volumeplugins"  # where the kubelet looks for FlexVolume drivers
SHARED = "/var/lib/shared"  # one folder that all nodes see: what the stand-in driver has for a storage service


@dataclass(frozen=True)
class Node:
    """Node `number` of the cluster, counted from 1."""

    number: int

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def space(self) -> Space:
        return Space(self.name)

    @property
    def disk(self) -> Path:
        """What stays when the node loses power."""
        return RUN / f"{self.name}-disk"

    @property
    def cgroup(self) -> str:
        """The parent of the kubelet's cgroups, in every hierarchy."""
        return f"/cluster-{self.name}"

    def start(self) -> None:
        """Makes the node's space, links it, and starts its services; also after kill(), as a boot."""
        control_pid = control.CONTROL.pid
        assert control_pid is not None, "the control plane is made first"
        binds = {self.disk / folder: target for folder, target in FOLDERS.items()}
        pid = self.space.start(binds | {RUN / "shared": SHARED})
        network.join(control_pid, pid, self.number)
        self._write_configs()
        cgroups.create(self.cgroup)
        self.space.spawn("containerd", [BIN / "containerd", "--config", self.disk / "containerd.toml"])
        self._wait_for_containerd()  # a kubelet that finds none ends
        self.start_kubelet()
        self.space.spawn("kube-proxy", [BIN / "kube-proxy", "--config", self.disk / "kube-proxy.json"])

    def start_kubelet(self) -> None:
        """Starts the kubelet by itself: it is stopped and started again with pods running."""
        self.space.spawn(
            "kubelet",
            [
                BIN / "kubelet",
                f"--kubeconfig={control.node_kubeconfig(self.name)}",
                f"--config={self.disk}/kubelet.json",
                f"--hostname-override={self.name}",
                f"--node-ip={network.node_address(self.number)}",
            ],
        )

    def kill(self) -> None:
        """As a loss of power: nothing is unmounted or told. Cgroups and loop devices go, as with a kernel."""
        pid = self.space.pid
        devices = leftovers.devices_of(pid) if pid else set()
        self.space.kill()
        cgroups.remove(self.cgroup)
        leftovers.detach_loops(devices, self.disk)

    def ctr(self, *words: str | Path) -> list[str]:
        """The command for ctr on this node, in the kubelet's namespace of containerd."""
        return self.space.enter(BIN / "ctr", "--address", _SOCKET, "--namespace", "k8s.io", *words)

    def _wait_for_containerd(self) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while subprocess.run(self.ctr("version"), capture_output=True).returncode:
            if time.monotonic() > deadline:
                raise ClusterError(f"containerd of {self.name} does not answer: see {LOGS}/{self.name}-containerd.log")
            time.sleep(0.5)

    def _write_configs(self) -> None:
        networks = self.disk / "networks"
        networks.mkdir(exist_ok=True)
        (networks / "10-pods.conflist").write_text(network.cni_config(self.number))
        (self.disk / "containerd.toml").write_text(_containerd_config(networks))
        (self.disk / "resolv.conf").write_text("")  # there is no name service
        (self.disk / "kubelet.json").write_text(json.dumps(self._kubelet_config(), indent=1))
        (self.disk / "kube-proxy.json").write_text(json.dumps(self._proxy_config(), indent=1))

    def _kubelet_config(self) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(KEYS / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(KEYS / f"{self.name}.crt"),
            "tlsPrivateKeyFile": str(KEYS / f"{self.name}.key"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.cgroup,
            "failCgroupV1": False,  # what this machine has
            "failSwapOn": False,
            "oomScoreAdj": 0,  # to lower it takes CAP_SYS_RESOURCE, which this machine does not give
            "resolvConf": str(self.disk / "resolv.conf"),
            "volumePluginDir": PLUGINS,
            # The machine's disk is shared with whatever else is on it: how full it is says nothing about this node.
            "evictionHard": {"memory.available": "100Mi"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "maxPods": 250,
            "serializeImagePulls": False,
            "shutdownGracePeriod": "0s",
        }

    def _proxy_config(self) -> dict[str, object]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(RUN / "kube-proxy.kubeconfig")},
            "hostnameOverride": self.name,
            "mode": "iptables",
            "clusterCIDR": network.POD_RANGE,
            # The limits belong to the whole machine.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }


def _containerd_config(networks: Path) -> str:
    return f"""version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
address = "{_SOCKET}"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "cluster.test/pause:1"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true  # to lower it takes CAP_SYS_RESOURCE
disable_apparmor = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{BIN}/cni"]
conf_dir = "{networks}"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{BIN}/containerd-shim-runc-v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{BIN}/runc"
SystemdCgroup = false
"""
