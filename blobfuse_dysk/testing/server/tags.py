"""Blob index tags: those that a new blob gets, and Get Blob Tags. Nothing is found by them here.

Source: https://learn.microsoft.com/rest/api/storageservices/put-blob (x-ms-tags),
https://learn.microsoft.com/rest/api/storageservices/get-blob-tags
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from .answers import Answer, Refusal
from .context import Context

__all__ = ["get_blob_tags", "tags_of_new"]

_ALLOWED = re.compile(r"[A-Za-z0-9 +\-./:=_]*\Z")
_MOST, _MOST_NAME, _MOST_VALUE = 10, 128, 256


def tags_of_new(context: Context) -> dict[str, str]:
    """x-ms-tags of Put Blob, a query string; it takes the right for tags besides that for the blob."""
    text = context.request.header(b"x-ms-tags")
    if not text:
        return {}
    if "t" not in context.granted:
        raise Refusal("AuthorizationPermissionMismatch")
    pairs = parse_qsl(text, keep_blank_values=True)
    tags = dict(pairs)
    if len(tags) != len(pairs) or len(tags) > _MOST:
        raise Refusal("InvalidHeaderValue")
    for name, value in pairs:
        if not 0 < len(name) <= _MOST_NAME or len(value) > _MOST_VALUE:
            raise Refusal("InvalidHeaderValue")
        if not _ALLOWED.match(name) or not _ALLOWED.match(value):
            raise Refusal("InvalidHeaderValue")
    return tags


def get_blob_tags(context: Context) -> Answer:
    """All tags of a blob."""
    found = context.blob_to_read().tags
    items = "".join(
        f"<Tag><Key>{escape(name)}</Key><Value>{escape(value)}</Value></Tag>" for name, value in sorted(found.items())
    )
    body = f'<?xml version="1.0" encoding="utf-8"?><Tags><TagSet>{items}</TagSet></Tags>'
    return Answer(200, {"Content-Type": "application/xml"}, body.encode())
