"""The images of the cluster: the pause container, the sidecars, tools for test pods, PostgreSQL, and the suite's own.

All are named in a registry that does not exist, cluster.test: nothing is ever pulled. Kubernetes' own tests name theirs
by a list of registries (environment variable KUBE_TEST_REPO_LIST) and by versions in their source: the built
suite is asked for them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tools.clusterlib import roots
from tools.clusterlib.binaries import module_folder
from tools.clusterlib.image import Image, write_archive
from tools.clusterlib.places import BIN, IMAGES, ClusterError

__all__ = ["REGISTRY", "SIDECARS", "cluster_archive", "registries_file", "suite_archive"]

REGISTRY = "cluster.test"
SIDECARS = (
    "csi-provisioner",
    "csi-attacher",
    "csi-resizer",
    "csi-snapshotter",
    "snapshot-controller",
    "livenessprobe",
    "node-driver-registrar",
)
_TOOLS = (
    "bash",
    "busybox-static",
    "e2fsprogs",
    "fio",
    "iproute2",
    "libcap2-bin",
    "mount",
    "netcat-openbsd",
    "procps",
    "util-linux",
    "xfsprogs",
)
_POSTGRES = ("postgresql",)
_POSTGRES_PATH = "PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What the suite's images are here: it wants a shell with busybox's commands, agnhost, and a web server that stays.
_SUITE = ("busybox", "agnhost", "nginx", "glibc-dns-testing")


def _pause() -> Path:
    """Kubernetes' own pause program, compiled from its module."""
    source = Path(module_folder("k8s.io/kubernetes")) / "build" / "pause" / "linux" / "pause.c"
    target = BIN / "pause"
    if not target.exists():
        subprocess.run(["cc", "-Os", "-static", "-o", str(target), str(source)], check=True)
    return target


def _scratch(name: str, *more: str) -> Image:
    """An image of one static program."""
    return Image((f"{REGISTRY}/{name}:1", *more), files=((BIN / name, f"/{name}"),), entrypoint=(f"/{name}",))


def registries_file() -> Path:
    """The list of registries for KUBE_TEST_REPO_LIST: every one is ours."""
    keys = ("gcRegistry", "promoterE2eRegistry", "gcEtcdRegistry", "sigStorageRegistry", "dockerLibraryRegistry")
    file = IMAGES / "registries.yaml"
    IMAGES.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{key}: {REGISTRY}\n" for key in keys))
    return file


def _suite_names() -> dict[str, tuple[str, ...]]:
    """The names that the built suite gives to the images of _SUITE, by image."""
    answer = subprocess.run(
        [BIN / "e2e.test", "--list-images"],
        env=os.environ | {"KUBE_TEST_REPO_LIST": str(registries_file())},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    names = [name for name in answer.stdout.split() if name.startswith(f"{REGISTRY}/")]
    return {image: tuple(name for name in names if name.startswith(f"{REGISTRY}/{image}:")) for image in _SUITE}


def cluster_archive() -> Path:
    """The archive of what every cluster has, made anew if a part of it is newer."""
    tools = roots.debian_root("tools", _TOOLS)
    postgres = roots.debian_root("postgres", _POSTGRES)
    driver = ((BIN / "standin-driver", "/standin-driver"),)
    images = [
        Image((f"{REGISTRY}/pause:1",), files=((_pause(), "/pause"),), entrypoint=("/pause",)),
        Image((f"{REGISTRY}/tools:1",), root=tools, command=("/bin/bash",)),
        Image((f"{REGISTRY}/postgres:1",), root=postgres, environment=(_POSTGRES_PATH,)),
        Image((f"{REGISTRY}/standin:1",), root=tools, files=driver, entrypoint=("/standin-driver",)),
        *(_scratch(name) for name in SIDECARS),
    ]
    return _archive("cluster", images)


def suite_archive() -> Path:
    """The archive of what Kubernetes' own tests run in their pods, under the names that the built suite has for it."""
    tools, names = roots.debian_root("tools", _TOOLS), _suite_names()
    agnhost = ((BIN / "agnhost", "/agnhost"),)
    server = ("test-webserver",)
    images = [
        Image(names["busybox"] + names["glibc-dns-testing"], root=tools, command=("/bin/bash",)),
        Image(names["agnhost"], root=tools, files=agnhost, entrypoint=("/agnhost",)),
        Image(names["nginx"], root=tools, files=agnhost, entrypoint=("/agnhost",), command=server),
    ]
    return _archive("suite", images)


def _archive(name: str, images: list[Image]) -> Path:
    archive, description = IMAGES / f"{name}.tar", IMAGES / f"{name}.images"
    parts = {file for image in images for file, _ in image.files} | {image.root for image in images if image.root}
    absent = [str(part) for part in parts if not part.exists()]
    if absent:
        raise ClusterError(f"images need {', '.join(absent)}: run: tools/cluster build")
    wanted = repr(images)
    fresh = archive.exists() and description.exists() and description.read_text() == wanted
    if not fresh or any(part.stat().st_mtime > archive.stat().st_mtime for part in parts):
        write_archive(images, archive)
        description.write_text(wanted)
    return archive
