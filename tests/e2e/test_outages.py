"""The network or the service is away for a while: I/O waits and goes on, or fails for good once io-timeout is over.

The service is on this host, the disk on another one with a cable to it (see hosts.py), so that a cable can be cut.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.conftest import entries, need
from tests.e2e.checker import Checker
from tests.e2e.hosts import Host, Network, network
from tests.e2e.kit import BIN, Done, Node, until
from tests.e2e.loads import MIB, blob_digest, call, unsafe_writes
from tests.leaks import RunDirs
from tests.namespaces import need_private_mounts
from tools.fiojobs import command


@dataclass
class Far:
    """A host, the network between, and the server that it reaches by HTTPS only through that."""

    host: Host
    net: Network
    server: PageBlobServer
    disk: str

    def shown(self, verb: str = "get") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.host.ok(verb, "data", "-o", "json"))
        return found

    def run(self, *words: str) -> Done:
        return self.host.node.run(*self.host.words(*words))

    def inside(self, *words: str) -> None:
        """ip(8) on the host."""
        call("nsenter", f"--net=/run/netns/{self.host.namespace}", "ip", *words)

    def gone(self) -> bool:
        return not entries(self.host.node.dirs.run)


@pytest.fixture
def far(run_dirs: RunDirs, container: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    """The disk is there, blank; nothing is attached yet. What a failing test leaves attached is detached by force."""
    need(shutil.which("ip"), "iproute2 is not installed")
    with network() as net:
        for name in run_dirs.environment:
            monkeypatch.delenv(name)  # the server must not look like a process of the host's
        with PageBlobServer(https=True, host=net.address, hosts=("blobs",)) as server:
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.ca_file))
            template = Node(run_dirs, server, container, run_dirs.root / "m")
            host = net.host("far", 1, run_dirs, template)
            template.mountpoint.mkdir()
            server.create(container, "data", 64 * MIB)
            yield Far(host, net, server, f"{server.account}/{container}/data")
            host.link("up")
            if os.path.ismount(host.node.mountpoint):
                call("umount", str(host.node.mountpoint))
            for path in entries(host.node.dirs.run):
                host.dyskctl("detach", path.name, "--force", "--lose-data")


# Ways to be away.


@contextlib.contextmanager
def link_down(far: Far) -> Iterator[None]:
    far.host.link("down")
    yield
    far.host.link("up")


@contextlib.contextmanager
def requests_lost(far: Far) -> Iterator[None]:
    """One way: what the host sends does not arrive."""
    route = ("blackhole", f"{far.net.address}/32")
    far.inside("route", "add", *route)
    yield
    far.inside("route", "delete", *route)


@contextlib.contextmanager
def answers_lost(far: Far) -> Iterator[None]:
    """The other way: requests arrive and are carried out, answers do not come."""
    route = ("blackhole", f"{far.net.prefix}.11/32")
    call("ip", "route", "add", *route)
    try:
        yield
    finally:
        call("ip", "route", "delete", *route)


@contextlib.contextmanager
def silent(far: Far) -> Iterator[None]:
    """The server reads nothing, answers nothing, accepts nothing."""
    far.server.outage("silent")
    yield
    far.server.outage(None)


@contextlib.contextmanager
def refusing(far: Far) -> Iterator[None]:
    far.server.outage("refuse")
    yield
    far.server.outage(None)


@contextlib.contextmanager
def busy(far: Far) -> Iterator[None]:
    """Every request, those of the lease included, is answered by 503 ServerBusy."""
    far.server.fault("error", status=503, code="ServerBusy")
    yield
    far.server.clear_faults()


Away = Callable[[Far], AbstractContextManager[None]]
WAYS: list[Away] = [link_down, requests_lost, answers_lost, silent, refusing, busy]


def name_of(way: Away) -> str:
    return way.__name__


def finish(far: Far, checker: Checker) -> None:
    """The load saw no error, and everything is there."""
    until(checker.progress(100), "I/O after the outage", 90)
    checker.stop()
    checker.verify()
    until(lambda: far.shown()["state"] == "attached", "the state attached", 60)
    far.host.ok("detach", "data")
    assert blob_digest(far.host.node, length=checker.size) == checker.digest()
    assert unsafe_writes(far.server) == {}


def pause(seconds: float) -> None:
    """An outage lasts as long as it lasts."""
    time.sleep(seconds)


@pytest.mark.parametrize(
    "seconds",
    [
        1,
        8,
        pytest.param(30, marks=pytest.mark.long),
        pytest.param(300, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
@pytest.mark.parametrize("away", WAYS, ids=name_of)
def test_within_io_timeout(far: Far, away: Away, seconds: int) -> None:
    """A pause, and nothing but that. After 30 s the lease has run out and is taken up again."""
    checker = Checker(far.host.ok("attach", far.disk, "--lease", "15", "--io-timeout", f"{seconds + 60}s").strip())
    checker.start()
    until(checker.progress(50), "I/O")
    with away(far):
        pause(seconds)
        assert not checker.errors
    finish(far, checker)


@pytest.mark.parametrize("away", WAYS, ids=name_of)
def test_longer_than_io_timeout(far: Far, away: Away) -> None:
    """EIO, for good, even once the service is back; the file system is read-only; all of it is taken down cleanly."""
    node, mountpoint = far.host.node, far.host.node.mountpoint
    # Nothing but dd may write in the background, or that is what notices first, and dd hears EROFS.
    quiet = 'mkfs.options="-E lazy_itable_init=0,lazy_journal_init=0"'
    options = f"io-timeout=6s,lease=15,fstype=ext4,{quiet}"
    assert far.run("mount", "-t", "dysk", "-o", options, far.disk, str(mountpoint)).code == 0
    kept = os.urandom(MIB)
    (mountpoint / "kept").write_bytes(kept)
    subprocess.run(["sync", "-f", mountpoint], check=True)
    with away(far):
        writer = subprocess.Popen(
            ["dd", "if=/dev/urandom", f"of={mountpoint}/lost", "bs=1M", "count=4", "conv=fsync"],
            stderr=subprocess.PIPE,
        )
        assert b"Input/output error" in writer.communicate(timeout=60)[1]
    read = ("dd", f"if={far.shown()['device']}", "of=/dev/null", "bs=4k", "count=1", "skip=9", "iflag=direct")
    until(lambda: far.run(*read).code == 0, "a read once it is back", 40)
    with pytest.raises(OSError, match=r"Read-only file system|Input/output error"):
        write_durably(mountpoint / "again")
    assert far.shown("status")["cache"]["latched"]
    assert mount_options(mountpoint) & {"ro", "emergency_ro"}
    done = far.run("umount", str(mountpoint))
    assert done.code == 0 or "lost" in done.err, done
    until(far.gone, "the end of the attachment", 30)
    assert far.run("mount", "-t", "dysk", "-o", "fstype=ext4", far.disk, str(mountpoint)).code == 0
    assert (mountpoint / "kept").read_bytes() == kept
    assert far.run("umount", str(mountpoint)).code == 0
    assert unsafe_writes(far.server) == {}
    assert node.nothing_left()


def write_durably(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"x")
        os.fsync(file.fileno())


def mount_options(mountpoint: Path) -> set[str]:
    """Those of the file system itself, not of the mount. Source: proc_pid_mountinfo(5)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return set(next(line for line in lines if line.split()[4] == str(mountpoint)).split()[-1].split(","))


@pytest.mark.parametrize("timeout", ["12s", "never"])
@pytest.mark.parametrize("away", [link_down, answers_lost, silent], ids=name_of)
def test_force_ends_it_while_the_service_is_away(far: Far, away: Away, timeout: str) -> None:
    """Whatever io-timeout says, without a reboot: processes that wait get their error, nothing is left."""
    device = far.host.ok("attach", far.disk, "--io-timeout", timeout).strip()
    with away(far):
        writer = subprocess.Popen(
            ["dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=8", "oflag=direct", "conv=fsync"],
            stderr=subprocess.DEVNULL,
        )
        until(lambda: far.shown("status")["requests"]["in_flight"], "requests on their way")
        until(lambda: far.shown("status")["waiting"], "calls that wait")
        until(lambda: far.shown()["state"] in ("recovering", "paused"), "the state of calls that wait")
        assert far.shown("status")["waiting"]["reason"]
        started = time.monotonic()
        done = far.host.dyskctl("detach", "data", "--force", "--lose-data")
        assert done.code == 0 and "data is detached; lost: up to " in done.err
        assert time.monotonic() - started < 40
        assert writer.wait(20) != 0
        until(far.gone, "the end of the attachment")


def test_io_timeout_never_waits_as_long_as_it_takes(far: Far) -> None:
    """Far longer than attempts last, and than the lease; a change of mind is taken at once."""
    device = far.host.ok("attach", far.disk, "--io-timeout", "never", "--lease", "15").strip()
    checker = Checker(device)
    checker.start()
    until(checker.progress(50), "I/O")
    with link_down(far):
        until(lambda: far.shown()["state"] == "paused", "the state paused", 40)
        pause(5)
        assert not checker.errors
    finish(far, checker)


def test_the_name_service_is_dead(far: Far) -> None:
    """Connections break and cannot be made again, since the server's name is not found any more; then it is."""
    need_private_mounts()
    node = far.host.node
    hosts = node.dirs.root / "hosts"
    resolver = node.dirs.root / "resolv.conf"
    known = f"127.0.0.1 localhost\n{far.net.address} blobs\n"
    hosts.write_text(known)
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")  # nobody listens there
    conf = node.dirs.config / f"{node.service.account}.conf"
    conf.write_text(conf.read_text().replace(far.net.address, "blobs"))
    shell = 'mount --bind "$0" /etc/hosts && mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
    own = ["unshare", "--mount", "sh", "-c", shell, str(hosts), str(resolver)]
    done = far.run(*own, str(BIN / "dyskctl"), "attach", far.disk, "--lease", "15", "--io-timeout", "90s")
    assert done.code == 0, done
    checker = Checker(done.out.strip())
    checker.start()
    until(checker.progress(50), "I/O")
    hosts.write_text("127.0.0.1 localhost\n")
    with refusing(far):
        pause(1)
    until(lambda: far.shown("status")["waiting"], "calls that wait", 60)
    assert "blobs" in far.shown("status")["waiting"]["reason"]
    assert not checker.errors
    hosts.write_text(known)
    finish(far, checker)


def test_a_database_of_blocks_over_many_short_outages(far: Far) -> None:
    """fio, which verifies, while the cable is pulled again and again."""
    device = far.host.ok("attach", far.disk, "--lease", "15").strip()
    fio = subprocess.Popen(command("verify", device, loops=12), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    outages = 0
    while fio.poll() is None and outages < 6:
        with link_down(far):
            pause(0.5)
        pause(0.5)
        outages += 1
    output = fio.communicate(timeout=120)[0].decode()
    assert fio.returncode == 0, output
    assert outages >= 2
    far.host.ok("detach", "data")
    assert unsafe_writes(far.server) == {}
