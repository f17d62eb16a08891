"""The images of the cluster: the pause container, the sidecars, tools for test pods, PostgreSQL, and the suite's own.

All are named in a registry that does not exist, cluster.test: nothing is ever pulled. Kubernetes' own tests name theirs
by a list of registries (environment variable KUBE_TEST_REPO_LIST) and by versions in their source; suite_images() asks
the built suite for them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tools.clusterlib import roots
from tools.clusterlib.binaries import module_folder
from tools.clusterlib.image import Image, write_archive
from tools.clusterlib.places import BIN, IMAGES, ClusterError

__all__ = ["REGISTRY", "SIDECARS", "make_all", "registries_file"]

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


def suite_images() -> dict[str, tuple[str, ...]]:
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


def _catalogue() -> dict[str, Image]:
    tools = roots.debian_root("tools", _TOOLS)
    agnhost = ((BIN / "agnhost", "/agnhost"),)
    images = {
        "pause": Image((f"{REGISTRY}/pause:1",), files=((_pause(), "/pause"),), entrypoint=("/pause",)),
        "tools": Image((f"{REGISTRY}/tools:1",), root=tools, command=("/bin/bash",)),
        "postgres": Image(
            (f"{REGISTRY}/postgres:1",), root=roots.debian_root("postgres", _POSTGRES), environment=(_POSTGRES_PATH,)
        ),
        "standin": Image(
            (f"{REGISTRY}/standin:1",),
            root=tools,
            files=((BIN / "standin-driver", "/standin-driver"),),
            entrypoint=("/standin-driver",),
        ),
        **{name: _scratch(name) for name in SIDECARS},
    }
    if (BIN / "e2e.test").exists():
        names = suite_images()
        images["agnhost"] = Image(names["agnhost"], root=tools, files=agnhost, entrypoint=("/agnhost",))
        images["busybox"] = Image(names["busybox"] + names["glibc-dns-testing"], root=tools, command=("/bin/bash",))
        images["nginx"] = Image(
            names["nginx"], root=tools, files=agnhost, entrypoint=("/agnhost",), command=("test-webserver",)
        )
    return images


def make_all() -> list[Path]:
    """Writes every image whose parts are newer than its archive; returns the archives."""
    archives = []
    for name, image in _catalogue().items():
        archive = IMAGES / f"{name}.tar"
        parts = [file for file, _ in image.files] + ([image.root] if image.root else [])
        absent = [str(part) for part in parts if not part.exists()]
        if absent:
            raise ClusterError(f"image {name} needs {', '.join(absent)}: run: tools/cluster build")
        named = IMAGES / f"{name}.names"
        wanted = repr(image)
        fresh = archive.exists() and named.exists() and named.read_text() == wanted
        if not fresh or any(part.stat().st_mtime > archive.stat().st_mtime for part in parts):
            write_archive(image, archive)
            named.write_text(wanted)
        archives.append(archive)
    return archives
