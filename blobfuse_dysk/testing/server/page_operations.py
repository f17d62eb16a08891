"""The data path: Get Blob, Put Page (update and clear), Get Page Ranges.

Source: https://learn.microsoft.com/rest/api/storageservices/get-blob, .../put-page, .../get-page-ranges
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from .answers import Answer, Refusal
from .checksums import check_checksums, crc64_of, md5_of
from .conditions import check_conditions, check_sequence_number
from .context import Context
from .pages import PAGE
from .state import Blob

__all__ = [
    "MAX_PAGE_WRITE",
    "blob_to_change",
    "changed",
    "clear_page",
    "get_blob",
    "get_page_ranges",
    "page_range",
    "put_page",
    "read_headers",
]

MAX_PAGE_WRITE = 4 << 20
MAX_CHECKSUM_RANGE = 4 << 20
MAX_READ = 1 << 30
MAX_RANGES = 10_000  # of one answer of Get Page Ranges


def get_blob(context: Context) -> Answer:
    """The blob or a range of it; with x-ms-range-get-content-md5 or -crc64 also the checksum of up to 4 MiB."""
    request = context.request
    blob = context.blob_to_read()
    _need_content(blob)
    check_conditions(request, blob)
    wanted = request.range()
    size = blob.size
    if wanted is None:
        offset, length = 0, size
    else:
        offset, last = wanted
        if offset >= size or (last is not None and last < offset):
            raise Refusal("InvalidRange", Content_Range=f"bytes */{size}")
        length = (size if last is None else min(last + 1, size)) - offset
    if length > MAX_READ:
        raise Refusal("NotImplemented", "This test server sends at most 1 GiB at once.")
    headers = read_headers(blob, context.now)
    wants_md5, wants_crc64 = (
        request.headers.get(b"x-ms-range-get-content-" + kind, b"").lower() == b"true" for kind in (b"md5", b"crc64")
    )
    if wants_md5 and wants_crc64:
        raise Refusal("InvalidHeaderValue")
    if (wants_md5 or wants_crc64) and (wanted is None or length > MAX_CHECKSUM_RANGE):
        raise Refusal("InvalidHeaderValue" if wanted is None else "OutOfRangeInput")
    body = blob.pages.read(offset, length) if blob.pages is not None else blob.content[offset : offset + length]
    if wanted is None:
        return Answer(200, headers, body)
    headers["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{size}"
    whole_md5 = headers.pop("Content-MD5", None)
    if whole_md5 is not None:
        headers["x-ms-blob-content-md5"] = whole_md5
    if wants_md5:
        headers["Content-MD5"] = md5_of(body)
    if wants_crc64:
        headers["x-ms-content-crc64"] = crc64_of(body)
    return Answer(206, headers, body)


def read_headers(blob: Blob, now: float) -> dict[str, str]:
    """The headers that Get Blob and Get Blob Properties share."""
    headers = {
        **blob.version_headers(),
        **blob.content_headers,
        "Accept-Ranges": "bytes",
        "x-ms-blob-type": blob.kind,
        **blob.lease.headers(now),  # a snapshot has a lease of its own, which nobody can take
    }
    if blob.pages is not None:
        headers["x-ms-blob-sequence-number"] = str(blob.sequence_number)
    for name, value in blob.metadata.items():
        headers[f"x-ms-meta-{name}"] = value
    headers.update(blob.copy)
    if blob.incremental:
        headers["x-ms-incremental-copy"] = "true"
    return headers


def _need_content(blob: Blob) -> None:
    """Refuse an incremental copy, which has content in its snapshots only."""
    if blob.incremental and blob.snapshot is None:
        raise Refusal("OperationNotAllowedOnIncrementalCopyBlob")


def put_page(context: Context) -> Answer:
    """Store whole pages."""
    request = context.request
    body = request.body
    offset, length = page_range(context)
    if length > MAX_PAGE_WRITE:
        raise Refusal("RequestBodyTooLarge")
    if len(body) != length:
        raise Refusal("InvalidHeaderValue")
    checksum = check_checksums(request, body)
    blob = blob_to_change(context, offset, length)
    blob.need_pages().write(offset, body)
    return changed(context, blob, checksum)


def clear_page(context: Context) -> Answer:
    """Free whole pages; they read as zeros."""
    if context.request.body:
        raise Refusal("InvalidHeaderValue")
    offset, length = page_range(context)
    blob = blob_to_change(context, offset, length)
    blob.need_pages().clear(offset, length)
    return changed(context, blob, {})


def get_page_ranges(context: Context) -> Answer:
    """Allocated ranges of the blob or of a part of it, at most `maxresults` an answer, with NextMarker.

    With prevsnapshot: what differs from that snapshot, cleared ranges (ClearRange) among them.
    """
    request, query = context.request, context.request.target.query
    blob = context.blob_to_read()
    _need_content(blob)
    pages = blob.need_pages()
    check_conditions(request, blob)
    limit, marker = _page_list_limits(query)
    offset, last = request.range() or (0, None)
    end = pages.size if last is None else min(last + 1, pages.size)
    if (offset >= pages.size and offset) or (last is not None and last < offset):
        raise Refusal("InvalidRange", Content_Range=f"bytes */{pages.size}")
    # The answer covers every page that the range touches.
    start = max(offset - offset % PAGE, marker)
    end += -end % PAGE
    before = _previous_snapshot(context, blob)
    ranges: Iterator[tuple[int, int, bool]] = iter(())
    if end > start and before is not None:
        ranges = pages.changes(before.need_pages(), start, end - start)
    elif end > start:
        ranges = ((first, stop, True) for first, stop in pages.ranges(start, end - start))
    found = list(islice(ranges, limit + 1))
    items = [_range_item(*each) for each in found[:limit]]
    next_marker = f"<NextMarker>{found[limit][0]}</NextMarker>" if len(found) > limit else "<NextMarker/>"
    body = f'<?xml version="1.0" encoding="utf-8"?><PageList>{"".join(items)}{next_marker}</PageList>'
    headers = {
        **blob.version_headers(),
        "Content-Type": "application/xml",
        "x-ms-blob-content-length": str(pages.size),
    }
    return Answer(200, headers, body.encode())


def _range_item(first: int, stop: int, allocated: bool) -> str:
    name = "PageRange" if allocated else "ClearRange"
    return f"<{name}><Start>{first}</Start><End>{stop - 1}</End></{name}>"


def _previous_snapshot(context: Context, blob: Blob) -> Blob | None:
    """The snapshot that prevsnapshot names, None without it; Refusal if `blob` has no list of changes since then.

    Source: https://learn.microsoft.com/rest/api/storageservices/get-page-ranges#remarks
    """
    target = context.request.target
    name = target.query.get("prevsnapshot")
    if name is None:
        return None
    before = context.state.blob(target.account, target.container, target.blob).snapshots.get(name)
    if before is None:
        raise Refusal("PreviousSnapshotNotFound")
    if blob.snapshot is not None and blob.snapshot < name:
        raise Refusal("PreviousSnapshotCannotBeNewer")
    if blob.generation != before.generation:
        raise Refusal("BlobOverwritten")
    return before


def _page_list_limits(query: dict[str, str]) -> tuple[int, int]:
    """(most ranges, byte offset to go on from); the marker is that offset in decimal, opaque to clients."""
    try:
        limit, marker = int(query.get("maxresults") or MAX_RANGES), int(query.get("marker") or 0)
    except ValueError:
        raise Refusal("InvalidQueryParameterValue") from None
    if limit < 1 or marker < 0 or marker % PAGE:
        raise Refusal("OutOfRangeQueryParameterValue")
    return min(limit, MAX_RANGES), marker


def page_range(context: Context) -> tuple[int, int]:
    """(offset, length) of the range that Put Page names: whole pages."""
    wanted = context.request.range()
    if wanted is None:
        raise Refusal("MissingRequiredHeader")
    offset, last = wanted
    if last is None or last < offset or offset % PAGE or (last + 1) % PAGE:
        raise Refusal("InvalidPageRange")
    return offset, last + 1 - offset


def blob_to_change(context: Context, offset: int, length: int) -> Blob:
    """The page blob that a write is for, its lease, conditions and size checked."""
    blob = context.blob_to_write()
    pages = blob.need_pages()
    check_conditions(context.request, blob)
    check_sequence_number(context.request, blob)
    if offset + length > pages.size:
        raise Refusal("InvalidPageRange")
    return blob


def changed(context: Context, blob: Blob, headers: dict[str, str]) -> Answer:
    """The answer to a write that was done."""
    context.written(blob)
    headers.update(blob.version_headers())
    headers["x-ms-blob-sequence-number"] = str(blob.sequence_number)
    headers["x-ms-request-server-encrypted"] = "true"
    return Answer(201, headers)
