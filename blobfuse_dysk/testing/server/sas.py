"""Shared access signatures, of an account and of a container or blob, verified as the service does.

Source: https://learn.microsoft.com/rest/api/storageservices/create-account-sas and
https://learn.microsoft.com/rest/api/storageservices/create-service-sas, of a stored access policy as well, and
https://learn.microsoft.com/rest/api/storageservices/create-user-delegation-sas. What a signature with a user delegation
key allows is what it says, whatever its owner may do.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from .answers import Refusal
from .request import Request

__all__ = ["DelegationKey", "Policies", "check_sas", "iso_seconds"]

Policies = Mapping[str, Mapping[str, str]]
"""Of a container: {name: {"st": ..., "se": ..., "sp": ...}}, each of these optional."""
_WITH_ENCRYPTION_SCOPE = "2020-12-06"  # first version whose string to sign has `ses`
_WITH_DELEGATED_USER = "2025-07-05"  # first version whose user delegation string has `skdutid` and `sduoid`
_WITH_SIGNED_REQUEST = "2026-04-06"  # first one whose user delegation string has signed headers and parameters
_WITH_RESOURCE = "2018-11-09"  # first version whose string to sign has `sr` and the snapshot time


@dataclass(frozen=True, slots=True)
class DelegationKey:
    """A user delegation key as a signature names it. Its value is made of that and the account's key: none is kept."""

    oid: str
    tid: str
    start: str
    expiry: str
    service: str
    version: str

    def value(self, account_key: bytes) -> str:
        """Base64."""
        text = "\n".join((self.oid, self.tid, self.start, self.expiry, self.service, self.version))
        return base64.b64encode(hmac.digest(account_key, text.encode(), "sha256")).decode()


def check_sas(
    request: Request, keys: list[bytes], policies: Policies, permissions: str, resource_type: str, now: float
) -> str:
    """Return the permission letters of the signature, or raise Refusal. policies: those of the request's container."""
    query = request.target.query
    is_account_sas = "ss" in query and "srt" in query
    if is_account_sas:
        text = _account_string(request)
    elif "skoid" in query:
        keys, text = [_delegated_key(query, keys[0], now)], _delegated_string(request)
    else:
        text = _service_string(request)
    if not any(base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode() == query["sig"] for key in keys):
        raise Refusal("AuthenticationFailed")
    limits = _limits(query, policies)
    _check_time(limits, now)
    _check_caller(request)
    if is_account_sas:
        if "b" not in query["ss"]:
            raise Refusal("AuthorizationServiceMismatch")
        if resource_type not in query["srt"]:
            raise Refusal("AuthorizationResourceTypeMismatch")
    elif resource_type == "s" or (resource_type == "c" and query.get("sr") != "c"):
        raise Refusal("AuthorizationResourceTypeMismatch")
    granted = limits.get("sp", "")
    if not set(permissions) & set(granted):
        raise Refusal("AuthorizationPermissionMismatch")
    return granted


def _limits(query: Mapping[str, str], policies: Policies) -> dict[str, str]:
    """`st`, `se` and `sp` of the signature, or of its policy: each must come from one of them."""
    given = {name: query[name] for name in ("st", "se", "sp") if query.get(name)}
    if "si" not in query:
        return given
    policy = policies.get(query["si"])
    if policy is None:
        raise Refusal("AuthenticationFailed", "SAS identifier cannot be found for specified signed identifier.")
    if given.keys() & policy.keys():
        raise Refusal("AuthenticationFailed", "Access policy fields can be with the signature or its policy, not both.")
    return {**given, **policy}


def _delegated_key(query: Mapping[str, str], account_key: bytes, now: float) -> bytes:
    key = DelegationKey(*(query.get(name, "") for name in ("skoid", "sktid", "skt", "ske", "sks", "skv")))
    if key.service != "b" or not iso_seconds(key.start) <= now < iso_seconds(key.expiry):
        raise Refusal("AuthenticationFailed", "The user delegation key is not valid in the specified time frame.")
    return base64.b64decode(key.value(account_key))


def _account_string(request: Request) -> str:
    query = request.target.query
    fields = [request.target.account] + [
        query.get(name, "") for name in ("sp", "ss", "srt", "st", "se", "sip", "spr", "sv")
    ]
    if query.get("sv", "") >= _WITH_ENCRYPTION_SCOPE:
        fields.append(query.get("ses", ""))
    return "\n".join(fields) + "\n"


def _service_string(request: Request) -> str:
    query = request.target.query
    fields = [query.get(name, "") for name in ("sp", "st", "se")]
    fields.append(_resource(request))
    fields += [query.get(name, "") for name in ("si", "sip", "spr", "sv")]
    return "\n".join(fields + _tail(query))


def _delegated_string(request: Request) -> str:
    query = request.target.query
    fields = [query.get(name, "") for name in ("sp", "st", "se")]
    fields.append(_resource(request))
    fields += [query.get(name, "") for name in ("skoid", "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid", "scid")]
    version = query.get("sv", "")
    if version >= _WITH_DELEGATED_USER:
        fields += [query.get("skdutid", ""), query.get("sduoid", "")]
    fields += [query.get(name, "") for name in ("sip", "spr", "sv")]
    tail = _tail(query)
    signed = (
        ["", ""] if version >= _WITH_SIGNED_REQUEST else []
    )  # headers and parameters: `srh` and `srq` are not served
    return "\n".join(fields + tail[:-5] + signed + tail[-5:])


def _resource(request: Request) -> str:
    target, resource = request.target, request.target.query.get("sr", "")
    if resource not in ("b", "c", "bs"):
        raise Refusal("AuthenticationFailed")
    path = f"/blob/{target.account}/{target.container}"
    return path if resource == "c" else f"{path}/{target.blob}"


def _tail(query: Mapping[str, str]) -> list[str]:
    """What both kinds of strings end with: resource, snapshot, encryption scope, five headers of the answer."""
    version, resource = query.get("sv", ""), query.get("sr", "")
    fields = []
    if version >= _WITH_RESOURCE:
        fields += [resource, query.get("snapshot", "") if resource == "bs" else ""]
    if version >= _WITH_ENCRYPTION_SCOPE:
        fields.append(query.get("ses", ""))
    return fields + [query.get(name, "") for name in ("rscc", "rscd", "rsce", "rscl", "rsct")]


def _check_time(limits: Mapping[str, str], now: float) -> None:
    if "se" not in limits:
        raise Refusal("AuthenticationFailed", "Signature has no expiry time.")
    if now >= iso_seconds(limits["se"]) or ("st" in limits and now < iso_seconds(limits["st"])):
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


def iso_seconds(text: str) -> float:
    """Seconds since the epoch; Refusal if it is not ISO 8601."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise Refusal("AuthenticationFailed", f"Signature time {text!r} is not ISO 8601.") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
