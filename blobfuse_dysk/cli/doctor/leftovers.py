"""A check of the doctor: what killed processes left on this machine."""

from __future__ import annotations

from blobfuse_dysk import environment
from blobfuse_dysk.cli.doctor.findings import Finding, ok, warn
from blobfuse_dysk.device.attacher.leftovers import elsewhere
from blobfuse_dysk.device.attacher.leftovers import leftovers as find

__all__ = ["leftovers"]


def leftovers() -> Finding:
    """Directories, loop devices and names of devices without an attachment."""
    run = str(environment.run_dir().resolve())
    found = find(run, str(environment.dev_dir()))
    if not found:
        others = elsewhere(run)
        seen = f"; {', '.join(others)}: disks that the host or another container has attached" if others else ""
        return ok("leftovers", f"none{seen}")
    return warn("leftovers", "; ".join(what for what, _ in found), "; ".join(remedy for _, remedy in found))
