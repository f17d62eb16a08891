"""Who may do what, for longer than one request: stored access policies, and keys for user delegation signatures.

Source: https://learn.microsoft.com/rest/api/storageservices/set-container-acl, .../get-container-acl,
.../define-stored-access-policy, .../get-user-delegation-key, .../create-user-delegation-sas
"""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

from .answers import Answer, Refusal, iso_time
from .context import Context
from .sas import DelegationKey, iso_seconds

__all__ = ["get_container_acl", "get_user_delegation_key", "set_container_acl"]

MAX_POLICIES = 5
MAX_NAME = 64  # characters
MAX_KEY_S = 7 * 86400
_FIELDS = (("Start", "st"), ("Expiry", "se"), ("Permission", "sp"))


def get_container_acl(context: Context) -> Answer:
    """The stored access policies of a container."""
    container = context.container
    items = []
    for name, policy in container.policies.items():
        fields = "".join(f"<{tag}>{escape(policy[key])}</{tag}>" for tag, key in _FIELDS if key in policy)
        items.append(
            f"<SignedIdentifier><Id>{escape(name)}</Id><AccessPolicy>{fields}</AccessPolicy></SignedIdentifier>"
        )
    body = f'<?xml version="1.0" encoding="utf-8"?><SignedIdentifiers>{"".join(items)}</SignedIdentifiers>'
    return Answer(200, {**container.version_headers(), "Content-Type": "application/xml"}, body.encode())


def set_container_acl(context: Context) -> Answer:
    """Replace the stored access policies of a container: five at most."""
    container = context.container
    container.policies = _policies(context.request.body)
    container.touch(context.now)
    context.state.save(context.now)
    return Answer(200, container.version_headers())


def get_user_delegation_key(context: Context) -> Answer:
    """A key with which the owner of a bearer token signs; for a week at most."""
    request = context.request
    given = request.headers.get(b"authorization", b"")
    if not given.startswith(b"Bearer "):
        raise Refusal("AuthenticationFailed", "Only the owner of a bearer token gets a user delegation key.")
    root = _parsed(request.body)
    start, expiry = root.findtext("Start") or iso_time(context.now)[:19] + "Z", root.findtext("Expiry") or ""
    if not context.now < iso_seconds(expiry) <= context.now + MAX_KEY_S or iso_seconds(start) >= iso_seconds(expiry):
        raise Refusal("InvalidXmlNodeValue")
    who = given[7:].decode("latin-1")
    owner, tenant = (str(uuid.uuid5(uuid.NAMESPACE_URL, f"{kind}:{who}")) for kind in ("object", "tenant"))
    version = request.header(b"x-ms-version") or ""
    key = DelegationKey(owner, tenant, start, expiry, "b", version)
    fields = {
        "SignedOid": key.oid,
        "SignedTid": key.tid,
        "SignedStart": key.start,
        "SignedExpiry": key.expiry,
        "SignedService": key.service,
        "SignedVersion": key.version,
        "Value": key.value(context.config.accounts[request.target.account][0]),
    }
    items = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
    body = f'<?xml version="1.0" encoding="utf-8"?><UserDelegationKey>{items}</UserDelegationKey>'
    return Answer(200, {"Content-Type": "application/xml"}, body.encode())


def _policies(body: bytes) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for item in _parsed(body).iter("SignedIdentifier") if body else ():
        name = item.findtext("Id") or ""
        if not name or len(name) > MAX_NAME or name in found:
            raise Refusal("InvalidXmlNodeValue")
        policy = item.find("AccessPolicy")
        texts = {key: policy.findtext(tag) if policy is not None else None for tag, key in _FIELDS}
        found[name] = {key: text for key, text in texts.items() if text}
        for key in ("st", "se"):
            if key in found[name]:
                iso_seconds(found[name][key])
    if len(found) > MAX_POLICIES:
        raise Refusal("InvalidXmlDocument")
    return found


def _parsed(body: bytes) -> ET.Element:
    try:
        return ET.fromstring(body)
    except ET.ParseError:
        raise Refusal("InvalidXmlDocument") from None
