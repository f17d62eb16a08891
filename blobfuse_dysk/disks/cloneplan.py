"""What a clone is to become: its size, the place of its VHD footer, what is written on it; decided without asking."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

from blobfuse_dysk.azure.marks import CloneMark, of_others
from blobfuse_dysk.disk import MAX_SIZE, DiskAddress, format_size
from blobfuse_dysk.errors import DyskError, UsageError
from blobfuse_dysk.vhd import FOOTER_SIZE, Layout, VhdFooter, footer

__all__ = ["Plan", "check_names", "check_resumed", "moved_footer", "plan"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """mark: what is written on the clone while it is not complete. metadata: what it has in the end."""

    mark: CloneMark
    metadata: Mapping[str, str]

    @property
    def grows(self) -> bool:
        return self.mark.size != self.mark.source_size


def check_names(source: DiskAddress, target: DiskAddress) -> None:
    """Raise UsageError if a clone cannot have this name."""
    if target.snapshot:
        raise UsageError("a clone cannot be a snapshot", remedy="name a new disk as TARGET, without ?snapshot=")
    if replace(source, snapshot=None).key == target.key:
        raise UsageError(
            f"{target} cannot be a clone of itself", remedy="choose another name as TARGET; a disk is never overwritten"
        )


def plan(
    source: DiskAddress,
    blob_size: int,
    hidden: VhdFooter | None,
    size: int | None,
    metadata: Mapping[str, str],
    given: Mapping[str, str],
) -> Plan:
    """Plan a clone of `source`, a blob of blob_size bytes that may end with a VHD footer.

    size: of the clone's device, None for the same. metadata: the source's; what is ours in it is not true of the clone,
    and is left out. given: in addition. Raises UsageError.
    """
    layout = hidden.layout(blob_size) if hidden is not None else None
    device = blob_size - FOOTER_SIZE if layout else blob_size
    wanted = device if size is None else size
    if wanted < device:
        raise UsageError(
            f"a clone of {source} has at least its size, {format_size(device)} ({device} bytes)",
            remedy="leave --size out, or ask for more",
        )
    if layout is Layout.BEHIND and wanted % _MIB and wanted != device:
        up = -(-wanted // _MIB)
        raise UsageError(f"{source} is a VHD, which is a whole number of MiB", remedy=f"use --size {up}MiB")
    target_size = wanted + FOOTER_SIZE if layout else wanted
    if target_size > MAX_SIZE:
        raise UsageError("a VHD has a footer of 512 bytes, so 8 TiB is too large", remedy="use --size 8191GiB")
    mark = CloneMark(source.key, False, uuid.uuid4().hex, target_size, blob_size, layout is not None)
    return Plan(mark, {**of_others(metadata), **given})


def check_resumed(mark: CloneMark, source: DiskAddress, target: DiskAddress, size: int | None) -> None:
    """Raise DyskError unless the unfinished clone `target` is of this source, and to have this size (None: any)."""
    same = mark.source == source.key
    if mark.temporary and not same:
        same = mark.source.partition("?")[0] == source.key
    if not same:
        raise DyskError(
            f"{target} exists already: it is an unfinished clone of {mark.source}",
            remedy=f"finish that, or give it up: dyskctl clone --abort {mark.source} {target}",
        )
    device = mark.size - FOOTER_SIZE if mark.vhd else mark.size
    if size is not None and size != device:
        raise DyskError(
            f"{target} is an unfinished clone already, of {format_size(device)} ({device} bytes)",
            remedy="finish it without --size and resize it then, or give it up with --abort",
        )


def moved_footer(hidden: VhdFooter, before: int, size: int) -> bytes:
    """The footer for a blob of `size` bytes, from the one that it had in a blob of `before` bytes: the same disk's."""
    said = size if hidden.layout(before) is Layout.INSIDE else size - FOOTER_SIZE
    return footer(said, uuid=hidden.uuid, created=hidden.created)
