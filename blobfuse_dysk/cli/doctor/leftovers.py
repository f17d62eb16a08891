"""A check of the doctor: what killed processes left on this machine."""

from __future__ import annotations

from blobfuse_dysk import environment
from blobfuse_dysk.cli.doctor.findings import Finding, ok, warn
from blobfuse_dysk.device.attacher.leftovers import leftovers as find

__all__ = ["leftovers"]


def leftovers() -> Finding:
    """Directories, loop devices and names of devices without an attachment."""
    found = find(str(environment.run_dir().resolve()), str(environment.dev_dir()))
    if not found:
        return ok("leftovers", "none")
    return warn("leftovers", "; ".join(what for what, _ in found), "; ".join(remedy for _, remedy in found))
