"""Trees: whole installations of this program, found by their content.

An image of the drivers is one directory that works wherever it lies (packaging/container): interpreter, libraries,
tools, this package. A node's driver copies it onto its machine as TREES/ID and runs from there, and so does all that it
starts. What is attached goes on with the tree it has, whatever becomes of the image and its container.

    ID          the version and the beginning of the SHA-256 of MANIFEST
    MANIFEST    a line for each file, by path: mode, SHA-256, path; written when the image is made

So a tree that is there is the right one or damaged, never another one. States on disk, under a lock of TREES: nothing;
.new-ID-PID, being copied, which the next one to come takes away; ID, complete and durable, by a rename. One that does
not fit its manifest makes room for a good copy: it is renamed to .old-..., and removed when nothing runs from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from blobfuse_dysk.errors import DeviceError

__all__ = ["MANIFEST", "install", "remove_unused", "seal", "tree_id", "users_of", "verify"]

MANIFEST = "MANIFEST"
_VERSION = "VERSION"
_LOCK = ".lock"
_NEW, _OLD = ".new-", ".old-"
_DIGITS = 12  # of the hash, 48 bits: nobody chooses these


def seal(tree: Path, version: str) -> str:
    """Write the manifest of a tree that is complete; returns its ID."""
    (tree / _VERSION).write_text(f"{version}\n")
    (tree / MANIFEST).write_text("".join(f"{line}\n" for line in _lines(tree)))
    return tree_id(tree)


def tree_id(tree: Path) -> str:
    """What a sealed tree is called. Raises DeviceError if it is none."""
    try:
        version = (tree / _VERSION).read_text().strip()
        digest = hashlib.sha256((tree / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise DeviceError(
            f"{tree} is no installation to copy: {error.strerror}: {error.filename}",
            remedy="this program starts from the image of the drivers only",
        ) from None
    return f"{version}-{digest[:_DIGITS]}"


def verify(tree: Path) -> str | None:
    """What does not fit the manifest, in words; None if all does."""
    try:
        wanted = (tree / MANIFEST).read_text().splitlines()
        found = list(_lines(tree))
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    if wanted == found:
        return None
    odd = sorted({line.split(" ", 2)[-1] for line in set(wanted) ^ set(found)})
    return f"{odd[0]} and {len(odd) - 1} more are not as the manifest has them" if odd[1:] else f"{odd[0]} is damaged"


def install(source: Path, trees: Path) -> Path:
    """Copy a sealed tree to trees/ID, unless it is there and undamaged. Raises DeviceError; then nothing is half there.

    Returns trees/ID. What it is a copy of is checked as well: nothing of an image that did not arrive whole is started.
    """
    name = tree_id(source)
    target = trees / name
    try:
        with _locked(trees):
            for left in trees.glob(f"{_NEW}*"):
                shutil.rmtree(left)
            if target.exists():
                if verify(target) is None:
                    return target
                target.rename(trees / f"{_OLD}{name}-{os.getpid()}")
            new = trees / f"{_NEW}{name}-{os.getpid()}"
            _copy(source, new)
            if problem := verify(new):
                shutil.rmtree(new)
                raise DeviceError(f"the image's installation is damaged: {problem}", remedy="pull the image again")
            os.sync()  # what a node runs from is not to be half there after a power cut
            new.rename(target)
    except OSError as error:
        for left in trees.glob(f"{_NEW}*-{os.getpid()}"):
            shutil.rmtree(left, ignore_errors=True)
        raise DeviceError(
            f"cannot unpack the drivers into {trees}: {error.strerror}: {error.filename}",
            remedy="the node needs 200 MB there, and a file system that is not mounted noexec",
        ) from None
    return target


def remove_unused(trees: Path, keep: str, proc: Path = Path("/proc")) -> list[str]:
    """Remove the trees that no process runs from, but for `keep`; returns which were removed."""
    removed = []
    with _locked(trees):
        for tree in sorted(path for path in trees.iterdir() if path.is_dir() and path.name != keep):
            if tree.name.startswith(_NEW) or users_of(tree, proc):
                continue
            shutil.rmtree(tree)
            removed.append(tree.name)
    return removed


def users_of(tree: Path, proc: Path = Path("/proc")) -> list[int]:
    """Processes that have anything of a tree mapped, as whatever runs from it has. Source: proc_pid_maps(5)."""
    inside, found = f" {tree}/".encode(), []
    for process in proc.iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):  # it ended
                if inside in (process / "maps").read_bytes():
                    found.append(int(process.name))
    return found


def _lines(tree: Path) -> Iterator[str]:
    for path in sorted(tree.rglob("*")):
        found = path.lstat()
        relative = path.relative_to(tree)
        if str(relative) == MANIFEST or stat.S_ISDIR(found.st_mode):
            continue
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "is no plain file", str(path))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield f"{stat.S_IMODE(found.st_mode):04o} {digest} {relative}"


def _copy(source: Path, target: Path) -> None:
    """Files that are one file there (bin/*) are one here. Root's, and for everybody to read: workers do."""
    copied: dict[tuple[int, int], Path] = {}
    target.mkdir(mode=0o755)
    for path in sorted(source.rglob("*")):
        to, found = target / path.relative_to(source), path.lstat()
        if stat.S_ISDIR(found.st_mode):
            to.mkdir(mode=0o755)
        elif first := copied.get((found.st_dev, found.st_ino)):
            os.link(first, to)
        else:
            shutil.copy(path, to)
            copied[found.st_dev, found.st_ino] = to


@contextlib.contextmanager
def _locked(trees: Path) -> Iterator[None]:
    os.umask(0o022)
    trees.mkdir(mode=0o755, exist_ok=True)
    fd = os.open(trees / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


if __name__ == "__main__":
    print(seal(Path(sys.argv[1]), sys.argv[2]))
