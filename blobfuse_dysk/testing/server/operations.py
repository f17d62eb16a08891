"""Which REST operation a request is, what it needs, and which function does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import (
    access_operations,
    blob_operations,
    container_operations,
    copy_operations,
    lease_operations,
    page_operations,
    tags,
    tiers,
)
from .answers import Answer, Refusal
from .context import Context
from .request import Request

__all__ = ["KINDS", "Operation", "choose"]


@dataclass(frozen=True, slots=True)
class Operation:
    """kind: the name in statistics and fault rules. permissions: SAS letters, any of which will do.

    resource_type: s, c or o of an account SAS. access: "read" and "write" move data of a page blob.
    """

    kind: str
    handler: Callable[[Context], Answer]
    permissions: str
    resource_type: str
    access: str = ""


def _operation(handler: Callable[[Context], Answer], permissions: str, resource: str, access: str = "") -> Operation:
    return Operation(handler.__name__, handler, permissions, resource, access)


_get_blob = _operation(page_operations.get_blob, "r", "o", "read")
_put_page = _operation(page_operations.put_page, "w", "o", "write")
_clear_page = _operation(page_operations.clear_page, "w", "o", "write")
_put_blob = _operation(blob_operations.put_blob, "wc", "o")
_copy_blob = _operation(copy_operations.copy_blob, "wc", "o")
_put_page_from_url = _operation(copy_operations.put_page_from_url, "w", "o", "write")
_leases = {
    "acquire": _operation(lease_operations.lease_acquire, "w", "o"),
    "renew": _operation(lease_operations.lease_renew, "w", "o"),
    "change": _operation(lease_operations.lease_change, "w", "o"),
    "release": _operation(lease_operations.lease_release, "w", "o"),
    "break": _operation(lease_operations.lease_break, "wd", "o"),
}
_account_information = _operation(container_operations.get_account_information, "rwdlc", "s")
_container_properties = _operation(container_operations.get_container_properties, "r", "c")
_blob_metadata = _operation(blob_operations.get_blob_metadata, "r", "o")

_OWNER = ""  # no letter: who has the account's key
# (method, level, restype, comp)
_TABLE: dict[tuple[str, str, str, str], Operation] = {
    ("GET", "blob", "", ""): _get_blob,
    ("HEAD", "blob", "", ""): _operation(blob_operations.get_blob_properties, "r", "o"),
    ("DELETE", "blob", "", ""): _operation(blob_operations.delete_blob, "d", "o"),
    ("GET", "blob", "", "pagelist"): _operation(page_operations.get_page_ranges, "r", "o"),
    ("GET", "blob", "", "metadata"): _blob_metadata,
    ("HEAD", "blob", "", "metadata"): _blob_metadata,
    ("PUT", "blob", "", "metadata"): _operation(blob_operations.set_blob_metadata, "w", "o"),
    ("PUT", "blob", "", "properties"): _operation(blob_operations.set_blob_properties, "w", "o"),
    ("PUT", "blob", "", "tier"): _operation(tiers.set_blob_tier, "w", "o"),
    ("GET", "blob", "", "tags"): _operation(tags.get_blob_tags, "t", "o"),
    ("PUT", "blob", "", "copy"): _operation(copy_operations.abort_copy_blob, "w", "o"),
    ("PUT", "blob", "", "incrementalcopy"): _operation(copy_operations.incremental_copy_blob, "wc", "o"),
    ("PUT", "blob", "", "snapshot"): _operation(blob_operations.snapshot_blob, "wc", "o"),
    ("PUT", "container", "container", ""): _operation(container_operations.create_container, "wc", "c"),
    ("DELETE", "container", "container", ""): _operation(container_operations.delete_container, "d", "c"),
    ("GET", "container", "container", ""): _container_properties,
    ("HEAD", "container", "container", ""): _container_properties,
    ("GET", "container", "container", "list"): _operation(container_operations.list_blobs, "l", "c"),
    ("GET", "container", "container", "acl"): _operation(access_operations.get_container_acl, _OWNER, "c"),
    ("PUT", "container", "container", "acl"): _operation(access_operations.set_container_acl, _OWNER, "c"),
    ("POST", "service", "service", "userdelegationkey"): _operation(
        access_operations.get_user_delegation_key, "rwdlc", "s"
    ),
    ("GET", "service", "", "list"): _operation(container_operations.list_containers, "l", "s"),
}
for _method in ("GET", "HEAD"):
    for _level in ("service", "container", "blob"):
        _TABLE[_method, _level, "account", "properties"] = _account_information

KINDS = frozenset(
    {each.kind for each in _TABLE.values()}
    | {each.kind for each in _leases.values()}
    | {each.kind for each in (_put_page, _put_page_from_url, _clear_page, _put_blob, _copy_blob)}
)


def choose(request: Request) -> Operation:
    """The operation, or Refusal when there is none or a header that tells it is missing."""
    target = request.target
    query = target.query
    if target.secondary and request.method not in ("GET", "HEAD"):
        raise Refusal("InsufficientAccountPermissions")
    found = _TABLE.get((request.method, target.level, query.get("restype", ""), query.get("comp", "")))
    if found is not None:
        return found
    if request.method == "PUT" and target.level == "blob":
        comp = query.get("comp", "")
        if comp == "page":
            return _choose_page_write(request)
        if comp == "":
            return _copy_blob if b"x-ms-copy-source" in request.headers else _put_blob
        if comp == "lease":
            action = request.required(b"x-ms-lease-action").lower()
            if action not in _leases:
                raise Refusal("InvalidHeaderValue")
            return _leases[action]
    if target.level == "service" and not target.account:
        raise Refusal("InvalidUri")
    if query.get("comp") or query.get("restype"):
        raise Refusal("NotImplemented")
    raise Refusal("UnsupportedHttpVerb")


def _choose_page_write(request: Request) -> Operation:
    action = request.required(b"x-ms-page-write").lower()
    if action == "update":
        return _put_page_from_url if b"x-ms-copy-source" in request.headers else _put_page
    if action == "clear":
        return _clear_page
    raise Refusal("InvalidHeaderValue")
