"""Stored access policies, user delegation keys and tiers, asked for by the Azure SDK or in the reference's words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.storage.blob import (
    AccessPolicy,
    BlobSasPermissions,
    BlobServiceClient,
    ContainerClient,
    ContainerSasPermissions,
    generate_blob_sas,
    generate_container_sas,
)

from blobfuse_dysk.testing import PageBlobServer
from tests.polling import eventually
from tests.wire.rest import Rest

PAGE = 512
GIB = 1 << 30
TOKEN = "an owner's token"


@pytest.fixture
def server() -> Iterator[PageBlobServer]:
    with PageBlobServer(tokens={TOKEN: {"permissions": "rwdlc"}}, https=True) as running:
        running.create("disks", "disk", 64 * PAGE)
        yield running


@pytest.fixture
def rest(server: PageBlobServer) -> Iterator[Rest]:
    with Rest(server.endpoint, server.account, server.key, ca_file=server.ca_file) as found:
        yield found


def soon(seconds: float = 3600) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def with_sas(server: PageBlobServer) -> Rest:
    return Rest(server.endpoint, server.account, server.key, auth="sas", ca_file=server.ca_file)


def status(server: PageBlobServer, sas: str, path: str = "disks/disk", method: str = "GET", query: str = "") -> int:
    """Of a request with a signature."""
    with with_sas(server) as rest:
        return rest(method, path, "&".join(filter(None, [query, sas]))).status


# Stored access policies.


def policy_sas(server: PageBlobServer, **more: Any) -> str:
    return generate_blob_sas(server.account, "disks", "disk", account_key=server.key, policy_id="readers", **more)


@pytest.fixture
def container(server: PageBlobServer) -> Iterator[ContainerClient]:
    """The container by the SDK, its owner."""
    with BlobServiceClient(server.endpoint, server.key, connection_verify=server.ca_file) as service:
        yield service.get_container_client("disks")


def test_a_policy_says_what_a_signature_leaves_out_and_is_taken_back(
    server: PageBlobServer, container: ContainerClient
) -> None:
    sas = policy_sas(server)
    assert status(server, sas) == 403
    policy = AccessPolicy(ContainerSasPermissions(read=True), soon(), soon(-60))
    container.set_container_access_policy({"readers": policy})
    (found,) = container.get_container_access_policy()["signed_identifiers"]
    assert (found.id, found.access_policy.permission) == ("readers", "r")
    assert status(server, sas) == 200
    assert status(server, sas, method="DELETE") == 403
    assert status(server, policy_sas(server, permission=BlobSasPermissions(read=True))) == 403  # both say it
    container.set_container_access_policy({})
    assert status(server, sas) == 403


def test_a_policy_may_leave_the_end_to_the_signature(server: PageBlobServer, container: ContainerClient) -> None:
    container.set_container_access_policy({"readers": AccessPolicy(ContainerSasPermissions(read=True, list=True))})
    assert status(server, policy_sas(server)) == 403  # no end at all
    assert status(server, policy_sas(server, expiry=soon())) == 200
    assert status(server, policy_sas(server, expiry=soon(-1))) == 403
    listing = generate_container_sas(
        server.account, "disks", account_key=server.key, policy_id="readers", expiry=soon()
    )
    assert status(server, listing, "disks", query="restype=container&comp=list") == 200


def test_policies_are_five_at_most_and_for_the_owner(
    server: PageBlobServer, container: ContainerClient, rest: Rest
) -> None:
    item = "<SignedIdentifier><Id>{}</Id><AccessPolicy><Expiry>{}</Expiry></AccessPolicy></SignedIdentifier>"

    def put(*items: str) -> int:
        body = f"<SignedIdentifiers>{''.join(items)}</SignedIdentifiers>".encode()
        return rest("PUT", "disks", "restype=container&comp=acl", body=body).status

    many = [item.format(name, "2030-01-01T00:00:00Z") for name in range(6)]
    assert (put(*many[:5]), put(*many), put(many[0], many[0])) == (200, 400, 400)
    assert put(item.format("a", "tomorrow")) in (400, 403)
    assert rest("PUT", "disks", "restype=container&comp=acl", body=b"<no xml").code == "InvalidXmlDocument"
    sas = generate_container_sas(
        server.account, "disks", account_key=server.key, permission=ContainerSasPermissions.from_string("rwdl"),
        expiry=soon(),
    )  # fmt: skip
    assert status(server, sas, "disks", query="restype=container&comp=acl") == 403


def test_policies_outlive_the_server(server: PageBlobServer, tmp_path: Any) -> None:
    with PageBlobServer(directory=str(tmp_path), https=True) as kept:
        kept.create("disks", "disk", PAGE)
        with BlobServiceClient(kept.endpoint, kept.key, connection_verify=kept.ca_file) as service:
            policy = AccessPolicy(ContainerSasPermissions(read=True), soon())
            service.get_container_client("disks").set_container_access_policy({"readers": policy})
        kept.kill()
        kept.start()
        assert status(kept, policy_sas(kept)) == 200


# User delegation keys.


class Credential:
    """What azure-identity would give."""

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken(TOKEN, int(soon().timestamp()))


def test_a_user_signs_with_a_key_of_a_week_at_most(server: PageBlobServer) -> None:
    with BlobServiceClient(server.endpoint, Credential(), connection_verify=server.ca_file) as service:
        key = service.get_user_delegation_key(soon(-60), soon(7200))
        with pytest.raises(Exception, match="InvalidXmlNodeValue"):
            service.get_user_delegation_key(soon(-60), soon(8 * 86400))

    def signed(permissions: str, expiry: datetime, **more: Any) -> str:
        permission = BlobSasPermissions.from_string(permissions)
        return generate_blob_sas(
            server.account, "disks", "disk", user_delegation_key=key, permission=permission, expiry=expiry, **more
        )

    assert status(server, signed("r", soon())) == 200
    assert status(server, signed("r", soon()), method="DELETE") == 403
    assert status(server, signed("r", soon(-1))) == 403
    assert status(server, signed("r", soon(), correlation_id="1234")) == 200
    key.value = "AAAA" + str(key.value)[4:]
    assert status(server, signed("r", soon())) == 403


def test_a_user_delegation_key_ends(server: PageBlobServer) -> None:
    with BlobServiceClient(server.endpoint, Credential(), connection_verify=server.ca_file) as service:
        key = service.get_user_delegation_key(soon(-60), soon(600))
    sas = generate_blob_sas(
        server.account, "disks", "disk", user_delegation_key=key, permission=BlobSasPermissions(read=True),
        expiry=soon(7200),
    )  # fmt: skip
    assert status(server, sas) == 200
    server.configure(clock_offset_s=700)
    assert status(server, sas) == 403


def test_only_the_owner_of_a_token_gets_a_user_delegation_key(rest: Rest) -> None:
    body = f"<KeyInfo><Start/><Expiry>{soon().strftime('%Y-%m-%dT%H:%M:%SZ')}</Expiry></KeyInfo>".encode()
    reply = rest("POST", "", "restype=service&comp=userdelegationkey", {"Content-Length": str(len(body))}, body)
    assert (reply.status, reply.code) == (403, "AuthenticationFailed")


# Tiers.


def set_tier(rest: Rest, tier: str, path: str = "disks/disk") -> str:
    """Set Blob Tier; its error code."""
    return rest("PUT", path, "comp=tier", {"x-ms-access-tier": tier}).code


def test_tiers_of_a_premium_account_are_inferred_and_raised(server: PageBlobServer, rest: Rest) -> None:
    assert "x-ms-access-tier" not in rest("HEAD", "disks/disk").headers
    assert set_tier(rest, "P10") == "BlobAccessTierNotSupportedForAccountType"
    server.configure(sku="Premium_LRS")
    server.create("disks", "large", 200 * GIB)
    for path, tier in (("disks/disk", "P4"), ("disks/large", "P15")):
        found = rest("HEAD", path).headers
        assert (found["x-ms-access-tier"], found["x-ms-access-tier-inferred"]) == (tier, "true")
    etag = rest("HEAD", "disks/disk").headers["etag"]
    assert set_tier(rest, "P30") == ""
    found = rest("HEAD", "disks/disk").headers
    assert (found["x-ms-access-tier"], found["etag"]) == ("P30", etag)
    assert "x-ms-access-tier-change-time" in found
    assert "x-ms-access-tier-inferred" not in found
    assert set_tier(rest, "P80") == ""
    assert set_tier(rest, "P30") == "CannotChangeToLowerTier"
    assert set_tier(rest, "P7") == "InvalidHeaderValue"
    assert set_tier(rest, "P10", "disks/large") == "BlobTierInadequateForContentLength"


def test_a_new_blob_has_the_tier_that_it_was_given(server: PageBlobServer, rest: Rest) -> None:
    server.configure(sku="Premium_LRS")
    assert rest.create("disks/new", PAGE, x_ms_access_tier="P20").status == 201
    assert rest("HEAD", "disks/new").headers["x-ms-access-tier"] == "P20"
    source = {"x-ms-copy-source": f"{server.endpoint}/disks/new", "x-ms-access-tier": "P30"}
    assert rest("PUT", "disks/copy", headers=source).status == 202
    assert rest("HEAD", "disks/copy").headers["x-ms-access-tier"] == "P30"


def test_a_tier_limits_its_blob(server: PageBlobServer, rest: Rest) -> None:
    """P4 has 25 MB/s, so that 128 MiB, once let through, are what it has for the next five seconds."""
    server.create("disks", "disk", 128 << 20)
    server.configure(sku="Premium_LRS")
    with Rest(server.endpoint, server.account, server.key, ca_file=server.ca_file) as other:
        other.send("GET", "disks/disk", headers={"x-ms-range": f"bytes=0-{(128 << 20) - 1}"})
        eventually(lambda: server.stats()["requests"].get("get_blob") == 1)
        assert rest.get("disks/disk", 0, PAGE).code == "ServerBusy"
        server.configure(sku="Standard_LRS")
        assert rest.get("disks/disk", 0, PAGE).code == ""
