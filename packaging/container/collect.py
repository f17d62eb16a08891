"""Collects a tree's native part out of an unpacked Debian root: programs, the libraries that they need, Python's own.

    collect.py ROOT LAUNCHER TREE       programs, standard library, certificates
    collect.py --libraries ROOT TREE    at the end: what all that is in the tree by now needs, Python's packages too

    TREE/bin/NAME           the launcher (launcher.c), once for each program
    TREE/native/bin/NAME    the program
    TREE/native/lib         the C library's loader as ld.so, and every library that anything in the tree needs
    TREE/lib/python3.x      Python's standard library, where Python looks for it from TREE/bin/python3 on
    TREE/etc                certificate authorities; the user whom workers become, where a machine does not have it
    TREE/share/doc          the licences of all of it

Which libraries are needed is what the root's own loader says of each program and module (ld.so(8): --list).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# What Python modules leave out of it: tests, editors, what makes windows, and the installer of packages.
_LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data", "venv"
)
# For a disk's whole life: making, checking, growing and mounting file systems. A node may lack any of these.
_PROGRAMS = (
    *("mkfs.ext4", "e2fsck", "resize2fs", "tune2fs", "mkfs.xfs", "xfs_growfs", "xfs_repair", "mkfs.btrfs", "btrfs"),
    *("blkid", "wipefs", "losetup", "fsfreeze"),
    # Names of ours: scripts of Python's beside them, as native/bin/NAME.py (packaging/container/build).
    *("dyskctl", "dysk-csi", "dysk-node", "dysk-flexvolume"),
)
_SCRIPTS = "dysk"
_DIRECTORIES = ("usr/sbin", "usr/bin", "sbin", "bin")
# A number for the user whom workers become (device/kernel/privileges.py): above those that people and packages get,
# below those that systemd gives to services while they run. Source: https://systemd.io/UIDS-GIDS
_UID = 60_986
_PASSWD = f"_dysk:x:{_UID}:{_UID}:Azure page blob disks:/nonexistent:/usr/sbin/nologin\n"


def main() -> None:
    if sys.argv[1] == "--libraries":
        _libraries(*(Path(word).resolve() for word in sys.argv[2:4]))
        return
    root, launcher, tree = (Path(word).resolve() for word in sys.argv[1:4])
    for directory in ("bin", "native/bin", "native/lib", "lib", "etc", "share/doc"):
        (tree / directory).mkdir(parents=True)
    python = next(path.name for path in (root / "usr/bin").glob("python3.*") if path.name[8:].isdigit())
    first = tree / "bin" / "python3"
    shutil.copy(launcher, first)
    first.chmod(0o755)
    shutil.copy(root / "usr/bin" / python, tree / "native/bin/python3")
    for name in _PROGRAMS:
        os.link(first, tree / "bin" / name)
        if not name.startswith(_SCRIPTS):
            shutil.copyfile(_find(root, name), tree / "native/bin" / name)
            (tree / "native/bin" / name).chmod(0o755)
    shutil.copytree(root / "usr/lib" / python, tree / "lib" / python, ignore=_LEFT_OUT, symlinks=False)
    _libraries(root, tree)  # Python is to run from here on
    authorities = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    (tree / "etc/ca-certificates.crt").write_bytes(b"".join(path.read_bytes() for path in authorities))
    (tree / "etc/passwd").write_text(_PASSWD)
    for licence in sorted((root / "usr/share/doc").glob("*/copyright")):
        shutil.copy(licence, tree / "share/doc" / f"{licence.parent.name}.copyright")


def _find(root: Path, name: str) -> Path:
    for directory in _DIRECTORIES:
        if (path := root / directory / name).exists():
            return path.resolve()
    raise SystemExit(f"collect.py: the root has no {name}")


def _libraries(root: Path, tree: Path) -> None:
    """Those that programs and Python's modules need. The loader searches the root, the tree, and no other place."""
    where = [path for path in root.glob("**/*-linux-gnu") if path.is_dir() and path.parent.name == "lib"]
    loader = next(path for directory in where for path in directory.glob("ld-linux-*.so.*"))
    searched = ":".join(map(str, where))
    programs = (path for path in (tree / "native/bin").iterdir() if path.suffix != ".py")
    wanted = [*programs, *(path for path in (tree / "lib").rglob("*.so*") if path.is_file())]
    found: dict[str, Path] = {}
    for path in wanted:
        listed = subprocess.run(
            [loader, "--library-path", searched, "--list", path], capture_output=True, text=True, check=True
        )
        for line in listed.stdout.splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            if arrow and rest.startswith("not found"):
                raise SystemExit(f"collect.py: {path} needs {name}, which the root does not have")
            if arrow and not Path(name).name.startswith("ld-linux"):
                found[Path(name).name] = path_found = Path(rest.rpartition(" (")[0])
                if not (path_found.is_relative_to(root) or path_found.is_relative_to(tree)):
                    raise SystemExit(f"collect.py: {path} needs {name}, which the root does not have")
    for name, path in sorted(found.items()):
        if path.is_relative_to(root):  # else a wheel brought it along, and its modules find it there
            shutil.copy(path, tree / "native/lib" / name)
    target = tree / "native/lib/ld.so"
    shutil.copy(loader, target)
    target.chmod(0o755)


main()
