"""What the service tells of a blob, and what a request to it may depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["CONTENT_HEADERS", "BlobProperties", "Condition", "CopyState", "SequenceNumber"]

CONTENT_HEADERS = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-md5",
    "content-type",
)
"""What is kept of a blob's content for those who download it: in answers by these names, in requests as x-ms-blob-*."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A request is carried out only while this holds, else it is refused with 412 ConditionNotMet.

    if_match: the blob's ETag, as it came; every change of pages, properties or metadata gives another one, lease
    operations do not. if_unmodified_since: an HTTP date; one in the future gives the request a last moment, as long as
    the blob changes after that. if_none_match: `*`, for a blob that is to be made and must not be there. One of these;
    all empty hold always.
    Source: https://learn.microsoft.com/rest/api/storageservices/specifying-conditional-headers-for-blob-service-operations
    """

    if_match: str = ""
    if_unmodified_since: str = ""
    if_none_match: str = ""

    def lines(self) -> str:
        """The header lines as sent."""
        named = (
            ("If-Match", self.if_match),
            ("If-None-Match", self.if_none_match),
            ("If-Unmodified-Since", self.if_unmodified_since),
        )
        return "".join(f"{name}:{value}\n" for name, value in named if value)


@dataclass(frozen=True, slots=True)
class SequenceNumber:
    """What Set Blob Properties answers: the sequence number that is in force, and the ETag that it gave the blob."""

    number: int
    etag: str


@dataclass(frozen=True, slots=True)
class CopyState:
    """Of the last Copy Blob to a blob, until that is modified. status: pending, success, failed or aborted.

    done, total: bytes, None if they are not told. description: why it failed, by the service's word; '' else.
    incremental: whether it is an Incremental Copy Blob, of whose destination only the snapshots can be read. copy_id:
    the service's name of it, for Abort Copy Blob.
    """

    status: str
    done: int | None
    total: int | None
    description: str
    incremental: bool = False
    copy_id: str = ""


@dataclass(frozen=True, slots=True)
class BlobProperties:
    """What Get Blob Properties tells. sequence_number is None unless it is a page blob; size in bytes.

    lease_state: available, leased, expired, breaking, broken, or '' (snapshots). metadata: names as they are spelled,
    though to the service case makes no difference; values as they came, each byte a character. copy: None if no copy to
    the blob is known. content: those of CONTENT_HEADERS that it has. lease_duration: infinite, fixed, or '' while it is
    not leased. created: as the service writes it; '' if it does not. tier: of a Premium account's; '' elsewhere.
    server: what the service calls itself.
    """

    size: int
    blob_type: str
    sequence_number: int | None
    lease_state: str
    metadata: dict[str, str]
    etag: str
    last_modified: str
    copy: CopyState | None = None
    content: Mapping[str, str] = field(default_factory=dict)
    lease_duration: str = ""
    created: str = ""
    tier: str = ""
    server: str = ""
