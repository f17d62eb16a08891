"""Root directories of Debian packages as tar files, by mmdebstrap from the sources of this machine's apt."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tools.clusterlib.places import IMAGES, ClusterError

_SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_SUITE = "bookworm"


def debian_root(name: str, packages: tuple[str, ...]) -> Path:
    """The tar of a root with these packages; made once, and again when the list changes."""
    target, list_file = IMAGES / f"{name}.root", IMAGES / f"{name}.packages"
    wanted = "\n".join((_SUITE, *packages))
    if target.exists() and list_file.exists() and list_file.read_text() == wanted:
        return target
    if not shutil.which("mmdebstrap"):
        raise ClusterError("there is no mmdebstrap: run: apt-get install mmdebstrap")
    IMAGES.mkdir(parents=True, exist_ok=True)
    sources = [str(_SOURCES)] if _SOURCES.exists() else []
    left_out = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    new = target.with_suffix(".tar")
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--mode=root",
        f"--include={','.join(packages)}",
        *left_out,
    ]
    if subprocess.run(["nice", "-n", "15", *command, _SUITE, str(new), *sources]).returncode:
        raise ClusterError(f"the root of image {name} was not made: the lines above are mmdebstrap's")
    new.rename(target)
    list_file.write_text(wanted)
    return target
