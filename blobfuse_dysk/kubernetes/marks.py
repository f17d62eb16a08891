"""What the driver writes into the metadata of blobs, so that it needs no memory of its own: any controller can go on.

    dysk_volume     on a volume: the name it was created by
    dysk_source     on a volume: the id of the volume or snapshot that it was made from
    dysk_snapshot   on a snapshot: the name it was created by (disks/snapshot.py's NAME)
    dysk_deleted    on a volume that was deleted while it has snapshots: since when. See csi/tombstones.py

Names in metadata come back in any capitals; values are printable ASCII.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote

__all__ = ["DELETED", "SOURCE", "VOLUME", "encoded", "mark"]

VOLUME = "dysk_volume"
SOURCE = "dysk_source"
DELETED = "dysk_deleted"


def encoded(text: str) -> str:
    """Any text as metadata can hold it."""
    return quote(text, safe="/?:=@ ").replace(" ", "%20")


def mark(metadata: Mapping[str, str], name: str) -> str:
    """A mark, decoded; '' if it is not there."""
    return next((unquote(value) for key, value in metadata.items() if key.lower() == name), "")
