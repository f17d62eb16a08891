"""Every misbehaviour of a service, while a disk is being written to: late it may be, but no I/O error, no wrong byte.

The server counts what it sees. A single writer never has two overlapping writes in flight that could both land, and
never writes without its lease and epoch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.checker import Checker
from tests.e2e.kit import Node, faulty_node, until
from tests.e2e.loads import attached, blob_digest, device_digest, fio, server_of, unsafe_writes

__all__ = ["faulty_node"]


@pytest.fixture
def node(faulty_node: Node) -> Node:
    """A node that uses `server`."""
    return faulty_node


@dataclass(frozen=True)
class Rule:
    """A fault by name: fields of the server's fault, and options for the attach."""

    name: str
    fields: dict[str, Any]
    options: tuple[str, ...] = field(default=())


DATA = {"operation": ["read", "write"], "probability": 0.06}
ANY = {"operation": "any", "probability": 0.06}
MD5 = ("--checksum", "md5")
RULES = [
    Rule("busy", {"action": "error", "status": 503, **ANY}),
    Rule("busy, come back in a second", {"action": "error", "status": 503, "retry_after_s": 1, "times": 3, **DATA}),
    Rule("a gateway's 503", {"action": "error", "status": 503, "code": "", **DATA}),
    Rule("a gateway's 503 after applying", {"action": "error", "status": 503, "code": "", "when": "after", **DATA}),
    Rule("timed out", {"action": "error", "status": 500, **ANY}),
    Rule("timed out after applying", {"action": "error", "status": 500, "when": "after", **ANY}),
    Rule("internal error", {"action": "error", "status": 500, "code": "InternalError", **ANY}),
    Rule("reset before applying", {"action": "reset", **ANY}),
    Rule("reset after applying", {"action": "reset", "when": "after", **ANY}),
    Rule("answer lost, closed", {"action": "lost", "connection": "close", **ANY}),
    Rule("answer lost, reset", {"action": "lost", **ANY}),
    Rule("delayed", {"action": "delay", "seconds": 0.2, **ANY}),
    Rule("stalled half way", {"action": "stall", "seconds": 0.2, **ANY}),
    Rule("short answer", {"action": "short", **ANY}),
    Rule("damaged on the way", {"action": "corrupt", **DATA}, MD5),
    Rule("wrong etag", {"action": "wrong_etag", **ANY}),
    Rule("unauthorized for a moment", {"action": "error", "status": 401, "times": 20, **DATA}),
    Rule("forbidden for a moment", {"action": "error", "status": 403, "times": 20, **DATA}),
    Rule("lease conflict", {"action": "error", "status": 409, "times": 20, **DATA}),
    Rule("condition not met", {"action": "error", "status": 412, "times": 20, **DATA}),
    Rule(
        "epoch not met",
        {"action": "error", "status": 412, "code": "SequenceNumberConditionNotMet", "times": 20, **DATA},
    ),
    Rule("lease id not taken", {"action": "error", "status": 412, "code": "LeaseIdMissing", "times": 20, **DATA}),
]


def settle(node: Node, checker: Checker) -> None:
    """The end of each test: what the device has is right, what the service has is right, and nobody was unsafe."""
    server = server_of(node)
    server.clear_faults()
    server.release()
    checker.verify()
    node.ok("detach", "data")
    assert blob_digest(node, length=checker.size) == checker.digest()
    assert unsafe_writes(server) == {}
    assert node.nothing_left()


@pytest.mark.parametrize("cache", ["none", "readwrite"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_no_fault_while_writing_costs_data(node: Node, server: PageBlobServer, rule: Rule, cache: str) -> None:
    checker = Checker(attached(node, "data", "--cache", cache, *rule.options))
    checker.run(10)
    server.fault(**rule.fields)
    checker.run(100)
    assert server.stats()["faults"][rule.fields["action"]] >= min(3, rule.fields.get("times", 3))
    settle(node, checker)


@pytest.mark.parametrize(
    "answer",
    [{"connection": "reset"}, {"connection": "close"}, {"status": 500}, {"status": 503, "code": ""}],
    ids=["reset", "closed", "said to have timed out", "said to be away"],
)
@pytest.mark.parametrize("cache", ["none", "readwrite"])
def test_requests_held_somewhere_never_land_later(
    node: Node, server: PageBlobServer, answer: dict[str, Any], cache: str
) -> None:
    """They come when newer writes of the same pages are done; each is refused for its epoch."""
    checker = Checker(attached(node, "data", "--cache", cache))
    checker.run(10)
    rule = server.fault("late", operation="write", probability=0.06, **answer)
    checker.run(100)
    server.clear_faults(rule)
    held = server.stats()["faults"]["late"]
    assert held > 3
    assert server.release() == held
    stats = server.stats()
    assert (stats["held_applied"], stats["held_refused"]) == (0, held)
    checker.run(20)
    settle(node, checker)


def test_requests_held_for_a_moment(node: Node, server: PageBlobServer) -> None:
    """They may land before the retry is sent, or be refused; never after it."""
    checker = Checker(attached(node))
    server.fault("late", operation="write", probability=0.06, seconds=0.02)
    checker.run(120)
    server.clear_faults()
    stats = server.stats()
    until(lambda: server.stats()["writes_in_flight"] == 0, "the end of what is held")
    assert stats["faults"]["late"] > 3
    settle(node, checker)


def wait_until_still(checker: Checker) -> None:
    """Until two looks, half a second apart, find the same number of operations."""
    before = -1
    while before != checker.done:
        before = checker.done
        time.sleep(0.5)


@pytest.mark.parametrize("kind", ["silent", "refuse"])
def test_after_an_outage_io_goes_on_and_nothing_is_lost(node: Node, server: PageBlobServer, kind: str) -> None:
    checker = Checker(attached(node))
    checker.start()
    until(checker.progress(200), "I/O before the outage")
    server.outage(kind)
    wait_until_still(checker)
    server.outage(None)
    until(checker.progress(200), "I/O after the outage", 60)
    checker.stop()
    settle(node, checker)


def test_a_server_that_hangs(node: Node, server: PageBlobServer) -> None:
    """Its kernel takes connections and data, but nothing is answered until it goes on."""
    checker = Checker(attached(node))
    checker.start()
    until(checker.progress(200), "I/O before")
    server.pause()
    wait_until_still(checker)
    server.resume()
    until(checker.progress(200), "I/O after", 60)
    checker.stop()
    settle(node, checker)


def test_requests_that_vanish(node: Node, server: PageBlobServer) -> None:
    """No answer and no end of the connection: an attempt is given up while there is time for another one."""
    checker = Checker(attached(node, "data", "--io-timeout", "12s"))
    checker.run(10)
    server.fault("blackhole", operation=["read", "write"], times=6)
    checker.run(40)
    assert server.stats()["faults"]["blackhole"] == 6
    settle(node, checker)


@pytest.mark.parametrize("throttle", ["503", "delay"])
def test_a_tier_with_limits(node: Node, server: PageBlobServer, throttle: str) -> None:
    # Without a cache, and more at once than the limiter begins with: the first refusals must come before it knows.
    checker = Checker(attached(node, "data", "--cache", "none"), tasks=40)
    server.configure(tier="300/30" if throttle == "503" else "P10", throttle=throttle)
    checker.run(30)
    if throttle == "503":
        assert server.stats()["codes"]["ServerBusy"] > 0
    server.configure(tier=None)
    settle(node, checker)


@pytest.mark.parametrize("latency", ["normal:6,3", "lognormal:3,1.2"])
def test_latency_of_all_kinds(node: Node, server: PageBlobServer, latency: str) -> None:
    """Answers come in another order than requests went out."""
    checker = Checker(attached(node), tasks=16)
    server.configure(latency_ms=latency)
    checker.run(60)
    assert server.stats()["blobs"][f"{server.account}/{node.container}/data"]["max_writes_in_flight"] > 2
    server.configure(latency_ms=0)
    settle(node, checker)


def all_at_once(server: PageBlobServer) -> None:
    for rule in RULES:
        fields = {**rule.fields, "probability": 0.01, "operation": ["read", "write"]}
        if not {"times", "status"} & set(fields) or fields.get("status", 0) >= 500:
            server.fault(**fields)
    server.fault("late", operation="write", probability=0.01)


def test_fio_with_all_of_them_at_once(node: Node, server: PageBlobServer) -> None:
    server.configure(latency_ms="lognormal:1,0.7")
    # The write cache makes so few requests of this load that hardly any kind would strike.
    device = attached(node, "data", "--cache", "none", *MD5)
    all_at_once(server)
    fio(device)
    stats = server.stats()
    assert sum(stats["faults"].values()) > 10 and len(stats["faults"]) >= 5
    server.clear_faults()
    server.release()
    assert server.stats()["held_applied"] == 0
    before = device_digest(device)
    node.ok("detach", "data")
    assert blob_digest(node) == before
    assert unsafe_writes(server) == {}


def test_a_file_system_with_all_of_them_at_once(node: Node, server: PageBlobServer) -> None:
    disk = node.create()
    assert node.mount(disk, "fstype=ext4,checksum=md5").code == 0
    all_at_once(server)
    fio(node.mountpoint / "load", size="8m")
    (node.mountpoint / "load").unlink()
    for number in range(50):
        (node.mountpoint / f"{number}").write_text(f"file {number}\n" * number)
    assert node.umount().code == 0
    server.clear_faults()
    server.release()
    assert server.stats()["held_applied"] == 0
    assert node.mount(disk, "ro").code == 0
    for number in range(50):
        assert (node.mountpoint / f"{number}").read_text() == f"file {number}\n" * number
    assert node.umount().code == 0
    assert unsafe_writes(server) == {}
