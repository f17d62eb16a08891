"""Another size for a disk that nobody has attached: ended after each request, lost, late, or in somebody's way."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal
from uuid import UUID

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.device.worker.geometry import Geometry, measure
from blobfuse_dysk.disks.detached import resize_detached
from blobfuse_dysk.errors import DyskError, Kind, LeasedError, StoreError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from blobfuse_dysk.vhd import FOOTER_SIZE, Layout, footer, parse_footer
from tests.simulation.stacks import ADDRESS, LEASE, NOBODY, Node, attached

MIB = 1 << 20
PAGE = 512
OLD = 4 * MIB
ID = UUID("01234567-89ab-cdef-0123-456789abcdef")
LATE = Fate(before_s=100.0, lost_s=1.0)
LOST = Fate(before_s=0.001, lost_s=0.0005)  # is carried out, and the answer does not come
Kinds = Literal["plain", "behind", "inside"]
KINDS: list[Kinds] = ["plain", "behind", "inside"]


@pytest.fixture
async def blob() -> SimBlob:
    return disk("plain")


def disk(kind: Kinds) -> SimBlob:
    """A disk of 4 MiB with a page at its beginning, and one in the middle."""
    blob = SimBlob(OLD if kind == "plain" else OLD + FOOTER_SIZE)
    blob.put("before", 0, b"a" * PAGE, PAGE, None, None)
    blob.put("before", OLD // 2 - PAGE, b"m" * PAGE, PAGE, None, None)
    if kind != "plain":
        said = OLD if kind == "behind" else OLD + FOOTER_SIZE
        blob.put("before", OLD, footer(said, uuid=ID, created=1.5e9), FOOTER_SIZE, None, None)
    return blob


def check(blob: SimBlob, size: int, kind: Kinds) -> None:
    """It is a disk of this size and kind, with what was on it and nothing else, and nobody has it."""
    assert blob.lease_state == "available"
    assert "dysk_node" not in blob.metadata
    assert blob.size == (size if kind == "plain" else size + FOOTER_SIZE)
    check_content(blob)
    if kind == "plain":
        assert blob.store.peek(OLD // 2, size - OLD // 2) == bytes(size - OLD // 2)
    else:
        assert blob.store.peek(OLD // 2, size - OLD // 2) == bytes(size - OLD // 2), "no old footer is left"
        found = parse_footer(blob.get(size, FOOTER_SIZE))
        assert found is not None and found.layout(blob.size) is Layout(kind)
        assert (found.uuid, found.created) == (ID, 1.5e9)


def check_content(blob: SimBlob) -> None:
    assert blob.get(0, 2 * PAGE) == b"a" * PAGE + bytes(PAGE)
    assert blob.get(OLD // 2 - 2 * PAGE, 2 * PAGE) == bytes(PAGE) + b"m" * PAGE


async def resized(client: SimClient, size: int, *, force: bool = False) -> tuple[int, int]:
    return await resize_detached(
        ADDRESS, NOBODY, lambda found: size, node="here", force=force, client=client, random=Random(3)
    )


async def ended_after(client: SimClient, requests: int, size: int) -> None:
    """The process is killed when so many requests are done: the next one does not leave."""
    with trio.CancelScope() as scope:

        def fate(name: str) -> Fate:
            if len(client.sent) > requests:
                client.down = True
                scope.cancel()
            return Fate()

        client.fate = fate
        await resized(client, size, force=True)
    assert scope.cancelled_caught


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2 * MIB, 3 * MIB, OLD, 5 * MIB, 9 * MIB])
async def test_a_disk_gets_another_size(
    kind: Kinds, size: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    blob = disk(kind)
    assert await resized(SimClient(blob, nursery), size, force=True) == (OLD, size)
    check(blob, size, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [3 * MIB, 9 * MIB])
async def test_ended_after_any_request_it_can_be_read_and_is_finished_by_the_same_again(
    kind: Kinds, size: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    whole = SimClient(disk(kind), nursery)
    await resized(whole, size, force=True)
    assert len(whole.sent) > 8
    for requests in range(len(whole.sent)):
        blob = disk(kind)
        await ended_after(SimClient(blob, nursery), requests, size)
        check_content(blob)
        await trio.sleep(61)
        async with attached(SimClient(blob, nursery), seed=requests) as stack:
            found = await measure(stack.store, AttachOptions())
            assert found.size in (OLD, size, blob.size), "what is on it begins where it did"
            assert found.size >= min(OLD, size)
            assert bytes(await stack.store.read(OLD // 2 - PAGE, PAGE)) == b"m" * PAGE
            await stack.release()
        await resized(SimClient(blob, nursery), size, force=True)
        check(blob, size, kind)


@pytest.mark.parametrize("size", [3 * MIB, 9 * MIB])
@pytest.mark.parametrize("name", ["put", "clear", "resize", "properties", "raise", "metadata"])
async def test_answers_that_are_lost_change_nothing(
    name: str, size: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    blob = disk("behind")
    left = [LOST, LOST]
    client = SimClient(blob, nursery, lambda each: left.pop() if each == name and left else Fate())
    await resized(client, size, force=True)
    await trio.sleep(61)  # a name that was not taken off, perhaps, and its lease
    blob.metadata = {}
    blob.acquire(15, LEASE)
    blob.release(LEASE)
    check(blob, size, "behind")


async def test_an_interrupted_growth_goes_on_to_any_larger_size_only(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    blob = disk("behind")
    blob.resize(8 * MIB + FOOTER_SIZE, None)  # and the new footer did not come
    client = SimClient(blob, nursery)
    for size in (OLD, 6 * MIB):
        with pytest.raises(UsageError, match="was interrupted") as caught:
            await resized(client, size, force=True)
        assert "8MiB" in (caught.value.remedy or "")
    assert await resized(client, 12 * MIB) == (OLD, 12 * MIB)
    check(blob, 12 * MIB, "behind")


async def test_a_vhd_that_is_kept_on_a_disk_is_not_taken_for_an_interrupted_growth(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    blob = disk("behind")
    blob.resize(8 * MIB, None)
    assert await resized(SimClient(blob, nursery), 12 * MIB) == (8 * MIB, 12 * MIB)
    assert blob.size == 12 * MIB
    assert parse_footer(blob.get(OLD, FOOTER_SIZE)) is not None


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_cut_off_that_is_not_empty(
    kind: Kinds, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    for at in (3 * MIB, OLD - PAGE, 3 * MIB + 5 * PAGE):
        blob = disk(kind)
        blob.put("before", at, b"x" * PAGE, PAGE, None, None)
        before = blob.size
        with pytest.raises(UsageError, match="nothing was cut off") as caught:
            await resized(SimClient(blob, nursery), 3 * MIB, force=True)
        assert "4MiB is the least" in (caught.value.remedy or "")
        assert (blob.size, blob.get(at, PAGE)) == (before, b"x" * PAGE)
        assert blob.lease_state == "available"
    assert await resized(SimClient(blob, nursery), 3 * MIB + 8 * PAGE, force=True) == (OLD, 3 * MIB + 4096)
    assert blob.get(at, PAGE) == b"x" * PAGE


@pytest.mark.parametrize("at", [3 * MIB, OLD - PAGE])
async def test_a_map_that_shows_nothing_is_not_believed_alone(
    at: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    blob = disk("plain")
    blob.put("before", at, b"x" * PAGE, PAGE, None, None)
    blob.allocated.discard(at // PAGE)
    with pytest.raises(StoreError, match="there is data at"):
        await resized(SimClient(blob, nursery), 3 * MIB, force=True)
    assert blob.get(at, PAGE) == b"x" * PAGE


@pytest.mark.parametrize("size", [3 * MIB + PAGE, 0, -MIB])
async def test_a_size_that_no_disk_has_cuts_nothing_off(
    size: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    blob = disk("behind")
    with pytest.raises(UsageError):
        await resized(SimClient(blob, nursery), size, force=True)
    check(blob, OLD, "behind")


async def test_it_becomes_smaller_only_if_that_was_asked_for(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    blob = disk("plain")
    client = SimClient(blob, nursery)
    with pytest.raises(UsageError, match="are fewer") as caught:
        await resized(client, 3 * MIB)
    assert "--force" in (caught.value.remedy or "")
    assert "resize" not in client.sent
    check(blob, OLD, "plain")


def then_written(blob: SimBlob, at: int, before: Callable[[], None]) -> Callable[[str], Fate]:
    """When the blob is about to be cut off, `before` is done, and somebody without a lease writes there."""
    done: list[str] = []

    def fate(name: str) -> Fate:
        if name == "resize" and not done:
            done.append(name)
            before()
            blob.put("outsider", at, b"x" * PAGE, PAGE, None, None)
        return Fate()

    return fate


async def test_what_somebody_writes_who_broke_the_lease_is_not_cut_off(
    blob: SimBlob, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    client = SimClient(blob, nursery, then_written(blob, OLD - PAGE, blob.break_now))
    with pytest.raises(DyskError):
        await resized(client, 3 * MIB, force=True)
    assert (blob.size, blob.get(OLD - PAGE, PAGE)) == (OLD, b"x" * PAGE)


@pytest.mark.parametrize("size", [3 * MIB, 9 * MIB])
async def test_no_late_copy_cuts_off_what_the_next_one_writes(
    size: int, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    with pytest.raises(DyskError):
        await resized(node("1", resize=[LATE] * 100), size, force=True)
    assert blob.lease_state == "available"
    async with attached(node("2"), node="two", seed=2) as stack:
        await stack.store.grow(12 * MIB)
        await stack.store.write(12 * MIB - PAGE, b"n" * PAGE)
        await stack.store.write(OLD - PAGE, b"n" * PAGE)
        await trio.sleep(200)
        assert stack.state == "attached"
    assert (blob.size, blob.shrunk) == (12 * MIB, False)
    assert blob.get(12 * MIB - PAGE, PAGE) == b"n" * PAGE
    assert blob.get(OLD - PAGE, PAGE) == b"n" * PAGE


async def test_a_disk_that_a_node_has_is_refused_with_its_name(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("2"), node="web-7") as stack:
        two = node("1")
        for size in (3 * MIB, 9 * MIB):
            with pytest.raises(LeasedError, match="cannot be resized from here") as caught:
                await resized(two, size, force=True)
            assert caught.value.holder == "web-7"
            assert "on web-7" in (caught.value.remedy or "") and "break" not in (caught.value.remedy or "")
        assert "resize" not in two.sent
        await stack.store.write(0, b"a" * PAGE)
        assert stack.state == "attached"


async def test_one_whose_lease_is_broken_in_the_middle_does_not_go_on(node: Node, autojump_clock: MockClock) -> None:
    blob = disk("behind")

    def fate(name: str) -> Fate:
        if name == "put":
            blob.break_now()
            blob.raise_number(1 << 50, None)
        return Fate()

    client = node("1")
    client.blob, client.fate = blob, fate
    with pytest.raises(DyskError) as caught:
        await resized(client, 3 * MIB, force=True)
    assert not isinstance(caught.value, StoreError) or caught.value.kind in (Kind.FENCED, Kind.TIMEOUT, Kind.LEASE)
    assert blob.size == OLD + FOOTER_SIZE
    assert not blob.shrunk


async def test_what_is_wanted_is_asked_by_what_the_disk_is(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    for kind in KINDS:
        blob, seen = disk(kind), list[Geometry]()

        def wanted(found: Geometry, seen: list[Geometry] = seen) -> int:
            seen.append(found)
            return found.size + MIB

        client = SimClient(blob, nursery)
        done = await resize_detached(ADDRESS, NOBODY, wanted, node="here", force=False, client=client)
        assert done == (OLD, OLD + MIB)
        assert (seen[0].size, seen[0].vhd) == (OLD, kind != "plain")
        check(blob, OLD + MIB, kind)
