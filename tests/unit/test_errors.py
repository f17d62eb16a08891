"""Errors: what they carry, and that it all arrives in another process."""

from __future__ import annotations

import json

import pytest

from blobfuse_dysk import errors
from blobfuse_dysk.device.ipc import message, shapes
from blobfuse_dysk.device.ipc.statefile import Failure
from blobfuse_dysk.errors import (
    AttachedError,
    BusyError,
    CredentialError,
    DeviceError,
    DyskError,
    FailedCopyError,
    GatewayError,
    HasSnapshotsError,
    Kind,
    LaterError,
    LeasedError,
    LossError,
    NotFoundError,
    ServiceError,
    StoreError,
    TransportError,
    UsageError,
)

ERRORS = [
    LeasedError("leased by node b", holder="b", since="2026-01-31T12:00:00Z", remedy="--break-lease"),
    NotFoundError("no such disk", missing="disk"),
    StoreError("gone", Kind.GONE, unknown=True, epoch=3, retry_after_s=1.5),
    ServiceError("refused", status=403, code="AuthenticationFailed", remedy="see the key"),
    TransportError("cut off", sent=True, stale=True),
    GatewayError("not the service's", status=404, retry_after_s=7.0, remedy="see the proxy"),
    *(
        kind("what", remedy="why")
        for kind in (AttachedError, BusyError, CredentialError, DeviceError, LaterError, LossError, UsageError)
    ),
    HasSnapshotsError("has snapshots"),
    FailedCopyError("given up"),
    DyskError("what"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_cross_processes_with_all_that_they_carry(error: DyskError) -> None:
    assert set(error.FIELDS) == set(vars(error))
    again = message.message_to_error(json.loads(json.dumps(message.error_to_message(error))))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_no_class_of_errors_is_forgotten_above() -> None:
    assert {type(error).__name__ for error in ERRORS} == set(errors.__all__) - {"Kind"}


@pytest.mark.parametrize(
    ("told", "kind", "remedy"),
    [
        ({"type": "BusyError", "message": "m", "remedy": "r", "data": {"uses": 3}}, BusyError, "r"),
        ({"type": "LeasedError", "message": "m", "remedy": "r"}, LeasedError, "r"),
        ({"type": "ServiceError", "message": "m", "remedy": "r", "data": {}}, DyskError, "r"),
        ({"type": "StoreError", "message": "m", "remedy": None, "data": {"kind": "of tomorrow"}}, DyskError, None),
        ({"type": "StoreError", "message": "m", "remedy": None, "data": {"kind": []}}, DyskError, None),
        ({"type": "TomorrowError", "message": "m", "remedy": "r", "data": {"day": 1}}, DyskError, "r"),
        ({"type": "Kind", "message": "m", "remedy": None}, DyskError, None),
        ({"type": "enum", "message": "m", "remedy": None}, DyskError, None),
    ],
)
def test_errors_of_another_version_cross_as_far_as_they_are_known(
    told: Failure, kind: type[DyskError], remedy: str | None
) -> None:
    error = message.message_to_error(told)
    assert (type(error), str(error), error.remedy) == (kind, "m", remedy)


def test_what_is_said_of_an_error_is_never_too_long_for_a_message() -> None:
    told = message.error_to_message(BusyError("x" * 100_000, remedy="y" * 100_000))
    assert told["message"] == "x" * 1997 + "..."
    assert told["remedy"] == "y" * 1997 + "..."
    assert message.clip("x" * 2000) == "x" * 2000


def test_a_path_that_is_no_text_and_a_number_beyond_bounds_do_not_keep_an_error_from_arriving() -> None:
    told = message.error_to_message(
        ServiceError("no /a\udcff", status=503, retry_after_s=float("inf"), remedy="\ud800")
    )
    assert told == {"type": "ServiceError", "message": r"no /a\udcff", "remedy": r"\ud800", "data": {}}
    assert shapes.problem(told, Failure) is None
    assert str(message.message_to_error(told)) == r"no /a\udcff"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_is_said_of_an_error_gets_through_every_door(error: DyskError) -> None:
    assert shapes.problem(json.loads(json.dumps(message.error_to_message(error))), Failure) is None
