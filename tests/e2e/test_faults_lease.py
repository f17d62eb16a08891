"""Renewals that fail: for less than a lease nobody notices; for more, writes pause, reads go on, nothing is lost."""

from __future__ import annotations

import json

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.checker import Checker
from tests.e2e.kit import Node, faulty_node, until
from tests.e2e.loads import attached, blob_digest, unsafe_writes

__all__ = ["faulty_node"]


@pytest.fixture
def node(faulty_node: Node) -> Node:
    """A node that uses `server`."""
    return faulty_node


def state(node: Node) -> str:
    return str(json.loads(node.ok("get", "data", "-o", "json"))["state"])


def finish(node: Node, server: PageBlobServer, checker: Checker) -> None:
    checker.stop()
    checker.verify()
    node.ok("detach", "data")
    assert blob_digest(node, length=checker.size) == checker.digest()
    assert unsafe_writes(server) == {}


def test_some_renewals_fail(node: Node, server: PageBlobServer) -> None:
    checker = Checker(attached(node, "data", "--lease", "15"))
    checker.start()
    server.fault("error", operation="lease", status=503, times=1)
    server.fault("reset", operation="lease", when="after", times=1)
    server.fault("error", operation="lease", status=500, times=1)
    until(lambda: server.stats()["requests"].get("lease_renew", 0) >= 3, "renewals", 40)
    until(checker.progress(50), "I/O")
    assert state(node) == "attached"
    finish(node, server, checker)


@pytest.mark.parametrize("cache", ["none", "readwrite"])
def test_all_renewals_fail_for_longer_than_the_lease(node: Node, server: PageBlobServer, cache: str) -> None:
    device = attached(node, "data", "--lease", "15", "--cache", cache)
    checker = Checker(device)
    checker.run(10)
    server.fault("error", operation="lease", status=500, code="InternalError")
    checker.start()
    until(lambda: state(node) == "paused", "the state paused", 40)
    until(lambda: server.stats()["writes_in_flight"] == 0, "the end of writes that were sent before")
    written = server.stats()["requests"]["put_page"]
    if cache == "none":  # the loop driver carries out a flush before anything that came after it, reads included
        assert node.run("dd", f"if={device}", "of=/dev/null", "bs=1M", "count=8", "skip=16", "iflag=direct").code == 0
    assert server.stats()["requests"]["put_page"] == written
    server.clear_faults()
    until(checker.progress(100), "writes after the pause", 40)
    assert state(node) == "attached"
    finish(node, server, checker)


def test_the_lease_runs_out_at_the_service(node: Node, server: PageBlobServer) -> None:
    """As after a stop of this machine; nobody else took it, so it is taken up again."""
    checker = Checker(attached(node))
    checker.start()
    until(checker.progress(100), "I/O")
    server.elapse_leases(100)
    until(checker.progress(200), "I/O after that")
    assert state(node) == "attached"
    finish(node, server, checker)
