"""Operations on a whole blob: create, delete, properties, metadata, resize, sequence number, snapshot.

Source: https://learn.microsoft.com/rest/api/storageservices/put-blob, .../delete-blob, .../get-blob-properties,
.../set-blob-properties, .../set-blob-metadata, .../snapshot-blob
"""

from __future__ import annotations

from .answers import Answer, Refusal, http_date
from .checksums import check_checksums
from .conditions import check_conditions
from .context import Context
from .leases import parse_lease_id
from .page_operations import read_headers
from .pages import PAGE
from .state import CONTENT_HEADERS, Blob
from .tags import tags_of_new
from .tiers import set_tier_of_new, tier_headers

__all__ = [
    "delete_blob",
    "existing",
    "get_blob_metadata",
    "get_blob_properties",
    "put",
    "put_blob",
    "set_blob_metadata",
    "set_blob_properties",
    "snapshot_blob",
]

MAX_PAGE_BLOB = 8 << 40
MAX_SEQUENCE_NUMBER = (1 << 63) - 1


def put_blob(context: Context) -> Answer:
    """Create a page blob (empty, of a size) or a block blob with its content; replaces one of that name."""
    request = context.request
    kind = request.required(b"x-ms-blob-type")
    metadata = request.metadata()
    old = existing(context)
    if kind == "PageBlob":
        blob = _new_page_blob(context)
    elif kind == "BlockBlob":
        check_checksums(request, request.body)
        blob = Blob(request.target.blob, kind, context.now, content=request.body)
    else:
        raise Refusal("InvalidHeaderValue" if kind != "AppendBlob" else "NotImplemented")
    blob.metadata = metadata
    blob.tags = tags_of_new(context)
    blob.content_headers.update(_content_headers(context))
    set_tier_of_new(context.config, request, blob, context.now)
    return put(context, blob, old, 201)


def get_blob_properties(context: Context) -> Answer:
    """HEAD: everything but the content."""
    blob = context.blob_to_read()
    check_conditions(context.request, blob)
    headers = read_headers(blob, context.now)
    headers["Content-Length"] = str(blob.size)
    headers["x-ms-creation-time"] = http_date(blob.created)
    headers["x-ms-server-encrypted"] = "true"
    headers.update(tier_headers(context.config, blob))
    if blob.tags:
        headers["x-ms-tag-count"] = str(len(blob.tags))
    return Answer(200, headers)


def get_blob_metadata(context: Context) -> Answer:
    """Metadata only."""
    blob = context.blob_to_read()
    check_conditions(context.request, blob)
    headers = blob.version_headers()
    headers.update({f"x-ms-meta-{name}": value for name, value in blob.metadata.items()})
    return Answer(200, headers)


def set_blob_metadata(context: Context) -> Answer:
    """Replace all metadata."""
    blob = context.blob_to_write()
    check_conditions(context.request, blob)
    blob.metadata = context.request.metadata()
    answer = _changed(context, blob)
    answer.headers.pop("x-ms-blob-sequence-number", None)
    return answer


def set_blob_properties(context: Context) -> Answer:
    """Resize, set the sequence number, or replace the content headers; each only if the request has its headers."""
    request = context.request
    blob = context.blob_to_write()
    check_conditions(request, blob)
    size = request.integer(b"x-ms-blob-content-length")
    action = request.header(b"x-ms-sequence-number-action")
    if size is not None:
        _check_size(size)
        blob.need_pages()
    number = _next_sequence_number(context, blob, action) if action is not None else None
    if size is not None:
        blob.need_pages().resize(size)
    if number is not None:
        blob.sequence_number = number
    blob.copy = {}  # of a copy that has ended
    if size is None and number is None:
        blob.content_headers = {"Content-Type": "application/octet-stream", **_content_headers(context)}
    return _changed(context, blob)


def snapshot_blob(context: Context) -> Answer:
    """A read-only copy of now. A lease id is checked if sent; none is needed."""
    blob = context.blob_to_read()
    if blob.snapshot is not None:
        raise Refusal("InvalidQueryParameterValue", "A snapshot of a snapshot cannot be made.")
    check_conditions(context.request, blob)
    twin = context.state.take_snapshot(blob, context.now, context.request.metadata())
    context.state.save(context.now)
    headers = twin.version_headers()
    headers["x-ms-snapshot"] = twin.snapshot or ""
    headers["x-ms-request-server-encrypted"] = "true"
    return Answer(201, headers)


def delete_blob(context: Context) -> Answer:
    """Remove a blob (x-ms-delete-snapshots: include), its snapshots (only), or the one snapshot in the query."""
    request, container = context.request, context.container
    choice = request.header(b"x-ms-delete-snapshots")
    if choice not in (None, "include", "only"):
        raise Refusal("InvalidHeaderValue")
    if "snapshot" in request.target.query:
        if choice is not None:
            raise Refusal("InvalidHeaderValue")
        context.state.remove(container, context.blob_to_read())
    else:
        blob = context.blob_to_write(deletes=True) if choice != "only" else context.blob_to_read()
        check_conditions(request, blob)
        if blob.snapshots and choice is None:
            raise Refusal("SnapshotsPresent")
        if choice == "only":
            for each in list(blob.snapshots.values()):
                context.state.remove(container, each)
        else:
            context.state.remove(container, blob)
    context.state.save(context.now)
    return Answer(202, {"x-ms-delete-type-permanent": "true"})


def existing(context: Context) -> Blob | None:
    """The blob that a Put Blob or copy would replace, its lease and conditions checked."""
    request = context.request
    old = context.container.blobs.get(request.target.blob)
    lease_id = parse_lease_id(request.header(b"x-ms-lease-id"))
    if old is not None:
        old.lease.check_write(lease_id, context.now)
        if old.copy_is_pending:
            raise Refusal("PendingCopyOperation")
        if request.headers.get(b"if-none-match") == b"*":
            raise Refusal("BlobAlreadyExists")
        if "w" not in context.granted:  # "create" alone lets a caller make new blobs only
            raise Refusal(
                "UnauthorizedBlobOverwrite", "This request is not authorized to perform blob overwrites.", status=403
            )
    elif lease_id is not None:
        raise Refusal("LeaseNotPresentWithBlobOperation")
    check_conditions(request, old)
    return old


def put(context: Context, blob: Blob, old: Blob | None, status: int) -> Answer:
    """Store a new blob in the place of `old`."""
    if old is not None:
        old.lease.written(context.now)
    context.state.put(context.container, blob)
    context.state.save(context.now)
    return Answer(status, {**blob.version_headers(), "x-ms-request-server-encrypted": "true"})


def _new_page_blob(context: Context) -> Blob:
    request = context.request
    if request.body:
        raise Refusal("InvalidHeaderValue")
    size = request.integer(b"x-ms-blob-content-length")
    if size is None:
        raise Refusal("MissingRequiredHeader")
    _check_size(size)
    number = request.integer(b"x-ms-blob-sequence-number") or 0
    blob = Blob(request.target.blob, "PageBlob", context.now, context.state.new_pages(size))
    blob.sequence_number = number
    return blob


def _check_size(size: int) -> None:
    if size % PAGE:
        raise Refusal("InvalidHeaderValue")
    if size > MAX_PAGE_BLOB:
        raise Refusal("OutOfRangeInput")


def _next_sequence_number(context: Context, blob: Blob, action: str) -> int:
    blob.need_pages()
    given = context.request.integer(b"x-ms-blob-sequence-number")
    if action == "increment":
        if given is not None:
            raise Refusal("InvalidHeaderValue")
        if blob.sequence_number == MAX_SEQUENCE_NUMBER:
            raise Refusal("SequenceNumberIncrementTooLarge")
        return blob.sequence_number + 1
    if action not in ("max", "update"):
        raise Refusal("InvalidHeaderValue")
    if given is None:
        raise Refusal("MissingRequiredHeader")
    return max(given, blob.sequence_number) if action == "max" else given


def _content_headers(context: Context) -> dict[str, str]:
    found = {}
    for name, answered in CONTENT_HEADERS.items():
        value = context.request.header(name)
        if value is not None:
            found[answered] = value
    plain = context.request.header(b"content-type")
    if plain is not None and context.request.target.query.get("comp") is None:
        found.setdefault("Content-Type", plain)
    return found


def _changed(context: Context, blob: Blob) -> Answer:
    context.written(blob)
    context.state.save(context.now)
    headers = blob.version_headers()
    if blob.pages is not None:
        headers["x-ms-blob-sequence-number"] = str(blob.sequence_number)
    headers["x-ms-request-server-encrypted"] = "true"
    return Answer(200, headers)
