"""How a volume of this node is, in one line for people, and in the few words that Kubernetes has for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blobfuse_dysk.attached import Attachment

__all__ = ["Condition", "condition_of"]


@dataclass(frozen=True, slots=True)
class Condition:
    """kind: None where all is well. reason: one word for programs. message: for people."""

    kind: Literal["degraded", "inaccessible", "data loss"] | None
    reason: str
    message: str


def condition_of(attached: Attachment, lost: str | None = None) -> Condition:
    """lost: why a write was lost, if one was (state.json)."""
    tail = f" (worker restarts: {attached.restarts})" if attached.restarts else ""
    if attached.is_lost:
        what = attached.trouble or f"{attached.name} is {attached.state}"
        return Condition("inaccessible", attached.state, f"{what}; of a pod's volume: delete the pod{tail}")
    if lost:
        return Condition("data loss", "write-lost", f"{attached.trouble}{tail}")
    if attached.trouble:
        return Condition("degraded", attached.state, f"{attached.trouble}{tail}")
    return Condition(None, attached.state, f"attached as {attached.device}{tail}")
