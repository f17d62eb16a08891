"""How a volume of this node is, in one line for people, and in the few words that Kubernetes has for it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from blobfuse_dysk.attached import Attachment

__all__ = ["Condition", "condition_of"]

_RESENDS = (6, 9)  # Linux from which I/O goes on after a worker's death; source: device/kernel/fuse.py


@dataclass(frozen=True, slots=True)
class Condition:
    """kind: None where all is well. reason: one word for programs. message: for people."""

    kind: Literal["degraded", "inaccessible", "data loss"] | None
    reason: str
    message: str


def condition_of(attached: Attachment, lost: str | None = None, kernel: str | None = None) -> Condition:
    """lost: why a write was lost, if one was (state.json). kernel: its release, if not this machine's."""
    notes = []
    if attached.restarts:
        notes.append(f"worker restarts: {attached.restarts}")
    version = re.match(r"(\d+)\.(\d+)", kernel or os.uname().release)
    if version and (int(version[1]), int(version[2])) < _RESENDS:
        notes.append("on this kernel, older than 6.9, all its I/O fails if its worker dies")
    tail = f" ({'; '.join(notes)})" if notes else ""
    if attached.is_lost:
        what = attached.trouble or f"{attached.name} is {attached.state}"
        return Condition("inaccessible", attached.state, f"{what}; of a pod's volume: delete the pod{tail}")
    if lost:
        return Condition("data loss", "write-lost", f"{attached.trouble}{tail}")
    if attached.trouble:
        return Condition("degraded", attached.state, f"{attached.trouble}{tail}")
    return Condition(None, attached.state, f"attached as {attached.device}{tail}")
