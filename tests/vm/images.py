"""Two images of the Kubernetes drivers on a drive: the tree that packaging/container/build makes, and a later one."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from blobfuse_dysk.kubernetes.host.tree import MANIFEST, seal, tree_id

__all__ = ["IN_IMAGE", "Images", "make_images"]

IN_IMAGE = "opt/dysk"
_VERSION = "VERSION"
_MOUNT_POINTS = ("proc", "sys", "dev", "run", "tmp", "var/tmp", "etc")
_SPARE, _SPARE_KIB = 1.3, 8 << 10  # of the drive's file system, for what is not files' content


@dataclass(frozen=True, slots=True)
class Images:
    """drive: a file system with image-1 and image-2, as containers' roots. trees: the IDs of what they hold."""

    drive: Path
    trees: tuple[str, str]


def make_images(tree: Path, work: Path) -> Images:
    """Two images of a tree, the second under a later version."""
    images, drive = work / "images", work / "images.img"
    first, second = (images / f"image-{number}" for number in (1, 2))
    for root in (first, second):
        for point in _MOUNT_POINTS:
            (root / point).mkdir(parents=True)
    shutil.copytree(tree, first / IN_IMAGE)
    shutil.copytree(first / IN_IMAGE, second / IN_IMAGE, copy_function=os.link)
    version = (tree / _VERSION).read_text().strip()
    for name in (_VERSION, MANIFEST):
        (second / IN_IMAGE / name).unlink()  # else it would be written in the first image, too
    trees = tree_id(first / IN_IMAGE), seal(second / IN_IMAGE, f"{version}+1")
    used = subprocess.run(["du", "-sk", images], check=True, capture_output=True, text=True).stdout.split()[0]
    drive.touch()
    os.truncate(drive, int(int(used) * _SPARE) + _SPARE_KIB << 10)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", images, drive], check=True)
    shutil.rmtree(images)
    return Images(drive, trees)
