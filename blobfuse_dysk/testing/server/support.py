"""What this server understands of a request. The rest is refused with 501 and named, never ignored.

The service ignores what it does not know. A test server that ignores a header which the service honours would let a
client believe in something that never happened. So each operation has a list of the x-ms-* headers that it honours,
out of its page in https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api.
"""

from __future__ import annotations

import re

from .answers import Refusal
from .request import Request

__all__ = ["VERSIONS", "check_support"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Versions whose differences do not concern what is served here.
# Source: https://learn.microsoft.com/rest/api/storageservices/previous-azure-storage-service-versions
VERSIONS = _words(
    """2019-12-12 2020-02-10 2020-04-08 2020-06-12 2020-08-04 2020-10-02 2020-12-06 2021-02-12 2021-04-10 2021-06-08
    2021-08-06 2021-10-04 2021-12-02 2022-11-02 2023-01-03 2023-08-03 2023-11-03 2024-02-04 2024-05-04 2024-08-04
    2024-11-04 2025-01-05 2025-05-05 2025-07-05 2025-11-05 2026-02-06 2026-04-06 2026-06-06 2026-10-06"""
)
_WITHOUT_ONE = "2009-09-19"  # what the service takes a request for that names no version
_VERSION = re.compile(r"\d{4}-\d\d-\d\d\Z")


def _names(*groups: str) -> frozenset[bytes]:
    return frozenset(f"x-ms-{name}".encode() for group in groups for name in _words(group))


_COMMON = "date version client-request-id return-client-request-id"
_LEASE = "lease-id"
_NUMBER_CONDITIONS = "if-sequence-number-eq if-sequence-number-lt if-sequence-number-le"
_CONTENT = (
    "blob-content-type blob-content-encoding blob-content-language blob-content-md5 blob-cache-control "
    "blob-content-disposition"
)
_SOURCE_CONDITIONS = "source-if-match source-if-none-match source-if-modified-since source-if-unmodified-since"

# By kind of operation; "meta-" stands for all names of metadata.
_HEADERS = {
    "get_blob": _names(_COMMON, _LEASE, "range range-get-content-md5 range-get-content-crc64"),
    "put_page": _names(_COMMON, _LEASE, _NUMBER_CONDITIONS, "range page-write content-crc64"),
    "put_page_from_url": _names(
        _COMMON,
        _LEASE,
        _NUMBER_CONDITIONS,
        _SOURCE_CONDITIONS,
        "range page-write copy-source copy-source-authorization source-range source-content-md5 source-content-crc64",
    ),
    "clear_page": _names(_COMMON, _LEASE, _NUMBER_CONDITIONS, "range page-write"),
    "get_page_ranges": _names(_COMMON, _LEASE, "range"),
    "put_blob": _names(
        _COMMON, _LEASE, _CONTENT, "blob-type blob-content-length blob-sequence-number access-tier tags meta-"
    ),
    "copy_blob": _names(_COMMON, _LEASE, _SOURCE_CONDITIONS, "copy-source copy-source-authorization access-tier meta-"),
    "incremental_copy_blob": _names(_COMMON, "copy-source"),
    "abort_copy_blob": _names(_COMMON, _LEASE, "copy-action"),
    "get_blob_properties": _names(_COMMON, _LEASE),
    "get_blob_metadata": _names(_COMMON, _LEASE),
    "set_blob_metadata": _names(_COMMON, _LEASE, "meta-"),
    "set_blob_properties": _names(
        _COMMON, _LEASE, _CONTENT, "blob-content-length sequence-number-action blob-sequence-number"
    ),
    "snapshot_blob": _names(_COMMON, _LEASE, "meta-"),
    "delete_blob": _names(_COMMON, _LEASE, "delete-snapshots"),
    "set_blob_tier": _names(_COMMON, _LEASE, "access-tier"),
    "create_container": _names(_COMMON, "meta-"),
}
_OTHERS = _names(_COMMON)
_LEASES = _names(_COMMON, "lease-action lease-id proposed-lease-id lease-duration lease-break-period")

# Of any operation; a signature's own among them.
_PARAMETERS = _words(
    """comp restype snapshot prevsnapshot timeout prefix delimiter marker maxresults include copyid
    sv ss srt sp st se sip spr sig sr si ses skoid sktid skt ske sks skv saoid suoid scid skdutid sduoid
    rscc rscd rsce rscl rsct"""
)


def check_support(kind: str, request: Request) -> None:
    """Raise Refusal for a version, header or query parameter that `kind` of operation does not honour here."""
    version = request.header(b"x-ms-version") or request.target.query.get("sv") or _WITHOUT_ONE
    if version not in VERSIONS:
        if _VERSION.match(version):
            raise Refusal("NotImplemented", f"This test server does not serve version {version}.")
        raise Refusal("InvalidHeaderValue", f"x-ms-version {version!r} is no version.")
    known = _LEASES if kind.startswith("lease_") else _HEADERS.get(kind, _OTHERS)
    for name in request.headers:
        if name in known or not name.startswith(b"x-ms-"):
            continue
        if name.startswith(b"x-ms-meta-") and b"x-ms-meta-" in known:
            continue
        raise Refusal("NotImplemented", f"This test server does not honour {name.decode('latin-1')} here.")
    if not request.target.query.keys() <= _PARAMETERS:
        unknown = min(request.target.query.keys() - _PARAMETERS)
        raise Refusal("NotImplemented", f"This test server does not honour the parameter {unknown}.")
