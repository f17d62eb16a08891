"""Who gets in where Azurite cannot show it: HTTPS, bearer tokens, key rotation, clocks that differ."""

from __future__ import annotations

import ssl
import time

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.wire.rest import Reply, Rest
from tests.wire.sas import account_sas

PAGE = 512
PATH = "disks/disk"
OTHER_KEY = "b3RoZXIga2V5"


def client(server: PageBlobServer, auth: str = "key", timeout_s: float = 20) -> Rest:
    """A connection of its own."""
    return Rest(server.endpoint, server.account, server.key, auth=auth, ca_file=server.ca_file, timeout_s=timeout_s)


def read(server: PageBlobServer, auth: str = "key", timeout_s: float = 20) -> Reply:
    """One page over a new connection."""
    with client(server, auth, timeout_s) as rest:
        return rest.get(PATH, 0, PAGE)


def test_https_and_bearer_tokens() -> None:
    tokens = {
        "writer": {},
        "reader": {"permissions": "rl"},
        "stale": {"expires_at": time.time() - 1},
    }
    with PageBlobServer(https=True, tokens=tokens) as server:
        server.create("disks", "disk", PAGE)
        assert read(server).status == 206
        assert read(server, "bearer writer").status == 206
        with client(server, "bearer reader") as rest:
            assert rest.get(PATH, 0, PAGE).status == 206
            assert rest.put(PATH, 0, bytes(PAGE)).code == "AuthorizationPermissionMismatch"
        for token in ("stale", "unknown"):
            reply = read(server, f"bearer {token}")
            assert (reply.status, reply.code) == (401, "InvalidAuthenticationInfo")
            assert 'error="invalid_token"' in reply.headers["www-authenticate"]
        server.configure(tokens={"fresh": {"expires_at": time.time() + 60}})
        assert read(server, "bearer writer").status == 401
        assert read(server, "bearer fresh").status == 206
        with pytest.raises(ssl.SSLCertVerificationError):
            Rest(server.endpoint, server.account, server.key)("GET", PATH)


def test_bearer_tokens_over_http_are_refused() -> None:
    with PageBlobServer(tokens={"writer": {}}) as server:
        server.create("disks", "disk", PAGE)
        assert read(server, "bearer writer").code == "AuthenticationFailed"


def test_signature_for_https_only() -> None:
    with PageBlobServer(https=True) as server:
        server.create("disks", "disk", PAGE)
        sas = account_sas(server.account, server.key, "r", protocol="https")
        with client(server, "sas") as rest:
            assert rest.get(PATH, 0, PAGE, sas).status == 206


def test_two_keys_and_rotation() -> None:
    with PageBlobServer({"myaccount": [OTHER_KEY, "a2V5IHR3bw=="]}) as server:
        server.create("disks", "disk", PAGE)
        assert read(server).status == 206
        with Rest(server.endpoint, "myaccount", "a2V5IHR3bw==") as second:
            assert second.get(PATH, 0, PAGE).status == 206
            server.configure(accounts={"myaccount": ["a2V5IHR3bw=="]})
            assert read(server).code == "AuthenticationFailed"
            assert second.get(PATH, 0, PAGE).status == 206


def test_clock_of_the_service(server: PageBlobServer) -> None:
    server.create("disks", "disk", PAGE)
    server.configure(clock_offset_s=3600)
    with client(server) as rest:
        refused = rest.get(PATH, 0, PAGE)
        assert (refused.status, refused.code) == (403, "AuthenticationFailed")
        assert rest.get(PATH, 0, PAGE, x_ms_date=refused.headers["date"]).status == 206
