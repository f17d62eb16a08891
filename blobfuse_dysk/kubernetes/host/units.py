"""The units of a tree: what has systemd hold attachments for a program that it did not install itself.

They are made in /run/systemd/system, so that none is left after a reboot: dysk-holder-ID@.service, the package's unit
with this tree's interpreter, beside those of other trees; and what a machine's own package would have brought along
for its shutdown, where it did not. Sources: systemd.unit(5), "Unit File Load Path"; packaging/systemd has the texts.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from blobfuse_dysk.device.attacher import systemd
from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.mount.tools import find_tool, run_tool

__all__ = ["install_units", "remove_units"]

_SURVIVES_SINCE = 255  # systemd; see packaging/systemd/survive.conf
_SHUTDOWN, _MOUNTS = "dysk-shutdown.service", "run-dysk-.mount.d"
_PACKAGES = ("usr/lib/systemd/system", "lib/systemd/system")


def install_units(tree: Path, root: Path = Path("/")) -> None:
    """Make the units of a tree, which this program runs from; nothing where systemd does not run the machine.

    Raises DeviceError.
    """
    if not (root / "run/systemd/system").is_dir():
        return
    texts, units = tree / "share/systemd", root / "run/systemd/system"
    words = {
        "@PYTHON@": f"{tree}/bin/python3",
        "@PACKAGE@": str(Path(systemd.SERVICE).parents[2]),
        "@DYSKCTL@": f"{tree}/bin/dyskctl",
    }
    holder = systemd.template()
    try:
        _write(units / holder, (texts / "dysk-holder@.service").read_text(), words)
        if _version() >= _SURVIVES_SINCE:
            _write(units / f"{holder}.d/survive.conf", (texts / "survive.conf").read_text(), words)
        if not any((root / directory / _SHUTDOWN).exists() for directory in _PACKAGES):
            _write(units / _SHUTDOWN, (texts / _SHUTDOWN).read_text(), words)
            for part in (texts / _MOUNTS).iterdir():
                _write(units / _MOUNTS / part.name, part.read_text(), words)
    except OSError as error:
        raise DeviceError(f"cannot make the units: {error.strerror}: {error.filename}") from None
    systemd.systemctl("daemon-reload")
    systemd.systemctl("start", _SHUTDOWN)


def remove_units(tree: str, root: Path = Path("/")) -> None:
    """Remove the unit of a tree that was removed."""
    units = root / "run/systemd/system"
    holder = systemd.template(tree)
    (units / holder).unlink(missing_ok=True)
    shutil.rmtree(units / f"{holder}.d", ignore_errors=True)


def _write(path: Path, text: str, words: dict[str, str]) -> None:
    path.parent.mkdir(exist_ok=True)
    for word, value in words.items():
        text = text.replace(word, value)
    path.write_text(text)


def _version() -> int:
    found = re.match(r"systemd (\d+)", run_tool([find_tool("systemctl"), "--version"]).stdout)
    return int(found[1]) if found else 0
