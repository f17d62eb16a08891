"""A machine that sleeps: the fixture `suspend`, for the directories whose tests stop the clock so."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from blobfuse_dysk.store.lease import token

__all__ = ["Suspend", "suspend"]

Suspend = Callable[[float], None]


@pytest.fixture
def suspend(monkeypatch: pytest.MonkeyPatch) -> Suspend:
    """Let so many seconds pass in which the machine sleeps: CLOCK_MONOTONIC, which is trio's, stands still."""
    real = time.clock_gettime
    asleep = [0.0]
    monkeypatch.setattr(time, "clock_gettime", lambda c: real(c) + (asleep[0] if c == time.CLOCK_BOOTTIME else 0.0))
    monkeypatch.setattr(token, "_sleep", token._Sleep())

    def suspend(seconds: float) -> None:
        asleep[0] += seconds

    return suspend
