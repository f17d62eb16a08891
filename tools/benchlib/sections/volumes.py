"""What the CSI driver's calls take, as sidecars and a kubelet make them, and what volumes in use cost their node.

Controller and node are processes of their own, the service takes 2 ms; each volume is a new, blank disk, on which
ext4 is made when it is staged. `up` is NodeStageVolume and NodePublishVolume, `down` NodeUnpublishVolume and
NodeUnstageVolume, in one time. `at once` is a kubelet that has all pods to start at the same moment, and asks again
where too many file systems are being made: all volumes are in use by the end of it, and memory is measured then; that
of holders, workers and monitors once more after a rest, when workers have given back what mkfs made them take.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import grpc

from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from tests.kubernetes import ask
from tests.kubernetes.client import Client
from tests.kubernetes.stack import Driver, Stack, stack
from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.processes import processes_of, pss_bytes
from tools.benchlib.tables import column

__all__ = ["SECTION", "quantiles"]

_SERVICE_MS = 2.0
_SIZE = 32 << 30  # bytes
_CALL_S = 600.0
_AGAIN = (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)
# Of a kubelet, after a call that failed. Source: kubernetes, pkg/util/goroutinemap/exponentialbackoff.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 122.0


@dataclass(frozen=True, slots=True)
class _Cluster:
    """A driver, and the one who calls it."""

    stack: Stack
    controller: Client
    node: Client
    drivers: Sequence[Driver]

    def create(self, name: str) -> str:
        request = ask.create(self.stack, name, _SIZE)
        volume_id: str = self.controller.CreateVolume(request, timeout=_CALL_S).volume.volume_id
        return volume_id

    def up(self, volume_id: str) -> None:
        staged, target = self._paths(volume_id)
        staged.mkdir(parents=True, exist_ok=True)
        asked: dict[str, Any] = {
            "volume_id": volume_id,
            "volume_capability": ask.mount(fs_type="ext4"),
            "secrets": self.stack.secrets,
        }
        asked["staging_target_path"] = str(staged)
        _ask(self.node.NodeStageVolume, pb.NodeStageVolumeRequest(**asked))
        _ask(self.node.NodePublishVolume, pb.NodePublishVolumeRequest(**asked, target_path=str(target)))

    def down(self, volume_id: str) -> None:
        staged, target = (str(path) for path in self._paths(volume_id))
        unpublish = pb.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=target)
        _ask(self.node.NodeUnpublishVolume, unpublish)
        unstage = pb.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=staged)
        _ask(self.node.NodeUnstageVolume, unstage)

    def delete(self, volume_id: str) -> None:
        _ask(self.controller.DeleteVolume, ask.delete(self.stack, volume_id))

    def memory(self) -> tuple[int, list[int]]:
        """Bytes (PSS) of all holders, workers and monitors, and of each process of the driver."""
        own = [driver.process.pid for driver in self.drivers]
        attached = [pid for pid in processes_of(self.stack.dirs.root) if pid not in own]
        return pss_bytes(attached), [pss_bytes([pid]) for pid in own]

    def _paths(self, volume_id: str) -> tuple[Path, Path]:
        place = self.stack.dirs.root / "kubelet" / volume_id.rpartition("/")[2]
        return place / "staged", place / "published"


def _ask(call: Callable[..., Any], request: Any) -> None:
    """Again where others' mkfs, or too many calls, are in the way, in a kubelet's rhythm."""
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            call(request, timeout=_CALL_S)
            return
        except grpc.RpcError as error:
            if not isinstance(error, grpc.Call) or error.code() not in _AGAIN:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _measure(bench: Bench) -> None:
    count = bench.plan.volumes
    with stack(latency_ms=_SERVICE_MS) as made:
        drivers = [made.controller(), made.start("node")]
        with contextlib.closing(drivers[0].client()) as controller, contextlib.closing(drivers[1].client()) as node:
            cluster = _Cluster(made, controller, node, drivers)
            bench.add(OURS, {"load": "one after the other", "volumes": count}, _one_by_one(cluster, count))
            bench.add(OURS, {"load": "at once", "volumes": count}, _together(cluster, count, bench.plan.volumes_rest_s))


def _one_by_one(cluster: _Cluster, count: int) -> dict[str, float]:
    """Each is created, used and deleted before the next."""
    create, up, down = [], [], []
    for number in range(count):
        began = time.monotonic()
        volume_id = cluster.create(f"one-{number}")
        create.append(time.monotonic() - began)
        up.append(_timed(cluster.up, volume_id))
        down.append(_timed(cluster.down, volume_id))
        cluster.delete(volume_id)
    return {**quantiles("create", create), **quantiles("up", up), **quantiles("down", down)}


def _together(cluster: _Cluster, count: int, rest_s: float) -> dict[str, float]:
    """All are staged and published at the same time, and let go at the same time; *_all_s is until the last."""
    with ThreadPoolExecutor(count) as pool:
        volumes = [cluster.create(f"all-{number}") for number in range(count)]
        began = time.monotonic()
        up = list(pool.map(lambda each: _timed(cluster.up, each), volumes))
        in_use = time.monotonic()
        attached, (controller, node) = cluster.memory()
        time.sleep(rest_s)
        at_rest, _ = cluster.memory()
        rested = time.monotonic()
        down = list(pool.map(lambda each: _timed(cluster.down, each), volumes))
        ended = time.monotonic()
        list(pool.map(cluster.delete, volumes))
    return {
        **quantiles("up", up),
        "up_all_s": in_use - began,
        **quantiles("down", down),
        "down_all_s": ended - rested,
        "pss_mib": attached / count / 2**20,
        "rest_pss_mib": at_rest / count / 2**20,
        "node_pss_mib": node / 2**20,
        "controller_pss_mib": controller / 2**20,
    }


def quantiles(what: str, seconds: Sequence[float]) -> dict[str, float]:
    """The median, and the time that 99 of 100 do not exceed."""
    return {f"{what}_s": statistics.median(seconds), f"{what}_p99_s": sorted(seconds)[ceil(0.99 * len(seconds)) - 1]}


def _timed(call: Callable[[str], None], volume_id: str) -> float:
    began = time.monotonic()
    call(volume_id)
    return time.monotonic() - began


SECTION = Section(
    "volumes",
    f"CSI: volumes of {_SIZE >> 30} GiB with ext4, {_SERVICE_MS:g} ms of service time",
    (
        column("volumes", "load"),
        column("number", "volumes"),
        column("create, median", "create_s", "ms"),
        column("p99", "create_p99_s", "ms"),
        column("stage and publish, median", "up_s", "ms"),
        column("p99", "up_p99_s", "ms"),
        column("until the last", "up_all_s", "s"),
        column("unpublish and unstage, median", "down_s", "ms"),
        column("p99", "down_p99_s", "ms"),
        column("until the last", "down_all_s", "s"),
        column("PSS of a volume's processes", "pss_mib", "MiB"),
        column("after a rest", "rest_pss_mib", "MiB"),
        column("of the node's driver", "node_pss_mib", "MiB"),
        column("of the controller", "controller_pss_mib", "MiB"),
    ),
    _measure,
)
