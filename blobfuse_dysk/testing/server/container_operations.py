"""Containers and lists: create, delete, properties, List Containers, List Blobs, account information.

Source: https://learn.microsoft.com/rest/api/storageservices/create-container, .../list-blobs, .../list-containers2
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from .answers import Answer, Refusal, http_date
from .context import Context
from .state import Blob, Container

__all__ = [
    "create_container",
    "delete_container",
    "get_account_information",
    "get_container_properties",
    "list_blobs",
    "list_containers",
]

_NAME = re.compile(r"(?=.{3,63}\Z)(?:\$root|\$logs|[a-z0-9](?:-?[a-z0-9])*)\Z")
MAX_RESULTS = 5000
_INCLUDED = {"metadata", "snapshots", "copy", "uncommittedblobs"}  # of the last there is never one
_LISTED_HEADERS = ("Content-Type", "Content-Encoding", "Content-Language", "Content-MD5", "Cache-Control")


def create_container(context: Context) -> Answer:
    """Make a container."""
    target = context.request.target
    if not _NAME.match(target.container):
        raise Refusal("InvalidResourceName")
    containers = context.state.accounts[target.account]
    if target.container in containers:
        raise Refusal("ContainerAlreadyExists")
    container = containers[target.container] = Container(target.container, context.now)
    container.metadata = context.request.metadata()
    context.state.save(context.now)
    return Answer(201, container.version_headers())


def delete_container(context: Context) -> Answer:
    """Remove a container with all its blobs."""
    target = context.request.target
    context.state.remove_container(target.account, target.container)
    context.state.save(context.now)
    return Answer(202)


def get_container_properties(context: Context) -> Answer:
    """Properties and metadata."""
    container = context.container
    headers = container.version_headers()
    headers.update({f"x-ms-meta-{name}": value for name, value in container.metadata.items()})
    headers.update({"x-ms-lease-status": "unlocked", "x-ms-lease-state": "available"})
    headers.update({"x-ms-has-immutability-policy": "false", "x-ms-has-legal-hold": "false"})
    return Answer(200, headers)


def get_account_information(context: Context) -> Answer:
    """What kind of account this is; a kind that has page blobs."""
    return Answer(
        200, {"x-ms-sku-name": context.config.sku, "x-ms-account-kind": "StorageV2", "x-ms-is-hns-enabled": "false"}
    )


def list_containers(context: Context) -> Answer:
    """All containers by name; prefix, marker, maxresults, include=metadata."""
    query = context.request.target.query
    prefix, marker, limit, include = _list_options(query)
    containers = context.state.accounts[context.request.target.account]
    names = sorted(name for name in containers if name.startswith(prefix) and name >= marker)
    items = []
    for name in names[:limit]:
        container = containers[name]
        properties = (
            f"<Last-Modified>{http_date(container.modified)}</Last-Modified><Etag>{escape(container.etag)}</Etag>"
            "<LeaseStatus>unlocked</LeaseStatus><LeaseState>available</LeaseState>"
        )
        metadata = _metadata(container.metadata) if "metadata" in include else ""
        items.append(
            f"<Container><Name>{escape(name)}</Name><Properties>{properties}</Properties>{metadata}</Container>"
        )
    return _list_answer(context, f"<Containers>{''.join(items)}</Containers>", names[limit : limit + 1], "")


def list_blobs(context: Context) -> Answer:
    """Blobs by name; prefix, delimiter, marker, maxresults, include=metadata,snapshots."""
    query, container = context.request.target.query, context.container
    prefix, marker, limit, include = _list_options(query)
    delimiter = query.get("delimiter", "")
    entries = list(_entries(container, prefix, delimiter, "snapshots" in include))
    entries = [entry for entry in entries if entry[0] >= marker]
    items = [
        _blob_item(blob, context.now, "metadata" in include, "copy" in include)
        if blob is not None
        else f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>"
        for name, blob in entries[:limit]
    ]
    # A marker is a position in the order of `_entries`, so that a blob and its snapshots may be on two answers.
    rest = [name for name, _ in entries[limit : limit + 1]]
    extra = f"<Delimiter>{escape(delimiter)}</Delimiter>" if delimiter else ""
    return _list_answer(context, f"<Blobs>{''.join(items)}</Blobs>", rest, extra)


def _entries(
    container: Container, prefix: str, delimiter: str, with_snapshots: bool
) -> Iterator[tuple[str, Blob | None]]:
    """(sort key, blob) in order: the snapshots of a blob, oldest first, then the blob; None for a common prefix."""
    last_prefix = None
    for name in sorted(container.blobs):
        if not name.startswith(prefix):
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        if cut >= 0:
            common = name[: cut + len(delimiter)]
            if common != last_prefix:
                last_prefix = common
                yield common, None
            continue
        blob = container.blobs[name]
        if with_snapshots:
            for taken in sorted(blob.snapshots):
                yield f"{name}\x01{taken}", blob.snapshots[taken]
        yield f"{name}\x02" if with_snapshots else name, blob


def _blob_item(blob: Blob, now: float, with_metadata: bool, with_copy: bool) -> str:
    fields = {
        "Creation-Time": http_date(blob.created),
        "Last-Modified": http_date(blob.modified),
        "Etag": blob.etag.strip('"'),
        "Content-Length": str(blob.size),
        **{name: blob.content_headers[name] for name in _LISTED_HEADERS if name in blob.content_headers},
        "BlobType": blob.kind,
        "ServerEncrypted": "true",
    }
    if blob.pages is not None:
        fields["x-ms-blob-sequence-number"] = str(blob.sequence_number)
    lease = blob.lease.headers(now)
    fields["LeaseStatus"], fields["LeaseState"] = lease["x-ms-lease-status"], lease["x-ms-lease-state"]
    if "x-ms-lease-duration" in lease:
        fields["LeaseDuration"] = lease["x-ms-lease-duration"]
    if with_copy and blob.copy:
        fields["CopyId"], fields["CopyStatus"] = blob.copy["x-ms-copy-id"], blob.copy["x-ms-copy-status"]
    properties = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
    snapshot = f"<Snapshot>{blob.snapshot}</Snapshot>" if blob.snapshot else ""
    metadata = _metadata(blob.metadata) if with_metadata else ""
    return f"<Blob><Name>{escape(blob.name)}</Name>{snapshot}<Properties>{properties}</Properties>{metadata}</Blob>"


def _metadata(metadata: dict[str, str]) -> str:
    items = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in metadata.items())
    return f"<Metadata>{items}</Metadata>" if items else "<Metadata/>"


def _list_options(query: dict[str, str]) -> tuple[str, str, int, set[str]]:
    """(prefix, marker, most results, include)."""
    try:
        limit = int(query.get("maxresults") or MAX_RESULTS)
    except ValueError:
        raise Refusal("InvalidQueryParameterValue") from None
    if limit < 1:
        raise Refusal("OutOfRangeQueryParameterValue")
    include = set(filter(None, query.get("include", "").lower().split(",")))
    if not include <= _INCLUDED:
        raise Refusal("NotImplemented", f"This test server does not list {min(include - _INCLUDED)}.")
    try:
        marker = base64.b64decode(query.get("marker", ""), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise Refusal("OutOfRangeInput") from None
    return query.get("prefix", ""), marker, min(limit, MAX_RESULTS), include


def _list_answer(context: Context, items: str, rest: list[str], extra: str) -> Answer:
    target = context.request.target
    scheme = "https" if context.request.secure else "http"
    host = context.request.header(b"host") or ""
    endpoint = quoteattr(f"{scheme}://{host}/{target.account if target.path_style else ''}")
    container = f" ContainerName={quoteattr(target.container)}" if target.container else ""
    given = "".join(
        f"<{tag}>{escape(target.query[name])}</{tag}>"
        for name, tag in (("prefix", "Prefix"), ("marker", "Marker"), ("maxresults", "MaxResults"))
        if target.query.get(name)
    )
    # A marker is opaque to clients: here the sort key of the next entry.
    marker = "<NextMarker/>"
    if rest:
        marker = f"<NextMarker>{base64.urlsafe_b64encode(rest[0].encode()).decode()}</NextMarker>"
    body = (
        '<?xml version="1.0" encoding="utf-8"?>'
        f"<EnumerationResults ServiceEndpoint={endpoint}{container}>{given}{extra}{items}{marker}</EnumerationResults>"
    )
    return Answer(200, {"Content-Type": "application/xml"}, body.encode())
