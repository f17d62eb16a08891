"""How long a driver takes from a user's point of view: from kubectl apply to a pod that runs, and back to nothing."""

from __future__ import annotations

import json
import time

from tools.clusterlib import api, workloads
from tools.clusterlib.driver import Driver
from tools.clusterlib.node import Node

__all__ = ["measure"]

_ALONE, _TOGETHER = 5, 30
_WAIT_S = 600.0


def measure(driver: Driver) -> None:
    """How long a claim and a pod take until it runs and until all is gone: one at a time, then many on one node."""
    rounds = sorted(_round(driver, [f"alone-{number}"]) for number in range(_ALONE))
    print(f"  one volume, median of {_ALONE}: {_told(rounds[_ALONE // 2])}")
    print(f"  {_TOGETHER} at once on one node: {_told(_round(driver, [f'many-{n}' for n in range(_TOGETHER)]))}")


def _round(driver: Driver, names: list[str]) -> tuple[float, float, float]:
    """Seconds until all pods run, until all pods are gone, until all volumes are."""
    claims = [workloads.claim(name, driver.name, "1Gi") for name in names]
    pods = [workloads.sleeper(name, name, Node(1).name) for name in names]
    began = time.monotonic()
    api.apply(*claims, *pods)
    api.wait_until("the pods run", lambda: _phases() == ["Running"] * len(names), _WAIT_S)
    running = time.monotonic()
    api.kubectl("delete", "pods", "--selector", "app=measured", "--wait=false")
    api.wait_until("the pods are gone", lambda: not _phases(), _WAIT_S)
    gone = time.monotonic()
    api.kubectl("delete", "pvc", *names, "--wait=false")
    api.wait_until("no volume is left", lambda: not _volumes(names), _WAIT_S)
    return running - began, gone - running, time.monotonic() - gone


def _phases() -> list[str]:
    pods = json.loads(api.kubectl("get", "pods", "--selector", "app=measured", "-o", "json"))["items"]
    return [pod["status"].get("phase", "") for pod in pods]


def _volumes(of_claims: list[str]) -> list[str]:
    items = json.loads(api.kubectl("get", "pv", "-o", "json"))["items"]
    return [item["metadata"]["name"] for item in items if item["spec"]["claimRef"]["name"] in of_claims]


def _told(seconds: tuple[float, float, float]) -> str:
    running, gone, deleted = seconds
    return f"running after {running:.1f} s, gone after {gone:.1f} s, volume deleted after {deleted:.1f} s"
