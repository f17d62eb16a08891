"""What takes its content from a URL: Copy Blob and its abort, Incremental Copy Blob, Put Page From URL.

The source is a blob or snapshot of this server, whatever host the URL names.
Source: https://learn.microsoft.com/rest/api/storageservices/copy-blob, .../abort-copy-blob, .../incremental-copy-blob,
.../put-page-from-url
"""

from __future__ import annotations

import uuid
from urllib.parse import urlsplit

from .answers import Answer, Refusal, http_date
from .auth import authorize
from .blob_operations import existing, put
from .checksums import check_checksums
from .conditions import check_conditions
from .context import Context
from .http import Headers
from .leases import parse_lease_id
from .page_operations import MAX_PAGE_WRITE, blob_to_change, changed, page_range
from .request import Request, parse_range, parse_target
from .state import Blob, State
from .tiers import set_tier_of_new

__all__ = ["abort_copy_blob", "copy_blob", "incremental_copy_blob", "put_page_from_url", "set_copy"]

_STATUSES = ("pending", "success", "failed", "aborted")


def copy_blob(context: Context) -> Answer:
    """Copy a blob or snapshot: at once, or, if the server is told so (Config.copies), as one that takes its time.

    Until such a copy has ended the blob has the source's size and no content.
    """
    request = context.request
    metadata = request.metadata()
    source = _source(context, own_account=True)
    old = existing(context)
    pending = context.config.copies == "pending"
    pages = None
    if source.pages is not None:
        new_path = context.state.new_path()
        pages = context.state.new_pages(source.size) if pending else source.pages.copy(new_path)
    blob = Blob(request.target.blob, source.kind, context.now, pages, source.content)
    blob.copied_from = source
    blob.sequence_number = source.sequence_number
    blob.metadata = metadata or dict(source.metadata)
    blob.content_headers = dict(source.content_headers)
    blob.copy = _copy_headers(request)
    set_tier_of_new(context.config, request, blob, context.now)
    set_copy(context.state, blob, context.config.copies, 0 if pending else source.size, context.now)
    answer = put(context, blob, old, 202)
    answer.headers.update({name: blob.copy[name] for name in ("x-ms-copy-id", "x-ms-copy-status")})
    return answer


def abort_copy_blob(context: Context) -> Answer:
    """End a pending copy: the blob has no bytes then, and its metadata."""
    request = context.request
    if request.required(b"x-ms-copy-action").lower() != "abort":
        raise Refusal("InvalidHeaderValue")
    target = request.target
    blob = context.state.blob(target.account, target.container, target.blob)
    blob.lease.check_write(parse_lease_id(request.header(b"x-ms-lease-id")), context.now)
    if not blob.copy_is_pending:
        raise Refusal("NoPendingCopyOperation")
    if target.query.get("copyid") != blob.copy["x-ms-copy-id"]:
        raise Refusal("CopyIdMismatch")
    set_copy(context.state, blob, "aborted", 0, context.now)
    if blob.pages is not None:
        blob.pages.resize(0)
    blob.content = b""
    context.state.save(context.now)
    return Answer(204)


def incremental_copy_blob(context: Context) -> Answer:
    """Copy a snapshot of a page blob; the copy's snapshots are what it holds, one for each that was copied."""
    request = context.request
    source = _source(context, own_account=True)
    if source.snapshot is None:
        raise Refusal("IncrementalCopySourceMustBeSnapshot")
    if source.pages is None:
        raise Refusal("InvalidSourceBlobType")
    origin = _source_url(request)[0].partition("?")[0]
    old = existing(context)
    if old is not None and old.incremental.get("source") != origin:
        raise Refusal("IncrementalCopyBlobMismatch")
    if old is not None and source.generation != old.incremental["generation"]:
        raise Refusal("BlobOverwritten")
    if old is not None and source.snapshot < old.incremental["snapshot"]:
        raise Refusal("IncrementalCopyOfEarlierSnapshotNotAllowed")
    blob = Blob(request.target.blob, source.kind, context.now, context.state.new_pages(source.size))
    blob.metadata, blob.content_headers = dict(source.metadata), dict(source.content_headers)
    blob.sequence_number = source.sequence_number
    if old is not None:
        blob.generation = old.generation  # so that its snapshots can be compared
    blob.incremental = {"source": origin, "snapshot": source.snapshot, "generation": source.generation}
    blob.copy, blob.copied_from = _copy_headers(request), source
    set_copy(context.state, blob, "pending", 0, context.now)
    answer = put(context, blob, old, 202)
    if context.config.copies == "success":
        set_copy(context.state, blob, "success", source.size, context.now)
        context.state.save(context.now)
    answer.headers.update({**blob.version_headers(), "x-ms-copy-id": blob.copy["x-ms-copy-id"]})
    answer.headers["x-ms-copy-status"] = blob.copy["x-ms-copy-status"]
    return answer


def put_page_from_url(context: Context) -> Answer:
    """Store whole pages with the content of a range of a blob or snapshot, which this caller may read."""
    request = context.request
    if request.body:
        raise Refusal("InvalidHeaderValue")
    offset, length = page_range(context)
    if length > MAX_PAGE_WRITE:
        raise Refusal("RequestBodyTooLarge")
    first, last = parse_range(request.required(b"x-ms-source-range"))
    if last is None or last + 1 - first != length:
        raise Refusal("InvalidHeaderValue")
    source = _source(context, own_account=False)
    if last >= source.size:
        raise Refusal("InvalidRange")
    data = source.pages.read(first, length) if source.pages is not None else source.content[first : last + 1]
    checksum = check_checksums(request, data, "x-ms-source-")
    blob = blob_to_change(context, offset, length)
    blob.need_pages().write(offset, data)
    return changed(context, blob, checksum)


def set_copy(state: State, blob: Blob, status: str, copied: int, now: float) -> None:
    """What a copy to this blob has come to: pending, success, failed or aborted. copied: bytes.

    Source: https://learn.microsoft.com/rest/api/storageservices/get-blob-properties and .../abort-copy-blob
    """
    if status not in _STATUSES:
        raise ValueError(f"a copy is not {status!r}, but one of {', '.join(_STATUSES)}")
    ends_well = status == "success" and blob.copy_is_pending
    if ends_well and blob.copied_from and blob.copied_from.pages and blob.pages:
        blob.pages.remove()
        blob.pages = blob.copied_from.pages.copy(state.new_path())
    blob.copy = {
        "x-ms-copy-id": blob.copy.get("x-ms-copy-id") or str(uuid.uuid4()),
        "x-ms-copy-source": blob.copy.get("x-ms-copy-source", "https://elsewhere.blob.core.windows.net/disks/data"),
        "x-ms-copy-status": status,
        "x-ms-copy-progress": f"{copied}/{blob.size}",
    }
    if status != "pending":
        blob.copied_from = None
        blob.copy["x-ms-copy-completion-time"] = http_date(now)
    if status == "failed":
        blob.copy["x-ms-copy-status-description"] = "404 BlobNotFound: the source is gone"
    if ends_well and blob.incremental:
        blob.copy["x-ms-copy-destination-snapshot"] = state.take_snapshot(blob, now, {}).snapshot or ""
    blob.touch(now)


def _copy_headers(request: Request) -> dict[str, str]:
    url = urlsplit(request.required(b"x-ms-copy-source"))
    return {"x-ms-copy-id": str(uuid.uuid4()), "x-ms-copy-source": url._replace(query="").geturl()}


def _source_url(request: Request) -> tuple[str, str]:
    """(path and query, account if the path does not have it) of x-ms-copy-source."""
    url = urlsplit(request.required(b"x-ms-copy-source"))
    raw = url.path + (f"?{url.query}" if url.query else "")
    return raw, "" if url.path.startswith(f"/{request.target.account}/") else request.target.account


def _source(context: Context, *, own_account: bool) -> Blob:
    """The blob or snapshot that x-ms-copy-source names, if the caller may read it and its conditions hold.

    own_account: a blob of the same account needs no authorization of its own, as in Copy Blob.
    """
    request = context.request
    raw, host_account = _source_url(request)
    first = raw[1:].partition("/")[0]
    if first in context.config.accounts:
        host_account = ""
    target = parse_target(raw, host_account)
    headers = Headers()
    token = request.headers.get(b"x-ms-copy-source-authorization")
    if token is not None:
        headers[b"authorization"] = token
    asking = Request("GET", target, headers, b"", request.client_ip, request.secure)
    try:
        if not own_account or target.account != request.target.account or token is not None or "sig" in target.query:
            authorize(context.config, context.state, asking, "r", "o", context.now)
        blob = context.state.blob(target.account, target.container, target.blob, target.query.get("snapshot"))
    except Refusal as refusal:
        raise Refusal("CannotVerifyCopySource", refusal.message, status=refusal.status) from None
    for name in (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"):
        if (value := request.headers.get(b"x-ms-source-" + name)) is not None:
            asking.headers[name] = value
    try:
        check_conditions(asking, blob)
    except Refusal as refusal:
        raise Refusal("SourceConditionNotMet" if refusal.code == "ConditionNotMet" else refusal.code) from None
    return blob
