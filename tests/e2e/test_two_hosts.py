"""Two hosts and one disk: one of them writes, provably, whatever happens to the network on the way to the service."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.conftest import entries, need
from tests.e2e.checker import Checker
from tests.e2e.hosts import Host, network
from tests.e2e.kit import Node, until
from tests.e2e.loads import MIB, blob_digest, call, unsafe_writes
from tests.leaks import RunDirs
from tools.fiojobs import command

LEASE = ("--lease", "15")


@dataclass
class Two:
    """first and second, and the server that both reach by HTTPS."""

    first: Host
    second: Host
    server: PageBlobServer
    disk: str

    def state(self, host: Host) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(host.ok("get", "data", "-o", "json"))
        return found

    def until_state(self, host: Host, state: str, limit_s: float = 60.0) -> None:
        until(lambda: self.state(host)["state"] == state, f"state {state} at {host.name}", limit_s)

    def epoch(self) -> int:
        return int(self.server.blob(self.second.node.container, "data")["sequence_number"])


@pytest.fixture
def two(run_dirs: RunDirs, container: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    """The disk is there, blank; nothing is attached yet. What a failing test leaves attached is detached by force."""
    need(shutil.which("ip"), "iproute2 is not installed")
    with network() as net:
        for name in run_dirs.environment:
            monkeypatch.delenv(name)  # the server must not look like a process of the hosts'
        with PageBlobServer(https=True, host=net.address) as server:
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.ca_file))
            template = Node(run_dirs, server, container, run_dirs.root)
            hosts = [net.host(name, n, run_dirs, template) for n, name in enumerate(("host-one", "host-two"), 1)]
            server.create(container, "data", 64 * MIB)
            yield Two(hosts[0], hosts[1], server, f"{server.account}/{container}/data")
            for host in hosts:
                host.link("up")
                for path in entries(host.node.dirs.run):
                    host.dyskctl("detach", path.name, "--force", "--lose-data")


def lost(two: Two, host: Host) -> None:
    """The fenced attachment shows its state and can be detached; that changes nothing at the service."""
    two.until_state(host, "fenced")
    epoch = two.epoch()
    done = host.dyskctl("detach", "data")
    assert done.code == 0 or "lost" in done.err or "may no longer write" in done.err, done
    until(lambda: not entries(host.node.dirs.run), "the end of the fenced attachment")
    assert two.epoch() == epoch
    assert two.server.blob(host.node.container, "data")["lease"]["state"] == "leased"


def expect_io_error(checker: Checker, limit_s: float = 60.0) -> None:
    until(lambda: checker.errors, "the I/O error", limit_s)
    with pytest.raises(OSError, match="Input/output"):
        checker.stop()


def own_the_disk(two: Two, device: str) -> None:
    """The second host writes all over the area where the first one wrote, and nothing but that is there in the end."""
    checker = Checker(device, seed=77)
    data = os.urandom(checker.size)
    fd = os.open(device, os.O_WRONLY)
    assert os.pwrite(fd, data, 0) == checker.size
    os.fsync(fd)
    os.close(fd)
    checker.adopt(data)
    checker.run(40)
    two.server.release()  # whatever is still held somewhere may land now, if it can
    checker.verify()
    two.second.ok("detach", "data")
    assert blob_digest(two.second.node, length=checker.size) == checker.digest()
    assert unsafe_writes(two.server) == {}
    assert two.server.stats()["held_applied"] == 0


def test_the_second_attach_is_refused_and_names_the_first(two: Two) -> None:
    device = two.first.ok("attach", two.disk, *LEASE).strip()
    holder = two.server.blob(two.first.node.container, "data")["metadata"]
    assert holder["dysk_node"] == "host-one" and set(holder) == {"dysk_node", "dysk_since", "dysk_tag"}
    done = two.second.dyskctl("attach", two.disk)
    assert done.code == 1
    assert all(holder[name] in done.err for name in ("dysk_node", "dysk_since")) and "--break-lease" in done.err
    assert not entries(two.second.node.dirs.run)
    Checker(device).run(20)  # and the first one was not disturbed
    assert two.state(two.first)["state"] == "attached"
    two.first.ok("detach", "data")
    device = two.second.ok("attach", two.disk, *LEASE).strip()
    done = two.first.dyskctl("attach", two.disk)
    assert "host-two" in done.err
    two.second.ok("detach", "data")
    assert unsafe_writes(two.server) == {}


def test_both_read_what_one_writes(two: Two) -> None:
    device = two.first.ok("attach", two.disk, *LEASE).strip()
    attached = two.second.dyskctl("attach", two.disk, "--read-only")
    assert attached.code == 0 and "host-one" in attached.err, attached  # who writes to it
    there = attached.out.strip()
    checker = Checker(device)
    for _ in range(3):
        checker.run(20)
        fd = os.open(device, os.O_WRONLY)
        os.fsync(fd)
        os.close(fd)
        checker.verify(there)
    two.second.ok("detach", "data")
    two.first.ok("detach", "data")


def test_taken_over_while_the_first_writes(two: Two) -> None:
    """Some of the first one's writes are held on the way, and come when the second host has the disk."""
    # Without a cache each writer has a request of its own; behind a flush that is held there may be fewer than four.
    options = ["--io-timeout", "15s", "--cache", "none", *LEASE]
    checker = Checker(two.first.ok("attach", two.disk, *options).strip())
    checker.start()
    until(checker.progress(100), "I/O of the first")
    two.server.fault("late", operation="write", times=4, connection="open")
    until(lambda: two.server.stats()["faults"].get("late") == 4, "writes that are held")
    epoch = two.epoch()
    there = two.second.ok("attach", two.disk, "--break-lease", *LEASE).strip()
    assert two.epoch() > epoch
    before = blob_digest(two.second.node)
    assert two.server.release() == 4
    stats = two.server.stats()
    assert (stats["held_applied"], stats["held_refused"]) == (0, 4)
    expect_io_error(checker)
    lost(two, two.first)
    assert blob_digest(two.second.node) == before
    own_the_disk(two, there)


def test_taken_over_from_under_fio(two: Two) -> None:
    device = two.first.ok("attach", two.disk, *LEASE).strip()
    words = command("verify", device, time_based=1, runtime=100)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as fio:
        until(lambda: two.server.stats()["requests"].get("put_page", 0) > 200, "I/O of the first")
        there = two.second.ok("attach", two.disk, "--break-lease", *LEASE).strip()
        before = blob_digest(two.second.node)
        output, _ = fio.communicate(timeout=60)
    assert fio.returncode != 0
    assert "Input/output error" in output
    lost(two, two.first)
    assert blob_digest(two.second.node) == before
    own_the_disk(two, there)


def test_cut_off_for_longer_than_the_lease(two: Two) -> None:
    """The second host needs no --break-lease then; the first hears of it when its network is back."""
    checker = Checker(two.first.ok("attach", two.disk, "--io-timeout", "2m", *LEASE).strip())
    checker.start()
    until(checker.progress(100), "I/O of the first")
    two.first.link("down")
    two.until_state(two.first, "paused")
    there = ""

    def taken() -> bool:
        nonlocal there
        done = two.second.dyskctl("attach", two.disk, *LEASE)
        there = done.out.strip()
        return done.code == 0

    until(taken, "the attach at the second host, when the lease has run out", 40)
    before = blob_digest(two.second.node)
    assert not checker.errors
    two.first.link("up")
    expect_io_error(checker)
    lost(two, two.first)
    assert blob_digest(two.second.node) == before
    own_the_disk(two, there)


def test_cut_off_for_longer_than_the_lease_with_nobody_else(two: Two) -> None:
    """Within io-timeout: a pause, and then it goes on."""
    checker = Checker(two.first.ok("attach", two.disk, "--io-timeout", "2m", *LEASE).strip())
    checker.start()
    until(checker.progress(100), "I/O")
    two.first.link("down")
    two.until_state(two.first, "paused")
    assert not checker.errors
    two.first.link("up")
    until(checker.progress(100), "I/O after the pause", 60)
    two.until_state(two.first, "attached")
    checker.stop()
    checker.verify()
    two.first.ok("detach", "data")
    assert blob_digest(two.first.node, length=checker.size) == checker.digest()
    assert unsafe_writes(two.server) == {}


def test_a_mounted_file_system_moves_to_the_other_host(two: Two) -> None:
    """The first host is cut off while it writes; the second takes the disk, and finds what had been synced."""
    device = two.first.ok("attach", two.disk, "--io-timeout", "5s", *LEASE).strip()
    call("mkfs.ext4", "-q", device)
    point = two.first.node.dirs.root / "m"
    point.mkdir()
    call("mount", "-o", "errors=remount-ro", device, str(point))
    try:
        for number in range(20):
            (point / f"{number}").write_bytes(f"file {number}".encode() * 500)
        call("sync", "-f", str(point))
        two.first.link("down")
        there = two.second.ok("attach", two.disk, "--break-lease", *LEASE).strip()
        two.first.link("up")
        with pytest.raises(OSError), (point / "late").open("wb") as file:
            file.write(os.urandom(MIB))
            os.fsync(file.fileno())
    finally:
        call("umount", str(point))
    call("mount", there, str(point))
    try:
        for number in range(20):
            assert (point / f"{number}").read_bytes() == f"file {number}".encode() * 500
        (point / "second").write_text("mine")
    finally:
        call("umount", str(point))
    call("e2fsck", "-fn", there)
    lost(two, two.first)
    two.second.ok("detach", "data")
    assert unsafe_writes(two.server) == {}
