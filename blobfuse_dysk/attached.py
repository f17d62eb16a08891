"""An attachment as it is shown: how it is, since when, why, and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from blobfuse_dysk import environment
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.statefile import Lease, StateFile, StateSeen

__all__ = ["Attachment", "describe", "once_detached"]

_FIRST = re.compile(r"(?:unmount and )?detach (?:it(?: here)?|the disk)(?:, then|[;,](?: and)?| and) ")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A disk attached on this node. Sizes in bytes.

    device: /dev/loopN; empty while it is being attached. disk: ACCOUNT/CONTAINER/BLOB[?snapshot=TIME].
    state: one of the words that device/ipc/statefile.py explains. lease: {id, epoch, seconds}, None for a read-only
    attachment. since: ISO 8601, UTC. link: /dev/dysk/NAME. by_blob:
    /dev/dysk/by-blob/ACCOUNT/CONTAINER/BLOB. detail: why it is in that state, or that a write was lost,
    and what to do. state_since: when it came into the state, None where nobody wrote it down.
    """

    name: str
    device: str
    disk: str
    size: int
    read_only: bool
    state: StateSeen
    mountpoints: list[str]
    lease: Lease | None
    cache: str
    vhd: bool
    since: str
    sector_size: int
    link: str
    by_blob: str
    endpoint: str
    detail: str | None
    restarts: int
    partitions: list[str]
    state_since: str | None = None

    @property
    def is_lost(self) -> bool:
        """Whether it can never be written to again."""
        return self.state in ("fenced", "failed", "dead")

    @property
    def trouble(self) -> str | None:
        """Which state it is in, since when, why, and what to do; None where all is well."""
        if self.state in ("attached", "starting") and self.detail is None:
            return None
        since = f" since {self.state_since}" if self.state_since else ""
        return f"{self.name} is {self.state}{since}" + (f": {self.detail}" if self.detail else "")


def describe(fields: StateFile) -> Attachment:
    """What state.json says, and the machine beside it."""
    from blobfuse_dysk.device.kernel import devlink, loop
    from blobfuse_dysk.device.kernel.usage import mountpoints

    device = fields["device"] or ""
    clear = f"unmount it, then: dyskctl detach {fields['name']}, and check its file system where it is attached next"
    alive = state.alive(fields["holder"])
    return Attachment(
        name=fields["name"],
        device=device,
        disk=fields["disk"],
        size=fields["size"],
        read_only=fields["read_only"],
        state=fields["state"] if alive else "dead",
        mountpoints=mountpoints(device) if device else [],
        lease=fields["lease"],
        cache=fields["cache"],
        vhd=fields["vhd"],
        since=fields["since"],
        sector_size=fields["sector_size"],
        link=str(environment.dev_dir() / fields["name"]),
        by_blob=devlink.stable_path(str(environment.dev_dir()), fields["disk"]),
        endpoint=fields["endpoint"],
        detail=_detail(fields) if alive else f"its holder process is gone, so all I/O fails: {clear}",
        restarts=fields["restarts"],
        partitions=loop.partitions(device) if device else [],
        state_since=fields.get("state_since") if alive else None,
    )


def _detail(fields: StateFile) -> str | None:
    """Why it is in its state; where all is well again, that a write was lost before, which no later one makes good."""
    if fields["detail"] or not fields["lost"]:
        return fields["detail"]
    return f"a write was lost: {fields['lost']}: unmount it and check its file system (fsck)"


def once_detached(detail: str) -> str:
    """The `detail` of an attachment that is gone: what to do without the first step, which is done."""
    return _FIRST.sub("", detail)
