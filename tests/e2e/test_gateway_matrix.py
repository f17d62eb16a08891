"""What stands between a disk and its service answers in its stead, or badly: the disk waits, and no data is wrong.

Each cell of the matrix, a kind of answer and something done to an ext4 file system meanwhile, is a test. The cells of a
kind share an attachment, from `attach` to `umount`, since most of a cell's time is spent there; each makes what it
needs if it runs alone, and after a cell that failed all is made anew.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.conftest import choose_way, make_run_dirs
from tests.e2e.kit import Node, make_node, until
from tests.e2e.loads import MIB, unsafe_writes
from tests.wire.rest import Rest

SIZE = 32 * MIB
FILE = 128 << 10  # bytes of each file
KEPT = 6  # files, besides the newest
# The shortest lease, and so little time for an attempt (a third of io-timeout) that waiting for one that is lost is
# a matter of seconds; what is written is sent soon.
OPTIONS = "fstype=ext4,lease=15,io-timeout=9s,write-delay=0.1s"
STRIKES = 3  # of what passes
AWAY_S = 1.0  # or how long it lasts
CONTAINER, DISK = "matrix", "data"


@dataclass(frozen=True)
class Kind:
    """A fault by name. lasts: the service is heard through it, so it stays; otherwise it passes.

    How that is: after `strikes`, or AWAY_S after the first if there is no number.
    """

    name: str
    fields: dict[str, Any]
    lasts: bool = False
    strikes: int | None = STRIKES


def gateway(status: int, strikes: int | None = STRIKES) -> Kind:
    return Kind(f"gateway says {status}", {"action": "gateway", "status": status}, strikes=strikes)


def header(name: str, value: str, what: str, *, lasts: bool = False) -> Kind:
    return Kind(f"{name} {what}", {"action": "headers", "headers": {name: value}}, lasts)


KINDS = [
    *(gateway(status) for status in (200, 302, 307, 400, 403, 407, 502)),
    gateway(404, strikes=None),
    *(Kind(f"{n} first", {"action": "interim", "status": n, "count": 2}, lasts=True) for n in (100, 102, 103)),
    Kind("101 first", {"action": "interim", "status": 101}),
    header("Date", "Fri, 01 Jan 2010 00:00:00 GMT", "of long ago", lasts=True),
    header("Date", "Sat, 01 Jan 0000 00:00:00 GMT", "of year 0", lasts=True),
    header("Date", "Fri, 31 Dec 10000 23:59:59 GMT", "of year 10000", lasts=True),
    header("Date", f"Fri, {10**15} Jan 2027 00:00:00 GMT", "of day 10^15", lasts=True),
    header("Content-Length", "9" * 5000, "of 5000 digits"),
    Kind("body up to the end of the connection", {"action": "close_delimited"}, lasts=True),
    Kind("body that ends too soon with it", {"action": "close_delimited", "missing": 1}),
    Kind("connections forgotten", {"action": "forget"}, strikes=1),
]

# What an attach and a detach ask for; a fault strikes each of these.
ATTACHING = [
    "get_blob", "get_blob_properties", "get_page_ranges", "lease_acquire", "put_page", "set_blob_metadata",
    "set_blob_properties",
]  # fmt: skip
DETACHING = ["clear_page", "lease_release", "lease_renew", "put_page", "set_blob_metadata", "set_blob_properties"]


@dataclass
class Place:
    """A node, its server, and what the disk's files must hold."""

    node: Node
    server: PageBlobServer
    files: dict[str, bytes] = field(default_factory=dict)
    formatted: bool = False
    whole: bool = True  # no cell failed since this was last made
    _random: random.Random = field(default_factory=lambda: random.Random(1))

    def path(self, name: str) -> Path:
        return self.node.mountpoint / name

    def new_file(self) -> tuple[str, bytes]:
        """A name, and content that no other file has; kept in `files`, of which the oldest go."""
        name, data = f"f{self._random.getrandbits(48):012x}", self._random.randbytes(FILE)
        while len(self.files) > KEPT:
            gone = next(iter(self.files))
            self.path(gone).unlink(missing_ok=True)
            del self.files[gone]
        self.files[name] = data
        return name, data

    # The attachment.

    def need_disk(self) -> None:
        """A disk with a file system and a file, and all in order: nothing is in force and nothing was counted."""
        self.server.clear_faults()
        if not self.whole:
            self.remove()
        if not self.formatted:
            self.server.create(CONTAINER, DISK, SIZE)
            self.formatted = True
            self.need_mounted()
            name, data = self.new_file()
            write(self.path(name), data)
        self.server.reset_stats()

    def need_mounted(self) -> None:
        if not self.node.is_mounted():
            done = self.node.mount(self.node.disk(DISK), OPTIONS)
            said = [line for line in done.err.splitlines() if ": made ext4 on " not in line]  # by the first
            assert (done.code, said) == (0, []), done

    def need_unmounted(self) -> None:
        if self.node.is_mounted():
            done = self.node.umount()
            assert (done.code, done.err) == (0, ""), done

    def remove(self) -> None:
        """After a cell that failed: no attachment, no disk."""
        self.server.clear_faults()
        self.node.run("umount", "--lazy", str(self.node.mountpoint))
        for path in list(self.node.dirs.run.iterdir()):
            self.node.dyskctl("detach", path.name, "--force", "--lose-data")
        with contextlib.suppress(ValueError):
            self.server.remove(CONTAINER, DISK)
        self.files.clear()
        self.formatted, self.whole = False, True

    # The matrix.

    @contextlib.contextmanager
    def cell(self) -> Iterator[None]:
        """Around the body of each test: if it fails, the next one begins with a new disk."""
        self.whole = False
        self.need_disk()
        yield
        assert unsafe_writes(self.server) == {}
        self.whole = True

    def strike(self, kind: Kind, operation: str, strikes: int | None = None) -> int:
        """Put the fault in force for one kind of request, if it is one that passes for `strikes`; returns its id."""
        strikes = strikes or kind.strikes
        how = {} if kind.lasts else {"times": strikes} if strikes else {"for_s": AWAY_S}
        return self.server.fault(operation=operation, **kind.fields, **how)

    def strike_each(self, kind: Kind, operations: list[str]) -> None:
        """Let each kind of request meet the fault: twice, if it is one that passes."""
        if kind.lasts or kind.strikes == 1:
            self.strike(kind, "any")
            return
        for operation in operations:
            self.server.fault(operation=operation, times=2, **kind.fields)

    def hits(self) -> int:
        return sum(rule["hits"] for rule in self.server.faults())

    def at_the_service(self) -> bytes:
        """All that the blob holds."""
        self.server.clear_faults()
        with Rest(self.server.endpoint, self.server.account, self.server.key) as rest:
            reply = rest.get(f"{CONTAINER}/{DISK}", 0, SIZE)
        assert reply.status == 206
        return reply.body

    def verify(self) -> None:
        """Every file is as it was written; the disk writes on."""
        self.server.clear_faults()
        assert {name: read(self.path(name)) for name in self.files} == self.files
        name, data = self.new_file()
        write(self.path(name), data)
        assert read(self.path(name)) == data


def write(path: Path, data: bytes) -> None:
    """Write a file and make it durable, directory entry included."""
    write_direct(path, data)
    sync(path)


def write_direct(path: Path, data: bytes) -> None:
    """Write a file past the kernel's cache: the device has it, which may keep it for itself until it is flushed."""
    with mmap.mmap(-1, len(data)) as buffer:
        buffer[:] = data
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        try:
            assert os.pwrite(fd, buffer, 0) == len(data)
        finally:
            os.close(fd)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read(path: Path) -> bytes:
    """The content of a file that has been synced, from the device."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, FILE + 1, 0)
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def steered() -> Iterator[PageBlobServer]:
    """One server for the matrix (started before the node's variables are set, so not part of it)."""
    with PageBlobServer(seed=1) as running:
        yield running


@pytest.fixture(params=["C", "Python"], scope="module")
def place(request: pytest.FixtureRequest, steered: PageBlobServer) -> Iterator[Place]:
    """One node for the matrix, on each of both ways of exchanging data. What it leaves behind fails the last test."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        choose_way(request.param, monkeypatch)
        for dirs in make_run_dirs(monkeypatch):
            for node in make_node(dirs, steered, CONTAINER):
                made = Place(node, steered)
                yield made
                if not made.whole:
                    made.remove()
                steered.clear_faults()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name, scope="module")
def kind(request: pytest.FixtureRequest) -> Kind:
    """Of the module, so that pytest runs all cells of a kind one after the other."""
    found: Kind = request.param
    return found


def test_attach(place: Place, kind: Kind) -> None:
    with place.cell():
        place.need_unmounted()
        place.strike_each(kind, ATTACHING)
        done = place.node.mount(place.node.disk(DISK), OPTIONS)
        assert done.code == 0, done
        assert place.hits() >= 1
        place.verify()


def test_read(place: Place, kind: Kind) -> None:
    with place.cell():
        place.need_mounted()
        name, data = place.new_file()
        write(place.path(name), data)
        place.strike(kind, "read")
        assert read(place.path(name)) == data
        assert place.hits() >= 1
        place.verify()


def test_write(place: Place, kind: Kind) -> None:
    """The write cache has acknowledged it and sends it into the fault; nobody waits for that."""
    with place.cell():
        place.need_mounted()
        place.strike(kind, "write")
        name, data = place.new_file()
        write_direct(place.path(name), data)
        until(place.hits, "a write that meets the fault")
        sync(place.path(name))
        assert data in place.at_the_service()
        place.verify()


def test_flush(place: Place, kind: Kind) -> None:
    """It returns when the service has all, and not before."""
    with place.cell():
        place.need_mounted()
        name, data = place.new_file()
        place.path(name).write_bytes(data)
        place.strike(kind, "any")
        sync(place.path(name))
        hits = place.hits()
        assert data in place.at_the_service()
        assert hits >= 1
        place.verify()


def test_renew(place: Place, kind: Kind) -> None:
    """The lease ran out at the service, so that the next write has it renewed at once (and, if that fails, in 3 s)."""
    with place.cell():
        place.need_mounted()
        name, data = place.new_file()
        place.server.elapse_leases(100)
        place.strike(kind, "lease_renew", strikes=1)
        write(place.path(name), data)
        hits = place.hits()
        assert data in place.at_the_service()
        assert hits >= 1
        place.verify()


def test_umount(place: Place, kind: Kind) -> None:
    """It returns when everything is durable and the lease given back, to the next node or the next mount."""
    with place.cell():
        place.need_mounted()
        name, data = place.new_file()
        place.path(name).write_bytes(data)
        place.strike_each(kind, DETACHING)
        done = place.node.umount()
        assert (done.code, done.err) == (0, ""), done
        assert place.node.nothing_left()
        assert place.hits() >= 1
        assert data in place.at_the_service()
        assert place.server.blob(CONTAINER, DISK)["lease"]["state"] == "available"
