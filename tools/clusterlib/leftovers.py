"""Loop devices that nobody serves any more: no namespace frees them when a space is killed. Found by their backing."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path


def devices_of(pid: int) -> set[str]:
    """The device numbers (MAJ:MIN) of all FUSE file systems mounted in the PID namespace whose first process is `pid`.

    A loop device tells the device number of its backing file; its path means something in one mount namespace only.
    """
    namespace = _link(Path(f"/proc/{pid}/ns/pid"))
    found: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        if namespace is None or _link(process / "ns" / "pid") != namespace:
            continue
        with contextlib.suppress(OSError):
            for line in (process / "mountinfo").read_text().splitlines():
                fields, _, kind = line.partition(" - ")
                if kind.startswith("fuse"):
                    found.add(fields.split()[2])
    return found


def detach_loops(devices: set[str], folder: Path) -> None:
    """Detaches the loop devices over files on these file systems, and those over files in a folder."""
    answer = subprocess.run(
        ["losetup", "--list", "--json", "--output", "NAME,BACK-MAJ:MIN,BACK-FILE"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    for found in json.loads(answer.stdout or "{}").get("loopdevices", ()):
        backing, file = found["back-maj:min"] or "", found["back-file"] or ""
        if backing.strip() in devices or file.startswith(f"{folder}/"):  # the numbers come padded with blanks
            subprocess.run(["losetup", "--detach", found["name"]], check=True)


def _link(path: Path) -> Path | None:
    try:
        return path.readlink()
    except OSError:
        return None
