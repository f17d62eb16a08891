"""Azurite and the project's own server agree: who gets in, and what refuses the rest."""

from __future__ import annotations

import base64
import email.utils
import time
from collections.abc import Callable

import pytest

from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.testing.azurite import Azurite
from tests.wire.parity import DATA, PAGE, Deviations, Scenario, Script, compare
from tests.wire.rest import Reply, Rest
from tests.wire.sas import account_sas, blob_sas, container_sas

SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Register."""
    SCENARIOS[function.__name__] = function
    return function


def uses(rest: Rest, path: str, sas: str) -> dict[str, Callable[[], Reply]]:
    """One request for each permission."""
    container = path.partition("/")[0]
    write = {"x-ms-page-write": "update", "x-ms-range": "bytes=0-511"}
    return {
        "read": lambda: rest("GET", path, sas, {"x-ms-range": "bytes=0-511"}),
        "properties": lambda: rest("HEAD", path, sas),
        "page list": lambda: rest("GET", path, f"comp=pagelist&{sas}"),
        "write": lambda: rest("PUT", path, f"comp=page&{sas}", write, DATA),
        "lease": lambda: rest(
            "PUT", path, f"comp=lease&{sas}", {"x-ms-lease-action": "acquire", "x-ms-lease-duration": "-1"}
        ),
        "break": lambda: rest(
            "PUT", path, f"comp=lease&{sas}", {"x-ms-lease-action": "break", "x-ms-lease-break-period": "0"}
        ),
        "metadata": lambda: rest("PUT", path, f"comp=metadata&{sas}", {"x-ms-meta-a": "b"}),
        "sequence number": lambda: rest(
            "PUT",
            path,
            f"comp=properties&{sas}",
            {"x-ms-sequence-number-action": "max", "x-ms-blob-sequence-number": "1"},
        ),
        "snapshot": lambda: rest("PUT", path, f"comp=snapshot&{sas}"),
        "list": lambda: rest("GET", container, f"restype=container&comp=list&{sas}"),
        "delete": lambda: rest("DELETE", path, sas, {"x-ms-delete-snapshots": "include"}),
        "create": lambda: rest("PUT", path, sas, {"x-ms-blob-type": "PageBlob", "x-ms-blob-content-length": "512"}),
    }


def try_all(script: Script, label: str, path: str, sas: str) -> None:
    """Every use with one SAS; a lease id that was made up by the server is not compared."""
    server = script.server
    with Rest(server.endpoint, server.account, server.key, auth="sas") as rest:
        for use, send in uses(rest, path, sas).items():
            script.note(f"{label}: {use}", send())
            seen = script.seen[f"{label}: {use}"]
            if "x-ms-lease-id" in seen:
                seen["x-ms-lease-id"] = "new"


@scenario
def shared_key(script: Script) -> None:
    server, path = script.server, script.blob()
    wrong = base64.b64encode(b"another key").decode()
    with Rest(server.endpoint, server.account, wrong) as rest:
        script.note("wrong key", rest.get(path, 0, PAGE))
    right = script.rest
    script.note("other account", right("HEAD", path, headers={"Authorization": "SharedKey other:c2ln"}))
    script.note("no signature", right("HEAD", path, headers={"Authorization": f"SharedKey {server.account}:"}))
    script.note("unknown scheme", right("HEAD", path, headers={"Authorization": "Basic c2ln"}))
    with Rest(server.endpoint.replace(server.account, "nosuchaccount"), "nosuchaccount", server.key) as rest:
        script.note("no such account", rest("GET", "container/blob"))
    with Rest(server.endpoint, server.account, server.key, auth="none") as rest:
        script.note("nothing at all", rest("GET", path))
        script.note("unknown token", rest("GET", path, headers={"Authorization": "Bearer abc"}))


@scenario
def dates(script: Script) -> None:
    path = script.blob()
    for label, seconds in (("old", -1800), ("young", 1800), ("a little old", -600)):
        date = email.utils.formatdate(time.time() + seconds, usegmt=True)
        script.note(label, script.rest.get(path, 0, PAGE, x_ms_date=date))


@scenario
def signed_details(script: Script) -> None:
    """What a signature covers besides the obvious."""
    rest = script.rest
    script.note("name to be encoded", rest.create(f"{script.container}/a b+c%/ü", 512))
    script.note("read it", rest.get(f"{script.container}/a b+c%/ü", 0, 512))
    path = script.blob()
    script.note("content type", rest("PUT", path, "comp=metadata", {"Content-Type": "text/plain"}))
    script.note("encoded query", rest("GET", script.container, "comp=list&prefix=a%20b&restype=container"))


@scenario
def account_signatures(script: Script) -> None:
    server = script.server
    for permissions in ("r", "w", "c", "d", "l", "rw", "rwdlc"):
        path = script.blob(permissions)
        try_all(script, permissions, path, account_sas(server.account, server.key, permissions))


@scenario
def account_resources(script: Script) -> None:
    server, path = script.server, script.blob()
    for resources in ("s", "c", "o"):
        sas = account_sas(server.account, server.key, "rwdlc", resources)
        with Rest(server.endpoint, server.account, server.key, auth="sas") as rest:
            script.note(f"{resources}: containers", rest("GET", "", f"comp=list&prefix={script.container}&{sas}"))
            script.note(f"{resources}: blobs", rest("GET", script.container, f"comp=list&restype=container&{sas}"))
            script.note(f"{resources}: blob", rest("HEAD", path, sas))


@scenario
def blob_signatures(script: Script) -> None:
    server = script.server
    for permissions in ("r", "w", "c", "d", "rwdc"):
        path = script.blob(permissions)
        try_all(script, permissions, path, blob_sas(server.account, server.key, path, permissions))
    other = script.blob("other")
    with Rest(server.endpoint, server.account, server.key, auth="sas") as rest:
        script.note("another blob", rest("HEAD", other, blob_sas(server.account, server.key, path, "r")))


@scenario
def container_signatures(script: Script) -> None:
    server = script.server
    for permissions in ("r", "l", "rwdl"):
        path = script.blob(permissions)
        try_all(script, permissions, path, container_sas(server.account, server.key, script.container, permissions))


@scenario
def signature_limits(script: Script) -> None:
    server, path = script.server, script.blob()
    wrong = base64.b64encode(b"another key").decode()
    with Rest(server.endpoint, server.account, server.key, auth="sas") as rest:
        for label, sas in {
            "expired": account_sas(server.account, server.key, "r", end_s=-60),
            "not yet": account_sas(server.account, server.key, "r", start_s=600),
            "wrong key": account_sas(server.account, wrong, "r"),
            "https only": account_sas(server.account, server.key, "r", protocol="https"),
            "this address": account_sas(server.account, server.key, "r", ip="127.0.0.1"),
            "address range": account_sas(server.account, server.key, "r", ip="127.0.0.0-127.0.0.9"),
            "another address": account_sas(server.account, server.key, "r", ip="10.0.0.1"),
            "blob expired": blob_sas(server.account, server.key, path, "r", end_s=-60),
            "blob wrong key": blob_sas(server.account, wrong, path, "r"),
            "tampered": account_sas(server.account, server.key, "r").replace("sp=r", "sp=rw"),
        }.items():
            script.note(label, rest("GET", path, sas, {"x-ms-range": "bytes=0-511"}))


OWN_CODE = "Azurite says AuthorizationFailure whatever failed"
NO_CHECK = "Azurite does not check it"

DEVIATIONS: Deviations = {
    **{
        (name, label): (403, "AuthenticationFailed", OWN_CODE)
        for name, labels in {
            "shared_key": ("wrong key", "other account", "no signature", "unknown token"),
            "blob_signatures": ("r: list", "w: list", "c: list", "d: list", "rwdc: list", "another blob"),
            "signature_limits": ("expired", "not yet", "wrong key", "blob expired", "blob wrong key", "tampered"),
        }.items()
        for label in labels
    },
    ("shared_key", "unknown scheme"): (400, "InvalidAuthenticationInfo", OWN_CODE),
    ("shared_key", "nothing at all"): (401, "NoAuthenticationInformation", OWN_CODE),
    ("dates", "old"): (403, "AuthenticationFailed", NO_CHECK),
    ("dates", "young"): (403, "AuthenticationFailed", NO_CHECK),
    ("account_signatures", "c: create"): (403, "UnauthorizedBlobOverwrite", "Azurite names no overwrite"),
    ("blob_signatures", "c: create"): (403, "UnauthorizedBlobOverwrite", "Azurite names no overwrite"),
    ("signature_limits", "another address"): (403, "AuthorizationSourceIPMismatch", NO_CHECK),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_services_answer_alike_to_every_proof(name: str, azurite: Azurite, shared_server: PageBlobServer) -> None:
    assert not compare(name, SCENARIOS[name], DEVIATIONS, azurite, shared_server)
