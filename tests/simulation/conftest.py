"""Fixtures of the simulations."""

from __future__ import annotations

import pytest
import trio

from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from tests.simulation.clocks import JumpingClock
from tests.simulation.stacks import SIZE, Node
from tests.suspension import suspend

__all__ = ["blob", "client", "jumping_clock", "node", "suspend"]


@pytest.fixture
def jumping_clock() -> JumpingClock:
    """The test runs on this clock; see there for what must not be used with it."""
    return JumpingClock()


@pytest.fixture
def blob() -> SimBlob:
    """A page blob in memory."""
    return SimBlob(SIZE)


@pytest.fixture
async def client(blob: SimBlob, nursery: trio.Nursery) -> SimClient:
    """The blob's only client, with a network that does nothing out of the ordinary until the test says so."""
    return SimClient(blob, nursery)


@pytest.fixture
async def node(blob: SimBlob, nursery: trio.Nursery) -> Node:
    """Makes a node's client: node("1", acquire=[LATE]) has this become of its first acquire."""

    def make(name: str, **fates: list[Fate]) -> SimClient:
        left = {operation: list(of) for operation, of in fates.items()}
        return SimClient(blob, nursery, lambda name: left[name].pop(0) if left.get(name) else Fate(), name=name)

    return make
