"""Puts the FlexVolume driver where the kubelet looks for it: DIRECTORY/azure~dysk/dysk.

That is a script which starts the installed program, so an upgrade of the package is one of the driver. The kubelet
watches the directory and may start what it sees at once, so the script comes there whole, by a rename; names that begin
with a dot it passes over. Source: Kubernetes, pkg/volume/flexvolume/probe.go.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from blobfuse_dysk.errors import DeviceError, NotFoundError, UsageError

__all__ = ["DIRECTORIES", "install"]

PROGRAM = "dysk-flexvolume"
# Where AKS has it (--volume-plugin-dir), and the kubelet's own default.
DIRECTORIES = ("/etc/kubernetes/volumeplugins", "/usr/libexec/kubernetes/kubelet-plugins/volume/exec")
_PLACES = ("/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin")


def install(directories: Sequence[str] = ()) -> list[str]:
    """Install it into these, or into those of DIRECTORIES that there are; return the paths. Raises DyskError."""
    if "" in directories:  # of a variable that is not set; it would be the current directory
        raise UsageError("--directory is empty", remedy="name the kubelet's --volume-plugin-dir")
    wanted = list(directories) or [each for each in DIRECTORIES if Path(each).is_dir()]
    if not wanted:
        raise NotFoundError(
            f"there is neither {' nor '.join(DIRECTORIES)}",
            remedy="name the kubelet's --volume-plugin-dir with --directory",
        )
    program = _program()
    return [_install(Path(each), program) for each in wanted]


def _program() -> Path:
    for place in (Path(sys.executable).parent, *map(Path, _PLACES)):
        if (found := place / PROGRAM).is_file():
            return found
    raise NotFoundError(f"{PROGRAM} is not installed", remedy="install blobfuse-dysk on this node")


def _install(directory: Path, program: Path) -> str:
    driver = directory / "azure~dysk" / "dysk"
    new = driver.with_name(".dysk")
    try:
        driver.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(f'#!/bin/sh\nexec {shlex.quote(str(program))} "$@"\n')
        new.chmod(0o755)
        new.rename(driver)
    except OSError as error:
        raise DeviceError(
            f"{driver} cannot be written: {error.strerror}", remedy="run it as root, on the node"
        ) from None
    return str(driver)
