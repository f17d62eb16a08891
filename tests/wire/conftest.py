"""Fixtures of the tests that steer the page blob server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.wire.steered import OLD, PATH, client


@pytest.fixture(scope="module")
def running() -> Iterator[PageBlobServer]:
    """One server for a file."""
    with PageBlobServer(seed=7) as server:
        yield server


@pytest.fixture
def steered(running: PageBlobServer) -> Iterator[PageBlobServer]:
    """No fault in force, counts at zero, and a fresh disk whose first page holds OLD."""
    running.clear_faults()
    running.create("disks", "disk", 1 << 20)
    with client(running) as rest:
        assert rest.put(PATH, 0, OLD).status == 201
    running.reset_stats()
    yield running
    running.clear_faults()
    running.release()
    running.configure(idle_death_s=None, idle_timeout_s=None)
