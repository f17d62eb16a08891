"""Azurite and the project's own server agree: every lease action and use in every state of a lease.

Source of both tables: https://learn.microsoft.com/rest/api/storageservices/lease-blob#remarks
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.testing.azurite import Azurite
from tests.wire.parity import DATA, PAGE, Deviations, Scenario, Script, compare, observe
from tests.wire.rest import Reply, Rest

A, B, C = "aaaaaaaa-0000-4000-8000-000000000001", "bbbbbbbb-0000-4000-8000-000000000002", str(uuid.UUID(int=3))

SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Register."""
    SCENARIOS[function.__name__] = function
    return function


@scenario
def arguments(script: Script) -> None:
    rest, path = script.rest, script.blob()
    for duration in ("0", "14", "61", "-2", "x"):
        script.note(f"duration {duration}", rest.lease(path, "acquire", duration=duration))
    script.note("no action", rest("PUT", path, "comp=lease"))
    script.note("bad action", rest.lease(path, "steal", duration="15"))
    script.note("infinite", rest.lease(path, "acquire", duration="-1", proposed=A))
    script.states("infinite: state", path)
    script.note("renew without id", rest.lease(path, "renew"))
    script.note("release without id", rest.lease(path, "release"))
    script.note("change without new id", rest.lease(path, "change", id=A))
    script.note("renew in capitals", rest.lease(path, "renew", id=A.upper()))
    script.note("break infinite", rest.lease(path, "break"))
    script.states("broken at once", path)
    script.note("no blob", rest.lease(f"{script.container}/none", "acquire", duration="15"))
    fixed = script.blob("fixed")
    assert rest.lease(fixed, "acquire", duration="15").status == 201
    script.note("break 61", rest.lease(fixed, "break", period="61"))
    script.note("bad id", rest.lease(script.blob("third"), "acquire", duration="15", proposed="not-a-guid"))
    script.note("no duration", rest.lease(script.blob("other"), "acquire", proposed=A))


def operations(rest: Rest, path: str) -> Iterator[tuple[str, Callable[[], Reply]]]:
    """Every lease action and use of the documented tables; A is the lease that is, was, or never was held."""
    yield "acquire", lambda: rest.lease(path, "acquire", duration="15")
    yield "acquire A", lambda: rest.lease(path, "acquire", duration="30", proposed=A)
    yield "acquire B", lambda: rest.lease(path, "acquire", duration="30", proposed=B)
    yield "renew A", lambda: rest.lease(path, "renew", id=A)
    yield "renew B", lambda: rest.lease(path, "renew", id=B)
    yield "change A to B", lambda: rest.lease(path, "change", id=A, proposed=B)
    yield "change B to A", lambda: rest.lease(path, "change", id=B, proposed=A)
    yield "change B to C", lambda: rest.lease(path, "change", id=B, proposed=C)
    yield "release A", lambda: rest.lease(path, "release", id=A)
    yield "release B", lambda: rest.lease(path, "release", id=B)
    yield "break", lambda: rest.lease(path, "break")
    yield "break 0", lambda: rest.lease(path, "break", period="0")
    yield "break 10", lambda: rest.lease(path, "break", period="10")
    yield "write", lambda: rest.put(path, 0, DATA)
    yield "write A", lambda: rest.put(path, 0, DATA, x_ms_lease_id=A)
    yield "write B", lambda: rest.put(path, 0, DATA, x_ms_lease_id=B)
    yield "read", lambda: rest.get(path, 0, PAGE)
    yield "read A", lambda: rest.get(path, 0, PAGE, x_ms_lease_id=A)
    yield "read B", lambda: rest.get(path, 0, PAGE, x_ms_lease_id=B)


def lease_table(script: Script, state: str) -> None:
    """Put a blob for each operation into `state`, then do them all, and look at each blob afterwards."""
    rest = script.rest
    labels = [label for label, _ in operations(rest, "")]
    paths = {label: script.blob(label.replace(" ", "-")) for label in labels}
    if state != "available":
        duration = "15" if state == "expired" else "60"
        for path in paths.values():
            assert rest.lease(path, "acquire", duration=duration, proposed=A).status == 201
    if state in ("breaking", "broken"):
        for path in paths.values():
            assert rest.lease(path, "break", period="30" if state == "breaking" else "0").status == 202
    if state == "expired" and isinstance(script.server, PageBlobServer):
        script.server.elapse_leases(15)
    wait_for_state(rest, list(paths.values())[-1], state)
    for label, path in paths.items():
        reply = dict(operations(rest, path))[label]()
        seen = observe(reply)
        if label == "acquire" and reply.status == 201:
            seen["x-ms-lease-id"] = "new"
        seen.pop("x-ms-lease-time", None)  # whole seconds of a clock that runs
        script.seen[label] = seen
        script.states(f"{label}: state", path)


def wait_for_state(rest: Rest, path: str, state: str) -> None:
    """Azurite has no other clock than the real one."""
    deadline = time.monotonic() + 30
    while rest("HEAD", path).headers["x-ms-lease-state"] != state:
        assert time.monotonic() < deadline
        time.sleep(0.2)


for _state in ("available", "leased", "expired", "breaking", "broken"):
    SCENARIOS[_state] = functools.partial(lease_table, state=_state)

EXPIRED = "Azurite says LeaseNotPresentWithBlobOperation with the message of LeaseLost"
NO_CODE = "Azurite's request validator answers 400 without x-ms-error-code"

DEVIATIONS: Deviations = {
    **{
        (state, label): (412, "LeaseLost", EXPIRED)
        for state in ("expired", "broken")
        for label in ("write A", "write B", "read A", "read B")
    },
    ("expired", "renew B"): (409, "LeaseIdMismatchWithLeaseOperation", "Azurite renews an expired lease by any id"),
    ("expired", "renew B: state"): (200, "", "Azurite renews an expired lease by any id"),
    **{
        ("arguments", label): (400, code, NO_CODE)
        for label, code in (
            ("duration x", "InvalidHeaderValue"),
            ("bad action", "InvalidHeaderValue"),
            ("no action", "MissingRequiredHeader"),
            ("renew without id", "MissingRequiredHeader"),
            ("release without id", "MissingRequiredHeader"),
            ("change without new id", "MissingRequiredHeader"),
        )
    },
    ("arguments", "renew in capitals"): (200, "", "Azurite tells capitals apart in a GUID"),
    ("arguments", "bad id"): (400, "InvalidHeaderValue", "Azurite takes any text for a lease id"),
    ("arguments", "no duration"): (400, "MissingRequiredHeader", "Azurite makes a lease that it then cannot read"),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_services_answer_alike_to_every_lease_action(
    name: str, azurite: Azurite, shared_server: PageBlobServer
) -> None:
    assert not compare(name, SCENARIOS[name], DEVIATIONS, azurite, shared_server)
