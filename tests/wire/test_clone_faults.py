"""Clones whose requests fail, get no answer, are carried out late, or whose process dies: at each request of all."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.diskclient import DiskClient
from blobfuse_dysk.azure.wire import Reply
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks import pagecopy
from blobfuse_dysk.disks.clone import clone
from blobfuse_dysk.errors import ServiceError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.testing.pageblobserver import DEVELOPMENT_ACCOUNT, DEVELOPMENT_KEY
from blobfuse_dysk.vhd import FOOTER_SIZE, footer, parse_footer
from tests.polling import eventually
from tests.wire.disk_options import named
from tests.wire.rest import Rest

pytestmark = pytest.mark.usefixtures("way")

PAGE = 512
MIB = 1 << 20
SIZE, LARGER = 2 * MIB, 3 * MIB
OTHER = {"other": "b3RoZXIga2V5"}
OPTIONS = AttachOptions()
CONTAINER = "disks"
MOST_REQUESTS = 60


class World:
    """A server with two accounts, and a VHD in the first that another node has attached: all steps are needed."""

    def __init__(self, server: PageBlobServer, far: bool, disk: str = "vm") -> None:
        self.server = server
        self.far = far
        self.disk = disk
        self.names = (f"copy-{number}" for number in itertools.count())
        drawn = random.Random(8)
        with self.near_rest() as rest:
            rest("PUT", CONTAINER, "restype=container")
            rest.create(f"{CONTAINER}/vm", SIZE + FOOTER_SIZE)
            for _ in range(3):
                rest.put(f"{CONTAINER}/vm", drawn.randrange(SIZE // PAGE - 8) * PAGE, drawn.randbytes(8 * PAGE))
            rest.put(f"{CONTAINER}/vm", SIZE - PAGE, b"y" * PAGE + footer(SIZE))
            self.wanted = rest.get(f"{CONTAINER}/vm", 0, SIZE).body + bytes(LARGER - SIZE)
            rest.lease(f"{CONTAINER}/vm", "acquire", duration="-1")

    @property
    def source(self) -> DiskAddress:
        return named(self.server, CONTAINER, self.disk)

    def target(self, name: str) -> DiskAddress:
        disk = named(self.server, CONTAINER, name)
        if not self.far:
            return disk
        assert disk.endpoint is not None
        endpoint = replace(disk.endpoint, path="/other")
        return replace(disk, account="other", endpoint=endpoint, account_key=OTHER["other"])

    def near_rest(self) -> Rest:
        return Rest(self.server.endpoint, self.server.account, self.server.key)

    def rest(self) -> Rest:
        """A connection to the account of the clones."""
        return Rest(f"{self.server.url}/other", "other", OTHER["other"]) if self.far else self.near_rest()

    def clone(self, name: str) -> None:
        made = clone(self.source, self.target(name), OPTIONS, OPTIONS, size=LARGER)
        assert (made.complete, made.size) == (True, LARGER)

    def check(self, name: str) -> None:
        """The clone is right, and nothing of the work is left."""
        with self.rest() as rest:
            whole = rest.get(f"{CONTAINER}/{name}", 0, LARGER + FOOTER_SIZE).body
            head = rest("HEAD", f"{CONTAINER}/{name}").headers
        assert whole[:LARGER] == self.wanted
        found = parse_footer(whole[LARGER:])
        assert found and found.current_size == LARGER
        assert [name for name in head if "dysk" in name] == []
        assert self.snapshots() == []

    def snapshots(self) -> list[str]:
        with self.near_rest() as rest:
            reply = rest("GET", CONTAINER, "restype=container&comp=list&include=snapshots")
        return [each.text or "" for each in reply.xml.iter("Snapshot")]


@pytest.fixture(params=["same account", "another account"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(pagecopy, "MOST", 256 << 10)
    monkeypatch.setattr(pagecopy, "_AT_ONCE", 3)
    with PageBlobServer({DEVELOPMENT_ACCOUNT: DEVELOPMENT_KEY, **OTHER}) as running:
        if request.param == THROUGH:
            monkeypatch.setattr(DiskClient, "put_pages_from", not_there)
        yield World(running, request.param != "same account")


THROUGH = "another account, through this machine"


async def not_there(self: DiskClient, *words: Any, **more: Any) -> None:
    """Put Page From URL of a service that has none."""
    raise ServiceError("no", status=501, code="NotImplemented")


FAULTS = [
    pytest.param({"action": "lost"}, id="lost"),
    pytest.param({"action": "gateway", "status": 404}, id="a gateway's 404"),
    pytest.param({"action": "reset"}, id="reset", marks=pytest.mark.long),
    pytest.param({"action": "gateway", "status": 502, "when": "after"}, id="a gateway's 502", marks=pytest.mark.long),
    pytest.param(
        {"action": "error", "status": 500, "code": "InternalError", "when": "after"}, id="500", marks=pytest.mark.long
    ),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_one_request_that_fails_changes_nothing(world: World, fault: dict[str, Any]) -> None:
    for number, name in zip(range(MOST_REQUESTS), world.names, strict=False):
        rule = world.server.fault(operation="any", skip=number, times=1, **fault)
        world.clone(name)
        hits = next(each["hits"] for each in world.server.faults() if each["id"] == rule)
        world.server.clear_faults()
        world.check(name)
        if not hits:
            assert number > 8
            return
    pytest.fail("a clone has more requests than were tried")


@pytest.mark.parametrize("world", ["same account", "another account", THROUGH], indirect=True)
def test_what_is_carried_out_late_does_not_reach_a_clone_in_use(world: World) -> None:
    """A request without an answer is repeated; the service does the first one when the clone is in use, of a machine
    that does not even raise the number."""
    new = random.Random(9).randbytes(LARGER)
    for number, name in zip(range(MOST_REQUESTS), world.names, strict=False):
        path = f"{CONTAINER}/{name}"
        rule = world.server.fault("late", operation="any", skip=number, times=1)
        world.clone(name)
        hits = next(each["hits"] for each in world.server.faults() if each["id"] == rule)
        world.server.clear_faults()
        with world.rest() as rest:
            for offset in range(0, LARGER, MIB):
                rest.put(path, offset, new[offset : offset + MIB])
            before = rest("HEAD", path).headers
            world.server.release()
            assert rest.get(path, 0, LARGER).body == new
            assert rest("HEAD", path).headers["etag"] == before["etag"]
        if not hits:
            assert number > 8
            return
    pytest.fail("a clone has more requests than were tried")


class _Killed(BaseException):
    """The process ends here: nothing catches it."""


@pytest.mark.parametrize("sent", [False, True], ids=["before", "after"])
def test_a_process_that_dies_at_any_request_leaves_what_can_be_finished(
    world: World, monkeypatch: pytest.MonkeyPatch, sent: bool
) -> None:
    asked = 0
    last = 0
    real = BlobClient._send

    async def send(self: BlobClient, *words: Any) -> Reply:
        nonlocal asked
        asked += 1
        if asked == last and not sent:
            raise _Killed
        reply = await real(self, *words)
        if asked == last:
            raise _Killed
        return reply

    monkeypatch.setattr(BlobClient, "_send", send)
    for last, name in zip(range(1, MOST_REQUESTS), world.names, strict=False):
        asked = 0
        died = False
        try:
            world.clone(name)
        except BaseException as error:
            died = True
            assert is_killed(error)
        asked = -MOST_REQUESTS * 10
        with world.rest() as rest:
            head = rest("HEAD", f"{CONTAINER}/{name}")
        unfinished = head.status == 404 or "x-ms-meta-dysk_incomplete" in head.headers
        if unfinished:
            left = set(world.snapshots())
            world.clone(name)
            remove(world, set(world.snapshots()) & left)  # one that was made before a clone was there to tell of it
        world.check(name)
        if not died:
            assert last > 8
            return
    pytest.fail("a clone has more requests than were tried")


def is_killed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(_Killed)[0] is not None
    return isinstance(error, _Killed)


def remove(world: World, times: set[str]) -> None:
    with world.near_rest() as rest:
        for time in times:
            assert rest("DELETE", f"{CONTAINER}/vm", f"snapshot={time}").status == 202


PROGRAM = """
import sys
from dataclasses import replace
from blobfuse_dysk.disk import DiskAddress, Endpoint
from blobfuse_dysk.disks.clone import clone
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.disks import pagecopy
pagecopy._AT_ONCE = 1
def disk(text, endpoint, key):
    return replace(DiskAddress.parse(text), endpoint=Endpoint.parse(endpoint), account_key=key)
source, target, near, near_key, far, far_key = sys.argv[1:]
options = AttachOptions()
clone(disk(source, near, near_key), disk(target, far, far_key), options, options)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_copy_between_accounts_goes_on_where_it_was(server: PageBlobServer, number: signal.Signals) -> None:
    """Nothing that was copied is copied again."""
    world = large(server)
    server.fault("delay", operation="put_page_from_url", skip=3, times=1)
    with start(world) as process:
        eventually(lambda: bool(server.faults()[0]["hits"]), 20)
        process.send_signal(number)
        process.communicate(timeout=20)
    server.clear_faults()
    server.release()
    server.reset_stats()
    clone(world.source, world.target("copy"), OPTIONS, OPTIONS)
    assert server.stats()["requests"]["put_page_from_url"] in (4, 5)  # of eight
    check_large(world)


def test_an_interrupted_copy_within_an_account_leaves_nothing(server: PageBlobServer) -> None:
    world = large(server, far=False)
    server.configure(copies="pending")
    with start(world) as process, world.rest() as rest:
        eventually(lambda: rest("HEAD", f"{CONTAINER}/copy").status == 200, 20)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert rest("HEAD", f"{CONTAINER}/copy").status == 404
    assert world.snapshots() == []
    server.configure(copies="success")
    clone(world.source, world.target("copy"), OPTIONS, OPTIONS)
    check_large(world)


def test_one_process_at_a_time_copies_pages(server: PageBlobServer) -> None:
    """Who goes on begins an epoch: what the one before still writes is refused, and it says so."""
    world = large(server)
    server.fault("delay", operation="put_page_from_url", skip=3, times=1)
    with start(world) as process, world.rest() as rest:
        eventually(lambda: bool(server.faults()[0]["hits"]), 20)
        epoch = {"x-ms-sequence-number-action": "increment"}
        assert rest("PUT", f"{CONTAINER}/copy", "comp=properties", epoch).status == 200
        server.clear_faults()
        server.release()
        _, told = process.communicate(timeout=20)
    assert process.returncode and "another process goes on with" in told, told
    clone(world.source, world.target("copy"), OPTIONS, OPTIONS)
    check_large(world)


LARGE = 32 * MIB


def large(server: PageBlobServer, *, far: bool = True) -> World:
    """A disk of 32 MiB without holes, which is attached."""
    server.configure(accounts={DEVELOPMENT_ACCOUNT: DEVELOPMENT_KEY, **OTHER})
    world = World(server, far, "large")
    with world.near_rest() as rest:
        rest.create(f"{CONTAINER}/large", LARGE)
        for offset in range(0, LARGE, 4 * MIB):
            rest.put(f"{CONTAINER}/large", offset, random.Random(offset).randbytes(4 * MIB))
        rest.lease(f"{CONTAINER}/large", "acquire", duration="-1")
    return world


def check_large(world: World) -> None:
    with world.rest() as rest:
        for offset in range(0, LARGE, 4 * MIB):
            data = rest.get(f"{CONTAINER}/copy", offset, 4 * MIB).body
            assert data == random.Random(offset).randbytes(4 * MIB), offset
        assert [name for name in rest("HEAD", f"{CONTAINER}/copy").headers if "dysk" in name] == []
    assert world.snapshots() == []


def start(world: World) -> subprocess.Popen[str]:
    """A process that clones the large disk."""
    target, source = world.target("copy"), world.source
    words = [
        str(source),
        str(target),
        *(str(word) for disk in (source, target) for word in (disk.endpoint, disk.account_key)),
    ]
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stderr=subprocess.PIPE, text=True)
