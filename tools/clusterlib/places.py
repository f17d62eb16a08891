"""Where a cluster's files lie: one cluster to a machine, all of it under .cache.

Below `.cache/go/bin` are the programs that binaries.py built, below `.cache/cluster/images` the images that image.py
made: both stay from one cluster to the next. Below `.cache/cluster/run` is the running cluster, which `down` removes.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = (ROOT / ".cache").resolve()  # in a second work tree .cache is a link

BIN = CACHE / "go" / "bin"
MODULES = ROOT / "tests" / "kubernetes" / "go"  # each folder has a go.mod that pins what is built
IMAGES = CACHE / "cluster" / "images"

RUN = CACHE / "cluster" / "run"
KEYS = RUN / "keys"
LOGS = RUN / "logs"
KUBECONFIG = RUN / "admin.kubeconfig"


class ClusterError(Exception):
    """What went wrong and what to do, in one line: for the person at the command line."""
