"""Shared access signatures, of an account and of a container or blob, verified as the service does.

Source: https://learn.microsoft.com/rest/api/storageservices/create-account-sas and
https://learn.microsoft.com/rest/api/storageservices/create-service-sas. Stored access policies and user delegation
keys are not served: a SAS that names one is refused.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
from datetime import UTC, datetime

from .answers import Refusal
from .request import Request

__all__ = ["check_sas"]

_WITH_ENCRYPTION_SCOPE = "2020-12-06"  # first version whose string to sign has `ses`
_WITH_RESOURCE = "2018-11-09"  # first version whose string to sign has `sr` and the snapshot time


def check_sas(request: Request, keys: list[bytes], permissions: str, resource_type: str, now: float) -> str:
    """Return the permission letters of the signature, or raise Refusal."""
    query = request.target.query
    is_account_sas = "ss" in query and "srt" in query
    text = _account_string(request) if is_account_sas else _service_string(request)
    if not any(base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode() == query["sig"] for key in keys):
        raise Refusal("AuthenticationFailed")
    _check_time(query, now)
    _check_caller(request)
    if is_account_sas:
        if "b" not in query["ss"]:
            raise Refusal("AuthorizationServiceMismatch")
        if resource_type not in query["srt"]:
            raise Refusal("AuthorizationResourceTypeMismatch")
    elif resource_type == "s" or (resource_type == "c" and query.get("sr") != "c"):
        raise Refusal("AuthorizationResourceTypeMismatch")
    granted = query.get("sp", "")
    if not set(permissions) & set(granted):
        raise Refusal("AuthorizationPermissionMismatch")
    return granted


def _account_string(request: Request) -> str:
    query = request.target.query
    fields = [request.target.account] + [
        query.get(name, "") for name in ("sp", "ss", "srt", "st", "se", "sip", "spr", "sv")
    ]
    if query.get("sv", "") >= _WITH_ENCRYPTION_SCOPE:
        fields.append(query.get("ses", ""))
    return "\n".join(fields) + "\n"


def _service_string(request: Request) -> str:
    target, query = request.target, request.target.query
    version, resource = query.get("sv", ""), query.get("sr", "")
    if resource not in ("b", "c", "bs") or "skoid" in query or "si" in query:
        raise Refusal("AuthenticationFailed")
    path = f"/blob/{target.account}/{target.container}"
    if resource != "c":
        path += f"/{target.blob}"
    fields = [query.get(name, "") for name in ("sp", "st", "se")]
    fields.append(path)
    fields += [query.get(name, "") for name in ("si", "sip", "spr", "sv")]
    if version >= _WITH_RESOURCE:
        fields += [resource, query.get("snapshot", "") if resource == "bs" else ""]
    if version >= _WITH_ENCRYPTION_SCOPE:
        fields.append(query.get("ses", ""))
    fields += [query.get(name, "") for name in ("rscc", "rscd", "rsce", "rscl", "rsct")]
    return "\n".join(fields)


def _check_time(query: dict[str, str], now: float) -> None:
    if not query.get("se"):
        raise Refusal("AuthenticationFailed", "Signature has no expiry time.")
    if now >= _seconds(query["se"]) or (query.get("st") and now < _seconds(query["st"])):
        raise Refusal("AuthenticationFailed", "Signature not valid in the specified time frame.")


def _check_caller(request: Request) -> None:
    query = request.target.query
    if query.get("spr") == "https" and not request.secure:
        raise Refusal("AuthorizationProtocolMismatch")
    allowed = query.get("sip")
    if allowed:
        first, _, last = allowed.partition("-")
        address = ipaddress.ip_address(request.client_ip)
        low, high = ipaddress.ip_address(first), ipaddress.ip_address(last or first)
        if address.version != low.version or not int(low) <= int(address) <= int(high):
            raise Refusal("AuthorizationSourceIPMismatch")


def _seconds(text: str) -> float:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise Refusal("AuthenticationFailed", f"Signature time {text!r} is not ISO 8601.") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
