"""kubectl as the administrator of the cluster, and waiting for what it tells."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.clusterlib.places import BIN, KUBECONFIG, ClusterError

Manifest = dict[str, Any]


def kubectl(*words: str | Path, stdin: str | None = None, timeout_s: float = 120.0) -> str:
    """What kubectl prints. ClusterError carries its last line if it fails."""
    command = [str(BIN / "kubectl"), "--kubeconfig", str(KUBECONFIG), *map(str, words)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise ClusterError(f"kubectl {' '.join(map(str, words))}: {reason[-1] if reason else done.returncode}")
    return done.stdout


def apply(*manifests: Manifest) -> None:
    """Creates or changes these objects."""
    items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(items))


def get(kind: str, name: str, namespace: str = "default") -> Manifest:
    """One object as the API has it."""
    found: Manifest = json.loads(kubectl("get", kind, name, "-n", namespace, "-o", "json"))
    return found


def delete(kind: str, *names: str, namespace: str = "default", timeout_s: float = 120.0) -> None:
    """Deletes objects and waits until they are gone; those that are not there are no error."""
    words = ("delete", kind, *names, "-n", namespace, "--ignore-not-found", f"--timeout={timeout_s:.0f}s")
    kubectl(*words, timeout_s=timeout_s + 10)


def wait_until(what: str, condition: Callable[[], bool], timeout_s: float = 120.0) -> float:
    """Asks twice a second until the condition holds; returns the seconds it took.

    What kubectl refuses meanwhile counts as not yet.
    """
    started, last = time.monotonic(), ""
    while time.monotonic() < started + timeout_s:
        try:
            if condition():
                return time.monotonic() - started
        except ClusterError as error:
            last = f" (last: {error})"
        time.sleep(0.5)
    raise ClusterError(f"not within {timeout_s:.0f} s: {what}{last}")


def pod_is(phase: str, name: str, namespace: str = "default") -> Callable[[], bool]:
    """Whether a pod is in this phase; `Running` means that its containers are ready too."""

    def holds() -> bool:
        status = get("pod", name, namespace)["status"]
        ready = all(container["ready"] for container in status.get("containerStatuses", ()))
        return bool(status["phase"] == phase and (ready or phase != "Running"))

    return holds
