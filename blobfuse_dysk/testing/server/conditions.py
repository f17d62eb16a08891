"""Conditional headers: ETag and time, and the sequence number conditions of Put Page.

Source: https://learn.microsoft.com/rest/api/storageservices/specifying-conditional-headers-for-blob-service-operations
and https://learn.microsoft.com/rest/api/storageservices/put-page
"""

from __future__ import annotations

import email.utils

from .answers import Refusal
from .request import Request
from .state import Blob

__all__ = ["check_conditions", "check_sequence_number"]


def check_conditions(request: Request, blob: Blob | None) -> None:
    """Raise Refusal (412, or 304 for reads) when If-* headers forbid the operation. blob None: it does not exist."""
    headers = request.headers
    match, none_match = headers.get(b"if-match"), headers.get(b"if-none-match")
    modified, unmodified = headers.get(b"if-modified-since"), headers.get(b"if-unmodified-since")
    if not (match or none_match or modified or unmodified):
        return
    if (match and b"," in match) or (none_match and b"," in none_match):
        raise Refusal("MultipleConditionHeadersNotSupported")
    reading = request.method in ("GET", "HEAD")
    if match and (blob is None or (match != b"*" and match.decode("latin-1") != blob.etag)):
        raise Refusal("ConditionNotMet")
    if blob is None:
        return
    if none_match and (none_match == b"*" or none_match.decode("latin-1") == blob.etag):
        raise _unchanged(blob) if reading else Refusal("ConditionNotMet")
    if unmodified and not match and int(blob.modified) > _seconds(unmodified):
        raise Refusal("ConditionNotMet")
    if modified and not none_match and int(blob.modified) <= _seconds(modified):
        raise _unchanged(blob) if reading else Refusal("ConditionNotMet")


def check_sequence_number(request: Request, blob: Blob) -> None:
    """Raise Refusal SequenceNumberConditionNotMet unless every condition that was sent holds."""
    current = blob.sequence_number
    equal = request.integer(b"x-ms-if-sequence-number-eq")
    if equal is not None and current != equal:
        raise Refusal("SequenceNumberConditionNotMet")
    below = request.integer(b"x-ms-if-sequence-number-lt")
    if below is not None and not current < below:
        raise Refusal("SequenceNumberConditionNotMet")
    at_most = request.integer(b"x-ms-if-sequence-number-le")
    if at_most is not None and not current <= at_most:
        raise Refusal("SequenceNumberConditionNotMet")


def _unchanged(blob: Blob) -> Refusal:
    return Refusal("ConditionNotMet", status=304, ETag=blob.etag)


def _seconds(value: bytes) -> float:
    try:
        return email.utils.parsedate_to_datetime(value.decode("latin-1")).timestamp()
    except ValueError:
        raise Refusal("InvalidHeaderValue") from None
