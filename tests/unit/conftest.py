"""Fixtures of the unit tests."""

from __future__ import annotations

import time

import pytest

from blobfuse_dysk.store import guard
from tests.unit.fenced import Suspend


@pytest.fixture
def suspend(monkeypatch: pytest.MonkeyPatch) -> Suspend:
    """Let so many seconds pass in which the machine sleeps: CLOCK_MONOTONIC, which is trio's, stands still."""
    real = time.clock_gettime
    asleep = [0.0]
    monkeypatch.setattr(time, "clock_gettime", lambda c: real(c) + (asleep[0] if c == time.CLOCK_BOOTTIME else 0.0))
    monkeypatch.setattr(guard, "_sleep", guard._Sleep())

    def suspend(seconds: float) -> None:
        asleep[0] += seconds

    return suspend
