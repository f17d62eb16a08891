"""disks/clone.py against the two services: what a clone holds, is called and is not, and who may not be one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from blobfuse_dysk.azure.marks import INCOMPLETE
from blobfuse_dysk.disks.clone import Progress, abort_clone, clone, clone_state
from blobfuse_dysk.disks.look import blob_size
from blobfuse_dysk.disks.ranges import allocated_ranges
from blobfuse_dysk.errors import DyskError, NotFoundError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.vhd import FOOTER_SIZE, footer, parse_footer
from tests.conftest import Service
from tests.polling import eventually
from tests.wire.disk_options import named
from tests.wire.page_lists import snapshot
from tests.wire.rest import Rest

PAGE = 512
MIB = 1 << 20
SIZE = 2 * MIB
OPTIONS = AttachOptions()


@pytest.fixture
def rest(service: Service, container: str) -> Iterator[Rest]:
    """A connection, and a container with a disk `data` with something at its begin and its end."""
    with Rest(service.endpoint, service.account, service.key) as found:
        assert found("PUT", container, "restype=container").status == 201
        fill(found, f"{container}/data")
        yield found


@pytest.fixture
def own(server: PageBlobServer, container: str) -> Iterator[Rest]:
    """The same on the own server alone."""
    with Rest(server.endpoint, server.account, server.key) as found:
        assert found("PUT", container, "restype=container").status == 201
        fill(found, f"{container}/data")
        yield found


def fill(rest: Rest, path: str) -> None:
    assert rest.create(path, SIZE).status == 201
    rest.put(path, 0, b"a" * 3 * PAGE)
    rest.put(path, SIZE - PAGE, b"z" * PAGE)


def content(rest: Rest, path: str, size: int = SIZE) -> bytes:
    return rest.get(path, 0, size).body


def metadata(rest: Rest, path: str) -> dict[str, str]:
    headers = rest("HEAD", path).headers
    return {name[10:].lower(): value for name, value in headers.items() if name.lower().startswith("x-ms-meta-")}


def snapshots(server: PageBlobServer, container: str) -> list[str]:
    with Rest(server.endpoint, server.account, server.key) as rest:
        reply = rest("GET", container, "restype=container&comp=list&include=snapshots")
        return [each.text or "" for each in reply.xml.iter("Snapshot")]


# Within an account.


def test_a_clone_holds_what_the_disk_holds(service: Service, container: str, rest: Rest) -> None:
    made = clone(named(service, container), named(service, container, "copy"), OPTIONS, OPTIONS)
    assert (made.complete, made.size, made.blob_size) == (True, SIZE, SIZE)
    path = f"{container}/copy"
    assert content(rest, path) == content(rest, f"{container}/data")
    assert metadata(rest, path) == {}
    assert list(allocated_ranges(named(service, container, "copy"), OPTIONS)) == [(0, 3 * PAGE), (SIZE - PAGE, PAGE)]
    assert clone_state(named(service, container, "copy"), OPTIONS) is None


def test_a_clone_of_a_snapshot_holds_what_that_holds(service: Service, container: str, rest: Rest) -> None:
    before = snapshot(rest, f"{container}/data")
    wanted = content(rest, f"{container}/data")
    rest.put(f"{container}/data", 0, b"b" * PAGE)
    clone(named(service, container, snapshot=before), named(service, container, "copy"), OPTIONS, OPTIONS)
    assert content(rest, f"{container}/copy") == wanted


def test_what_is_ours_in_the_metadata_is_not_cloned(service: Service, container: str, rest: Rest) -> None:
    given = {"x-ms-meta-dysk_node": "far", "x-ms-meta-dysk_since": "2026", "x-ms-meta-dysk_volume": "pvc-1"}
    given["x-ms-meta-team"] = "red team"
    assert rest("PUT", f"{container}/data", "comp=metadata", given).status == 200
    clone(
        named(service, container),
        named(service, container, "copy"),
        OPTIONS,
        OPTIONS,
        metadata={"dysk_volume": "pvc-2"},
    )
    assert metadata(rest, f"{container}/copy") == {"team": "red team", "dysk_volume": "pvc-2"}


def test_a_clone_may_be_larger(service: Service, container: str, rest: Rest) -> None:
    made = clone(named(service, container), named(service, container, "copy"), OPTIONS, OPTIONS, size=3 * MIB)
    assert (made.size, made.complete) == (3 * MIB, True)
    assert content(rest, f"{container}/copy", 3 * MIB) == content(rest, f"{container}/data") + bytes(MIB)
    with pytest.raises(UsageError, match="has at least its size, 2MiB"):
        clone(named(service, container), named(service, container, "less"), OPTIONS, OPTIONS, size=MIB)
    assert rest("HEAD", f"{container}/less").status == 404


@pytest.mark.parametrize("inside", [False, True])
def test_the_footer_of_a_vhd_moves_to_the_end(service: Service, container: str, rest: Rest, inside: bool) -> None:
    blob = SIZE if inside else SIZE + FOOTER_SIZE
    path = f"{container}/vm.vhd"
    rest.create(path, blob)
    old = footer(SIZE)
    rest.put(path, blob - 2 * PAGE, b"y" * PAGE + old)
    source, target = named(service, container, "vm.vhd"), named(service, container, "copy.vhd")
    made = clone(source, target, OPTIONS, OPTIONS, size=4 * MIB)
    assert (made.size, made.blob_size) == (4 * MIB, 4 * MIB + FOOTER_SIZE)
    whole = content(rest, f"{container}/copy.vhd", made.blob_size)
    kept, first = parse_footer(old), parse_footer(whole[-FOOTER_SIZE:])
    assert kept and first
    assert (first.current_size, first.uuid) == (4 * MIB + FOOTER_SIZE * inside, kept.uuid)
    assert whole[blob - 2 * PAGE : -FOOTER_SIZE] == b"y" * PAGE + bytes(4 * MIB + FOOTER_SIZE - blob)
    assert clone(source, named(service, container, "same.vhd"), OPTIONS, OPTIONS).blob_size == blob
    assert content(rest, f"{container}/same.vhd", blob) == content(rest, path, blob)
    if not inside:
        with pytest.raises(UsageError, match="whole number of MiB"):
            clone(source, named(service, container, "odd.vhd"), OPTIONS, OPTIONS, size=4 * MIB + PAGE)


def test_a_target_that_exists_is_refused_and_not_touched(service: Service, container: str, rest: Rest) -> None:
    path = f"{container}/copy"
    rest.create(path, SIZE)
    before = rest("HEAD", path).headers["etag"]
    with pytest.raises(DyskError, match="exists already"):
        clone(named(service, container), named(service, container, "copy"), OPTIONS, OPTIONS)
    assert rest("HEAD", path).headers["etag"] == before
    with pytest.raises(UsageError, match="is no unfinished clone"):
        abort_clone(named(service, container, "copy"), OPTIONS)
    assert rest("HEAD", path).headers["etag"] == before


def test_names_that_no_clone_can_have(service: Service, container: str, rest: Rest) -> None:
    disk = named(service, container)
    at = replace(disk, snapshot=snapshot(rest, f"{container}/data"))
    for source in (disk, at):
        with pytest.raises(UsageError, match="a clone of itself"):
            clone(source, disk, OPTIONS, OPTIONS)
    with pytest.raises(UsageError, match="cannot be a snapshot"):
        clone(disk, replace(named(service, container, "copy"), snapshot=at.snapshot), OPTIONS, OPTIONS)
    with pytest.raises(NotFoundError, match=f"{container}/none does not exist"):
        clone(named(service, container, "none"), named(service, container, "copy"), OPTIONS, OPTIONS)
    with pytest.raises(NotFoundError):
        abort_clone(named(service, container, "copy"), OPTIONS)


def test_the_container_of_the_clone_is_made(service: Service, container: str, rest: Rest) -> None:
    clone(named(service, container), named(service, f"{container}-2", "copy"), OPTIONS, OPTIONS)
    assert content(rest, f"{container}-2/copy") == content(rest, f"{container}/data")


def test_a_disk_in_use_is_cloned_from_a_snapshot_that_goes_again(
    server: PageBlobServer, container: str, own: Rest
) -> None:
    own.lease(f"{container}/data", "acquire", duration="-1")
    made = clone(named(server, container), named(server, container, "copy"), OPTIONS, OPTIONS)
    assert made.temporary and "?snapshot=" in made.source
    assert content(own, f"{container}/copy") == content(own, f"{container}/data")
    assert snapshots(server, container) == []
    assert metadata(own, f"{container}/copy") == {}


# While the service copies.


def test_an_unfinished_clone_is_no_disk(server: PageBlobServer, container: str, own: Rest) -> None:
    server.configure(copies="pending")
    source, target = named(server, container), named(server, container, "copy")
    made = clone(source, target, OPTIONS, OPTIONS, size=3 * MIB, wait=False)
    assert not made.complete
    for use in (
        lambda: blob_size(target, OPTIONS),
        lambda: clone(target, named(server, container, "next"), OPTIONS, OPTIONS),
    ):
        with pytest.raises(DyskError, match=f"unfinished clone of .*{container}/data"):
            use()
    state = clone_state(target, OPTIONS)
    assert state is not None and (state.done, state.total) == (0, SIZE)
    with pytest.raises(DyskError, match="unfinished clone of"):
        clone(named(server, container, "other"), target, OPTIONS, OPTIONS)
    with pytest.raises(DyskError, match="unfinished clone already, of 3MiB"):
        clone(source, target, OPTIONS, OPTIONS, size=4 * MIB, wait=False)
    assert not clone(source, target, OPTIONS, OPTIONS, wait=False).complete
    server.copy(container, "copy", "success", SIZE)
    assert metadata(own, f"{container}/copy")[INCOMPLETE]
    made = clone(source, target, OPTIONS, OPTIONS, wait=False)
    assert made.complete
    assert content(own, f"{container}/copy", 3 * MIB) == content(own, f"{container}/data") + bytes(MIB)
    assert metadata(own, f"{container}/copy") == {}
    with pytest.raises(DyskError, match="exists already"):
        clone(source, target, OPTIONS, OPTIONS)


def test_a_clone_that_needs_nothing_but_the_copy_is_complete_with_it(
    server: PageBlobServer, container: str, own: Rest
) -> None:
    server.configure(copies="pending")
    source, target = named(server, container), named(server, container, "copy")
    own("PUT", f"{container}/data", "comp=metadata", {"x-ms-meta-dysk_node": "far"})
    assert not clone(source, target, OPTIONS, OPTIONS, wait=False).complete
    with pytest.raises(DyskError, match="is still being copied to"):
        blob_size(target, OPTIONS)
    assert clone_state(target, OPTIONS) is not None
    server.copy(container, "copy", "success", SIZE)
    assert blob_size(target, OPTIONS) == SIZE
    assert clone_state(target, OPTIONS) is None
    assert "dysk_node" not in metadata(own, f"{container}/copy")
    with pytest.raises(DyskError, match="exists already"):
        clone(source, target, OPTIONS, OPTIONS)


@pytest.mark.parametrize("status", ["failed", "aborted"])
def test_a_clone_that_nobody_waited_for_and_that_failed_is_taken_away_when_it_is_asked_for_again(
    server: PageBlobServer, container: str, own: Rest, status: str
) -> None:
    server.configure(copies="pending")
    source, target = named(server, container), named(server, container, "copy")
    clone(source, target, OPTIONS, OPTIONS, wait=False)
    server.copy(container, "copy", status)
    with pytest.raises(DyskError, match=f"was not completed, it is {status}"):
        clone(source, target, OPTIONS, OPTIONS)
    server.configure(copies="success")
    assert clone(source, target, OPTIONS, OPTIONS).complete
    assert content(own, f"{container}/copy") == content(own, f"{container}/data")


def test_the_tier_of_a_clone(server: PageBlobServer, container: str, own: Rest) -> None:
    source, target = named(server, container), named(server, container, "copy")
    with pytest.raises(UsageError, match="there is no tier 'P5'"):
        clone(source, target, OPTIONS, OPTIONS, tier="P5")
    server.configure(sku="Premium_LRS")
    clone(source, target, OPTIONS, OPTIONS, tier="p10")
    assert own("HEAD", f"{container}/copy").headers["x-ms-access-tier"] == "P10"


@pytest.mark.parametrize("status", ["failed", "aborted"])
def test_a_copy_that_the_service_gives_up_leaves_nothing(
    server: PageBlobServer, container: str, own: Rest, status: str
) -> None:
    server.configure(copies="pending")
    source, target = named(server, container), named(server, container, "copy")
    own.lease(f"{container}/data", "acquire", duration="-1")
    clone(source, target, OPTIONS, OPTIONS, wait=False)
    assert len(snapshots(server, container)) == 1
    server.copy(container, "copy", status)
    with pytest.raises(DyskError, match=f"was not completed, it is {status}") as caught:
        clone(source, target, OPTIONS, OPTIONS)
    assert caught.value.remedy
    assert own("HEAD", f"{container}/copy").status == 404
    assert snapshots(server, container) == []


def test_a_clone_that_is_given_up_leaves_nothing(server: PageBlobServer, container: str, own: Rest) -> None:
    server.configure(copies="pending")
    source, target = named(server, container), named(server, container, "copy")
    own.lease(f"{container}/data", "acquire", duration="-1")
    clone(source, target, OPTIONS, OPTIONS, wait=False)
    abort_clone(target, OPTIONS)
    assert own("HEAD", f"{container}/copy").status == 404
    assert snapshots(server, container) == []
    assert content(own, f"{container}/data")[:PAGE] == b"a" * PAGE


def test_a_clone_that_was_complete_before_its_maker_was_interrupted_is_told_to_stay(
    server: PageBlobServer, container: str, own: Rest, caplog: pytest.LogCaptureFixture
) -> None:
    server.configure(copies="pending")
    source, target = named(server, container), named(server, container, "copy")
    clone(source, target, OPTIONS, OPTIONS, wait=False)

    def interrupted(progress: Progress) -> None:
        server.copy(container, "copy", "success")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clone(source, target, OPTIONS, OPTIONS, progress=interrupted)
    assert caplog.messages == [f"{target} stays: it was completed or replaced before it could be given up"]
    assert content(own, f"{container}/copy") == content(own, f"{container}/data")


def test_a_clone_shares_no_page_with_its_source(service: Service, container: str, rest: Rest) -> None:
    """Azurite's Copy Blob makes such a one: what is written to the copy is in the source, and the other way round."""
    before = snapshot(rest, f"{container}/data")
    for source, name in (
        (named(service, container), "one"),
        (named(service, container, snapshot=before), "two"),
    ):
        clone(source, named(service, container, name), OPTIONS, OPTIONS)
        rest.put(f"{container}/{name}", 0, b"x" * PAGE)
        rest.put(f"{container}/data", PAGE, name.encode() * 170 + b"..")
    assert content(rest, f"{container}/data")[:PAGE] == b"a" * PAGE
    for name in ("one", "two"):
        assert content(rest, f"{container}/{name}")[: 2 * PAGE] == b"x" * PAGE + b"a" * PAGE
    old = rest("GET", f"{container}/data", f"snapshot={before}", {"x-ms-range": f"bytes=0-{2 * PAGE - 1}"}).body
    assert old == b"a" * 2 * PAGE


def test_a_source_that_changes_before_the_copy_begins_is_not_copied(
    server: PageBlobServer, container: str, own: Rest
) -> None:
    """Nobody has it when it is looked at; then somebody writes: the copy would be neither of the two."""
    server.fault("delay", operation="copy_blob", times=1)
    caught: list[BaseException] = []

    def work() -> None:
        try:
            clone(named(server, container), named(server, container, "copy"), OPTIONS, OPTIONS)
        except DyskError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        eventually(lambda: bool(server.faults()[0]["hits"]))
        own.put(f"{container}/data", 0, b"c" * PAGE)
    finally:
        server.release()
        thread.join(20)
    assert caught and "changed while it was to be cloned" in str(caught[0])
    assert own("HEAD", f"{container}/copy").status == 404


def test_a_disk_that_appears_meanwhile_is_not_taken_for_the_clone(
    server: PageBlobServer, container: str, own: Rest
) -> None:
    """Nothing is there when it is looked at; another's disk is there when the clone is to be made."""
    for number, wait in enumerate((True, False)):
        blob = f"copy-{number}"
        server.fault("delay", operation="copy_blob", times=1)
        caught: list[BaseException] = []

        def work(blob: str = blob, wait: bool = wait, caught: list[BaseException] = caught) -> None:
            try:
                clone(named(server, container), named(server, container, blob), OPTIONS, OPTIONS, wait=wait)
            except DyskError as error:
                caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            eventually(lambda: bool(server.faults()[-1]["hits"]))
            own.create(f"{container}/{blob}", PAGE)
            before = own("HEAD", f"{container}/{blob}").headers["etag"]
        finally:
            server.release()
            thread.join(20)
        assert caught and "exists already" in str(caught[0])
        assert own("HEAD", f"{container}/{blob}").headers["etag"] == before
