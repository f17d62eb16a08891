"""Azurite and the project's own server agree: stored access policies, metadata's limits, checksums, ends of copies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from azure.storage.blob import generate_blob_sas

from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.testing.azurite import Azurite
from tests.wire.parity import DATA, Deviations, Scenario, Script, compare
from tests.wire.rest import Rest, md5_of

SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Register."""
    SCENARIOS[function.__name__] = function
    return function


def policies(*items: tuple[str, str, str]) -> bytes:
    """The body of Set Container ACL: (name, end, permissions) each, empty for without."""
    found = []
    for name, end, letters in items:
        fields = (f"<Expiry>{end}</Expiry>" if end else "") + (f"<Permission>{letters}</Permission>" if letters else "")
        found.append(f"<SignedIdentifier><Id>{name}</Id><AccessPolicy>{fields}</AccessPolicy></SignedIdentifier>")
    return f"<SignedIdentifiers>{''.join(found)}</SignedIdentifiers>".encode()


@scenario
def stored_policies(script: Script) -> None:
    path, server = script.blob(), script.server
    soon = datetime.now(UTC) + timedelta(hours=1)
    end = soon.strftime("%Y-%m-%dT%H:%M:%SZ")
    acl = "restype=container&comp=acl"
    sas = generate_blob_sas(server.account, script.container, "disk", account_key=server.key, policy_id="readers")
    by_end = generate_blob_sas(
        server.account, script.container, "disk", account_key=server.key, policy_id="readers", expiry=soon
    )
    with Rest(server.endpoint, server.account, server.key, auth="sas") as user:
        script.note("no policy", user("HEAD", path, sas))
        for label, items in (
            ("whole", [("readers", end, "r")]),
            ("no end", [("readers", "", "r")]),
            ("over", [("readers", "2020-01-01T00:00:00Z", "r")]),
            ("another", [("writers", end, "rw")]),
            ("six", [(f"readers{number}", end, "r") for number in range(6)]),
            ("none", []),
        ):
            script.note(f"{label}: set", script.rest("PUT", script.container, acl, body=policies(*items)))
            script.note(f"{label}: read", user("HEAD", path, sas))
            script.note(f"{label}: delete", user("DELETE", path, sas))
            script.note(f"{label}: read, end in the signature", user("HEAD", path, by_end))
        script.note("acl by signature", user("GET", script.container, f"{acl}&{sas}"))


@scenario
def metadata_limits(script: Script) -> None:
    path = script.blob()
    for label, headers in (
        ("8 KiB", {"x-ms-meta-a": "1" * 4000, "x-ms-meta-bc": "2" * (8192 - 4003)}),
        ("no name", {"x-ms-meta-": "1"}),
        ("a digit first", {"x-ms-meta-1a": "1"}),
    ):
        script.note(label, script.rest("PUT", path, "comp=metadata", headers))


@scenario
def checksums(script: Script) -> None:
    path = script.blob()
    script.note("md5", script.rest.put(path, 0, DATA, Content_MD5=md5_of(DATA)))
    script.note("another md5", script.rest.put(path, 0, DATA, Content_MD5=md5_of(b"")))
    script.note("no md5", script.rest.put(path, 0, DATA, Content_MD5="AAAA"))


@scenario
def copies_that_have_ended(script: Script) -> None:
    path, copy = script.blob(), f"{script.container}/copy"
    source = f"{script.server.endpoint}/{path}"
    reply = script.note("copy", script.rest("PUT", copy, headers={"x-ms-copy-source": source}))
    copy_id, abort = reply.headers["x-ms-copy-id"], {"x-ms-copy-action": "abort"}
    script.note("abort", script.rest("PUT", copy, f"comp=copy&copyid={copy_id}", abort))
    script.note("abort of none", script.rest("PUT", path, f"comp=copy&copyid={copy_id}", abort))
    etag = script.rest("HEAD", path).headers["etag"]
    for name, value in (("match", '"0x1"'), ("match", etag), ("none-match", etag), ("none-match", '"0x1"')):
        headers = {"x-ms-copy-source": source, f"x-ms-source-if-{name}": value}
        label = f"copy if source {name} {'its etag' if value == etag else 'another'}"
        script.note(label, script.rest("PUT", copy, headers=headers))
    script.note("copy of nothing", script.rest("PUT", copy, headers={"x-ms-copy-source": f"{source}x"}))


OWN_CODE = (
    "Azurite says AuthorizationFailure where a signature does not fit its policy, the service AuthenticationFailed"
)
BOTH = "the service refuses a signature that says what its policy says"
ENDLESS = "the service wants an end, in the signature or in its policy"
FIVE = "the service keeps five policies at most"
CONDITION = "the service calls a condition on the source by that name, and answers a PUT never with 304"
REFUSED = (403, "AuthenticationFailed")
DEVIATIONS: Deviations = {
    ("stored_policies", "no policy"): (*REFUSED, OWN_CODE),
    **{
        ("stored_policies", f"{policy}: {use}"): (*REFUSED, OWN_CODE)
        for policy in ("over", "another", "six", "none")
        for use in ("read", "delete", "read, end in the signature")
    },
    ("stored_policies", "acl by signature"): (*REFUSED, OWN_CODE),
    ("stored_policies", "whole: read, end in the signature"): (*REFUSED, BOTH),
    ("stored_policies", "no end: read"): (*REFUSED, ENDLESS),
    ("stored_policies", "no end: delete"): (*REFUSED, ENDLESS),
    ("stored_policies", "six: set"): (400, "InvalidXmlDocument", FIVE),
    ("metadata_limits", "no name"): (400, "EmptyMetadataKey", "Azurite takes metadata without a name"),
    ("copies_that_have_ended", "abort of none"): (409, "NoPendingCopyOperation", "there is no copy that could differ"),
    ("copies_that_have_ended", "copy if source match another"): (412, "SourceConditionNotMet", CONDITION),
    ("copies_that_have_ended", "copy if source none-match its etag"): (412, "SourceConditionNotMet", CONDITION),
    ("copies_that_have_ended", "copy of nothing"): (404, "CannotVerifyCopySource", "the service says what it is about"),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_services_answer_alike(name: str, azurite: Azurite, shared_server: PageBlobServer) -> None:
    assert not compare(name, SCENARIOS[name], DEVIATIONS, azurite, shared_server)
