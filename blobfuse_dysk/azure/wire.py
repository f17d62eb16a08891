"""The page blob part of Azure's REST interface, without any I/O: requests are built here and replies read.

A `Request` holds what a signer needs, in the form in which it needs it, so that signing is one string, one HMAC and
no sorting: the `x-ms-` headers stand as canonical lines (`name:value\\n`, sorted as the service sorts them), split
where `x-ms-date` belongs, because the date is the signer's. The same lines go onto the wire. `BlobRequests` makes
the requests for one blob and keeps what is constant for it; `signing` has the signers; `http` sends and receives.

Source: https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote, unquote

from blobfuse_dysk.azure.canonical import BLANKS, canonical_headers
from blobfuse_dysk.azure.properties import CONTENT_HEADERS, BlobProperties, Condition, CopyState, SequenceNumber
from blobfuse_dysk.disk import DiskAddress

__all__ = [
    "API_VERSION",
    "MOST_DIGITS",
    "MOST_PLAIN",
    "BlobProperties",
    "BlobRequests",
    "Buffer",
    "Condition",
    "DamagedAnswerError",
    "Extent",
    "PageList",
    "Reply",
    "Request",
    "SequenceNumber",
    "content_md5",
    "number",
    "parse_properties",
    "xml_text",
]

API_VERSION = "2021-12-02"  # page lists with markers need 2020-10-02; Azurite has known this one since 3.16
USER_AGENT = "blobfuse-dysk"
MOST_PLAIN = 64 << 10
"""Bytes that the body of a success may have, where the request is not for bytes or a list; most have none."""
MOST_LIST = 16 << 20
"""Bytes of a page list. The service sends 10,000 ranges at most, which are one MiB; a server that sends all that it has
is asked for less at a time (store/layers/pageblob.py)."""
MAX_CHECKSUM = 4 << 20  # bytes; the longest range that the service computes a checksum of

Buffer: TypeAlias = bytes | bytearray | memoryview
Extent: TypeAlias = tuple[int, int]
"""(offset, length) in bytes."""

MOST_DIGITS = 19  # 2^63 has as many, and int() refuses 4,300
_PROGRESS = re.compile(r"(\d{1,19})/(\d{1,19})", re.ASCII)  # x-ms-copy-progress
_METADATA = "x-ms-meta-"
_ENTITIES = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'"), ("&amp;", "&"))


class DamagedAnswerError(Exception):
    """An answer that says success but is not what the request must be answered with. Becomes a TransportError."""


class Request:
    """One request, not signed yet. Made by BlobRequests; the fields are what signers read.

    target: path as sent; query: as sent, without '?'. resource: the canonicalised resource, query included, without
    the leading account. before, after: canonical lines of the x-ms- headers that sort before and after x-ms-date.
    length: the body's bytes, 0 without one. md5: Content-MD5, or ''. common: constant header lines as sent.
    condition: when the request is to be carried out. sent: `after` as it goes onto the wire. most: bytes that the body
    of its success may have.
    """

    __slots__ = (
        "after",
        "before",
        "body",
        "common",
        "condition",
        "length",
        "md5",
        "method",
        "most",
        "query",
        "resource",
        "sent",
        "target",
    )

    def __init__(
        self,
        method: str,
        target: str,
        query: str,
        resource: str,
        before: str,
        after: str,
        common: str,
        body: Buffer | None = None,
        md5: str = "",
        condition: Condition | None = None,
        sent: str | None = None,
        most: int = MOST_PLAIN,
    ) -> None:
        self.condition = condition
        self.most = most
        self.method = method
        self.target = target
        self.query = query
        self.resource = resource
        self.before = before
        self.after = after
        self.sent = after if sent is None else sent
        self.common = common
        self.body = body
        self.length = 0 if body is None else len(body)
        self.md5 = md5

    def head(self, authorization: str = "", date: str = "", sas: str = "") -> bytes:
        """Return the request line and headers as sent. date goes into x-ms-date, sas behind the query, as they are."""
        query = f"{self.query}&{sas}" if self.query and sas else self.query or sas
        mark = "?" if query else ""
        lines = f"{self.before}x-ms-date:{date}\n{self.sent}" if date else self.before + self.sent
        if self.md5:
            lines += f"Content-MD5:{self.md5}\n"
        if self.condition is not None:
            lines += self.condition.lines()
        if self.method == "PUT":
            lines += f"Content-Length:{self.length}\n"
        if authorization:
            lines += f"Authorization:{authorization}\n"
        text = f"{self.method} {self.target}{mark}{query} HTTP/1.1\n{self.common}{lines}\n"
        return text.replace("\n", "\r\n").encode("latin-1")

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.target} {self.length} bytes>"


class Reply:
    """One whole answer. Headers are looked up in the bytes that came; few of them are ever asked for."""

    __slots__ = ("_lower", "body", "head", "status")

    def __init__(self, status: int, head: bytes, body: Buffer, lower: bytes | None = None) -> None:
        self.status = status
        self.head = head
        self.body = body
        self._lower = head.lower() if lower is None else lower

    def has(self, line: bytes) -> bool:
        """Whether this stands in the head; in lower case, with the line end before it."""
        return line in self._lower

    def header(self, name: str) -> str:
        """Return a header's value without surrounding blanks, or '' if the answer has none. name: in lower case."""
        found = self._lower.find(f"\r\n{name}:".encode())
        if found < 0:
            return ""
        start = found + len(name) + 3
        return self.head[start : self.head.find(b"\r\n", start)].decode("latin-1").strip(BLANKS)

    def headers(self) -> dict[str, str]:
        """Return all headers, names in lower case."""
        return {name.lower(): value for name, value in self._pairs()}

    def metadata(self) -> dict[str, str]:
        """Return the blob's metadata: names as they are spelled, values as they came (each byte a character)."""
        return {name[10:]: value for name, value in self._pairs() if name[:10].lower() == _METADATA}

    def _pairs(self) -> Iterator[tuple[str, str]]:
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            name, colon, value = line.partition(":")
            if colon:
                yield name, value.strip(BLANKS)

    def __repr__(self) -> str:
        return f"<Reply {self.status} {len(self.body)} bytes>"


@dataclass(frozen=True, slots=True)
class PageList:
    """A piece of a blob's page map: extents in bytes, sorted; marker is None when the list is complete."""

    ranges: list[Extent]
    marker: str | None


class BlobRequests:
    """Builds the requests for one page blob, or for one snapshot of it. address.endpoint must be filled in.

    Offsets and lengths are bytes. Nothing is checked that the service or the contract of the store checks.
    """

    def __init__(self, address: DiskAddress) -> None:
        assert address.endpoint is not None
        self.target = address.endpoint.path + address.path
        self.common = f"Host:{address.endpoint.authority}\nUser-Agent:{USER_AGENT}\n"
        self._snapshot = (("snapshot", quote(address.snapshot, safe="")),) if address.snapshot else ()
        self._query, self._resource = self._with_query()
        self._page, self._page_resource = self._with_query(("comp", "page"))
        self._version = f"x-ms-version:{API_VERSION}\n"

    def get_range(self, offset: int, length: int, *, checksum: bool = False) -> Request:
        """Get Blob for a range; with checksum (at most 4 MiB) the answer has the range's Content-MD5."""
        ask = "x-ms-range-get-content-md5:true\n" if checksum else ""
        after = f"x-ms-range:bytes={offset}-{offset + length - 1}\n{ask}{self._version}"
        return Request("GET", self.target, self._query, self._resource, "", after, self.common, most=length)

    def put_pages(
        self, offset: int, data: Buffer, *, lease_id: str | None, epoch: int | None, checksum: bool = False
    ) -> Request:
        """Put Page, update; with checksum the service checks the body's Content-MD5. data: in bytes, at most 4 MiB."""
        after = self._page_lines("update", offset, len(data), lease_id, epoch)
        md5 = content_md5(data) if checksum else ""
        return Request("PUT", self.target, self._page, self._page_resource, "", after, self.common, data, md5)

    def clear_pages(self, offset: int, length: int, *, lease_id: str | None, epoch: int | None) -> Request:
        """Put Page, clear: the range reads as zeros and is no longer allocated."""
        after = self._page_lines("clear", offset, length, lease_id, epoch)
        return Request("PUT", self.target, self._page, self._page_resource, "", after, self.common)

    def _page_lines(self, action: str, offset: int, length: int, lease_id: str | None, epoch: int | None) -> str:
        condition = "" if epoch is None else f"x-ms-if-sequence-number-eq:{epoch}\n"
        lease = "" if lease_id is None else f"x-ms-lease-id:{lease_id}\n"
        span = f"x-ms-range:bytes={offset}-{offset + length - 1}\n"
        return f"{condition}{lease}x-ms-page-write:{action}\n{span}{self._version}"

    def page_ranges(
        self, offset: int, length: int, *, marker: str | None, max_results: int | None, previous: str | None = None
    ) -> Request:
        """Get Page Ranges of [offset, offset + length). marker: where the list before this one ended.

        previous: the time of a snapshot; then the list is of what changed since.
        """
        query = [("comp", "pagelist")]
        if previous:
            query.append(("prevsnapshot", quote(previous, safe="")))
        if marker:
            query.append(("marker", quote(marker, safe="")))
        if max_results:
            query.append(("maxresults", str(max_results)))
        request = self.general("GET", query, {"x-ms-range": f"bytes={offset}-{offset + length - 1}"})
        request.most = MOST_LIST
        return request

    def properties(self) -> Request:
        """Get Blob Properties."""
        return self.general("HEAD", [], {})

    def raise_sequence_number(self, value: int, *, lease_id: str | None, condition: Condition | None = None) -> Request:
        """Set Blob Properties: the sequence number becomes the greater of its value and this one."""
        headers = {"x-ms-sequence-number-action": "max", "x-ms-blob-sequence-number": str(value)}
        return self.general("PUT", [("comp", "properties")], headers, lease_id, condition)

    def resize(self, size: int, *, lease_id: str | None, condition: Condition) -> Request:
        """Set Blob Properties: the blob gets `size` bytes; pages above are gone, new ones read as zeros."""
        return self.general(
            "PUT", [("comp", "properties")], {"x-ms-blob-content-length": str(size)}, lease_id, condition
        )

    def set_content(self, content: Mapping[str, str], *, lease_id: str | None, condition: Condition) -> Request:
        """Set Blob Properties: the headers of the content become these; the type cannot be missing."""
        wanted = {"content-type": "application/octet-stream", **content}
        headers = {f"x-ms-blob-{name}": value for name, value in wanted.items()}
        return self.general("PUT", [("comp", "properties")], headers, lease_id, condition)

    def lease(
        self,
        action: str,
        *,
        lease_id: str | None = None,
        condition: Condition | None = None,
        **fields: str | int | None,
    ) -> Request:
        """Lease Blob: acquire, renew, release or break; fields are the action's own (`proposed_lease_id=`...)."""
        headers = {f"x-ms-{name.replace('_', '-')}": str(value) for name, value in fields.items() if value is not None}
        return self.general("PUT", [("comp", "lease")], {"x-ms-lease-action": action, **headers}, lease_id, condition)

    def set_metadata(
        self,
        metadata: Mapping[str, str],
        *,
        lease_id: str | None,
        condition: Condition | None = None,
        as_sent: bool = False,
    ) -> Request:
        """Set Blob Metadata: replaces all of it. Names are C# identifiers, which keep their case.

        Values are what a header may hold (else ValueError). as_sent: sign them as they are, as the Azure SDKs do; the
        reference wants each piece of white space outside of quotes signed as one blank.
        """
        headers = {_METADATA + name: value for name, value in metadata.items()}
        return self.general("PUT", [("comp", "metadata")], headers, lease_id, condition, as_sent=as_sent)

    def snapshot(
        self,
        metadata: Mapping[str, str],
        *,
        lease_id: str | None,
        condition: Condition | None = None,
        as_sent: bool = False,
    ) -> Request:
        """Snapshot Blob. metadata: of the snapshot, in place of the blob's; see set_metadata, also for as_sent."""
        headers = {_METADATA + name: value for name, value in metadata.items()}
        return self.general("PUT", [("comp", "snapshot")], headers, lease_id, condition, as_sent=as_sent)

    def general(
        self,
        method: str,
        query: list[tuple[str, str]],
        headers: Mapping[str, str],
        lease_id: str | None = None,
        condition: Condition | None = None,
        *,
        as_sent: bool = False,
    ) -> Request:
        """Any request about the blob that has no body. query: parameters and their values, encoded."""
        target, resource = self._with_query(*query)
        wanted = {**headers, "x-ms-version": API_VERSION}
        if lease_id is not None:
            wanted["x-ms-lease-id"] = lease_id
        before, after, sent = canonical_headers(wanted, as_sent=as_sent)
        return Request(method, self.target, target, resource, before, after, self.common, None, "", condition, sent)

    def _with_query(self, *query: tuple[str, str]) -> tuple[str, str]:
        """Return the query as sent and the canonicalised resource: path, then decoded parameters, sorted by name."""
        pairs = sorted((*query, *self._snapshot))
        sent = "&".join(f"{name}={value}" for name, value in pairs)
        return sent, self.target + "".join(f"\n{name}:{unquote(value)}" for name, value in pairs)


def content_md5(data: Buffer) -> str:
    """The Content-MD5 of a body, base64. A checksum against damage, not a signature."""
    return binascii.b2a_base64(hashlib.md5(data, usedforsecurity=False).digest(), newline=False).decode()


def parse_properties(reply: Reply) -> BlobProperties:
    """Read the answer of Get Blob Properties. Raises DamagedAnswerError when a size or number is none, or no ETag came.

    Without an ETag a condition on it would be none, and what rests on it would be done whatever the blob is then.
    """
    headers = reply.headers()
    told = headers.get("x-ms-blob-sequence-number")
    size, sequence_number = number(headers.get("content-length", "")), number(told or "")
    if size is None or (told is not None and sequence_number is None):
        raise DamagedAnswerError("properties without a readable number")
    if not headers.get("etag"):
        raise DamagedAnswerError("properties without an ETag")
    return BlobProperties(
        size=size,
        blob_type=headers.get("x-ms-blob-type", ""),
        sequence_number=sequence_number,
        lease_state=headers.get("x-ms-lease-state", ""),
        metadata=reply.metadata(),
        etag=headers["etag"],
        last_modified=headers.get("last-modified", ""),
        lease_duration=headers.get("x-ms-lease-duration", ""),
        created=headers.get("x-ms-creation-time", ""),
        tier=headers.get("x-ms-access-tier", ""),
        server=headers.get("server", ""),
        copy=_copy_state(headers),
        content={name: headers[name] for name in CONTENT_HEADERS if headers.get(name)},
    )


def _copy_state(headers: Mapping[str, str]) -> CopyState | None:
    status = headers.get("x-ms-copy-status", "")
    if not status:
        return None
    progress = _PROGRESS.fullmatch(headers.get("x-ms-copy-progress", ""))
    done, total = (int(progress[1]), int(progress[2])) if progress else (None, None)
    incremental = headers.get("x-ms-incremental-copy", "").lower() == "true"
    description, copy_id = headers.get("x-ms-copy-status-description", ""), headers.get("x-ms-copy-id", "")
    return CopyState(status, done, total, description, incremental, copy_id)


def xml_text(body: bytes, tag: str) -> str:
    """Return the text of the first element of that name, entities resolved; '' if there is none or it is empty."""
    start = body.find(f"<{tag}>".encode())
    end = body.find(f"</{tag}>".encode(), start)
    if start < 0 or end < 0:
        return ""
    text = body[start + len(tag) + 2 : end].decode("utf-8", "replace")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    return text


def number(text: str) -> int | None:
    """The whole number that a header's value is; None if it is anything else, or larger than any that is meant."""
    return int(text) if len(text) <= MOST_DIGITS and text.isascii() and text.isdigit() else None
