"""The addresses of the cluster, and the links between its network namespaces. Nothing of it is reached from outside.

The control plane's namespace has a bridge with a leg to every node, and the service address of the API on its loopback
interface; a node routes the other nodes' pods over that bridge. Pods hang on a bridge of their node (CNI plugin bridge,
addresses by host-local). Services have addresses on every node by kube-proxy. There is no cluster DNS.
"""

from __future__ import annotations

import json
import subprocess

SERVICE_RANGE = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"  # the first of the range: what pods are told as KUBERNETES_SERVICE_HOST
CONTROL_ADDRESS = "10.97.0.1"
API_PORT = 443
POD_RANGE = "10.98.0.0/16"
BRIDGE = "nodes"


def node_address(number: int) -> str:
    """The address of node `number`, counted from 1."""
    return f"10.97.0.{10 + number}"


def pod_range(number: int) -> str:
    """Where the pods of node `number` have their addresses."""
    return f"10.98.{number}.0/24"


def ip(*words: str) -> None:
    """Runs ip; its own message is shown if it fails."""
    subprocess.run(["ip", *words], check=True)


def prepare_control(pid: int) -> None:
    """The bridge and the API's service address, in the network namespace of process `pid`."""
    inside = ("nsenter", "-t", str(pid), "-n", "ip")
    for words in (
        f"addr add {SERVICE_ADDRESS}/32 dev lo",
        f"link add {BRIDGE} type bridge",
        f"addr add {CONTROL_ADDRESS}/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ):
        subprocess.run([*inside, *words.split()], check=True)


def join(control_pid: int, node_pid: int, number: int) -> None:
    """Links the network namespace of a node with the control plane's, and routes pods of the other nodes there."""
    leg = f"node{number}"
    ip("link", "add", leg, "netns", str(control_pid), "type", "veth", "peer", "name", "eth0", "netns", str(node_pid))
    control = ("nsenter", "-t", str(control_pid), "-n", "ip")
    node = ("nsenter", "-t", str(node_pid), "-n", "ip")
    for command in (
        (*control, "link", "set", leg, "master", BRIDGE, "up"),
        (*node, "addr", "add", f"{node_address(number)}/24", "dev", "eth0"),
        (*node, "link", "set", "eth0", "up"),
        (*node, "route", "add", "default", "via", CONTROL_ADDRESS),
        (*control, "route", "replace", pod_range(number), "via", node_address(number)),
    ):
        subprocess.run(command, check=True)


def cni_config(number: int) -> str:
    """The network of node `number`'s pods, as containerd reads it."""
    return json.dumps(
        {
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": pod_range(number)}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
    )
