"""Fixtures of the unit tests."""

from __future__ import annotations

import time

import pytest
import trio

from blobfuse_dysk.store.lease import token
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from tests.unit.fenced import Suspend
from tests.unit.stacks import SIZE, Node


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


@pytest.fixture
def blob() -> SimBlob:
    """A page blob in memory."""
    return SimBlob(SIZE)


@pytest.fixture
async def node(blob: SimBlob, nursery: trio.Nursery) -> Node:
    """Makes a node's client: node("1", acquire=[LATE]) has this become of its first acquire."""

    def make(name: str, **fates: list[Fate]) -> SimClient:
        left = {operation: list(of) for operation, of in fates.items()}
        return SimClient(blob, nursery, lambda name: left[name].pop(0) if left.get(name) else Fate(), name=name)

    return make
