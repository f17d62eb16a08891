"""Errors: what they carry, and that it all arrives in another process."""

from __future__ import annotations

import json

import pytest

from blobfuse_dysk import errors
from blobfuse_dysk.device.ipc import message
from blobfuse_dysk.errors import (
    AttachedError,
    BusyError,
    CredentialError,
    DeviceError,
    DyskError,
    Kind,
    LeasedError,
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
    *(kind("what", remedy="why") for kind in (AttachedError, BusyError, CredentialError, DeviceError, UsageError)),
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
        ({"type": "BusyError", "message": "m", "remedy": "r", "uses": 3}, BusyError, "r"),
        ({"type": "LeasedError", "message": "m", "remedy": "r"}, LeasedError, "r"),
        ({"type": "ServiceError", "message": "m", "remedy": "r"}, DyskError, "r"),
        ({"type": "StoreError", "message": "m", "kind": "of tomorrow"}, DyskError, None),
        ({"type": "TomorrowError", "message": "m", "remedy": "r"}, DyskError, "r"),
        ({"type": "Kind", "message": "m"}, DyskError, None),
        ({"type": "enum", "message": "m"}, DyskError, None),
    ],
)
def test_errors_of_another_version_cross_as_far_as_they_are_known(
    told: dict[str, object], kind: type[DyskError], remedy: str | None
) -> None:
    error = message.message_to_error(told)
    assert (type(error), str(error), error.remedy) == (kind, "m", remedy)
