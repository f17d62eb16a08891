"""PageBlob: what is on each request, and what each refusal means."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.azure.wire import PageList
from blobfuse_dysk.errors import Kind, ServiceError, StoreError, TransportError
from blobfuse_dysk.store.blobapi import BlobApi
from blobfuse_dysk.store.layers import pageblob
from blobfuse_dysk.store.layers.pageblob import PageBlob
from blobfuse_dysk.store.lease.token import Guard
from blobfuse_dysk.store.parts.meter import Meter
from blobfuse_dysk.store.serviceerrors import to_store_error
from blobfuse_dysk.testing import Fate, SimBlob, SimClient

LEASE = "1" * 8 + "-1111-1111-1111-" + "1" * 12
SIZE = 1 << 40


def service(status: int, code: str = "", retry_after_s: float | None = None) -> ServiceError:
    return ServiceError("no", status=status, code=code, retry_after_s=retry_after_s)


REFUSALS = [
    # error, kind, unknown for a write, immediate
    (service(503, "ServerBusy"), Kind.THROTTLED, False, False),
    (service(503), Kind.THROTTLED, True, False),
    (service(503, "OperationTimedOut"), Kind.THROTTLED, True, False),
    (service(500, "OperationTimedOut"), Kind.THROTTLED, True, False),
    (service(500, "InternalError"), Kind.INTERNAL, True, False),
    (service(500, "ServerBusy"), Kind.THROTTLED, True, False),
    (service(500), Kind.INTERNAL, True, False),
    (service(502), Kind.INTERNAL, True, False),
    (service(504), Kind.INTERNAL, True, False),
    (service(429), Kind.THROTTLED, False, False),
    (service(401, "InvalidAuthenticationInfo"), Kind.DENIED, False, False),
    (service(403, "AuthenticationFailed"), Kind.DENIED, False, False),
    (service(404, "BlobNotFound"), Kind.GONE, False, False),
    (service(410), Kind.GONE, False, False),
    (service(409, "ContainerBeingDeleted"), Kind.GONE, False, False),
    (service(408), Kind.UNREACHABLE, True, False),
    (service(409, "LeaseAlreadyPresent"), Kind.LEASE, False, True),
    (service(409, "LeaseIdMismatchWithLeaseOperation"), Kind.LEASE, False, True),
    (service(412, "LeaseIdMismatchWithBlobOperation"), Kind.LEASE, False, True),
    (service(412, "LeaseLost"), Kind.LEASE, False, True),
    (service(412, "ConditionNotMet"), Kind.LEASE, False, True),
    (service(412, "SequenceNumberConditionNotMet"), Kind.EPOCH, False, True),
    (service(416, "InvalidPageRange"), Kind.RANGE, False, False),
    (service(307), Kind.REJECTED, True, False),
    (service(400, "Md5Mismatch"), Kind.CORRUPT, False, False),
    (service(400, "Crc64Mismatch"), Kind.CORRUPT, False, False),
    (service(400, "IncompleteBody"), Kind.CORRUPT, False, False),
    (service(400, "InvalidHeaderValue"), Kind.REJECTED, False, False),
    (service(409, "BlobOverwritten"), Kind.REJECTED, False, False),
    (TransportError("reset", sent=True), Kind.UNREACHABLE, True, False),
    (TransportError("reset", sent=True, stale=True), Kind.UNREACHABLE, True, True),
    (TransportError("refused", sent=False), Kind.UNREACHABLE, False, False),
]


@pytest.mark.parametrize(("error", "kind", "unknown", "immediate"), REFUSALS, ids=lambda value: str(value))
def test_what_a_refusal_means(error: ServiceError | TransportError, kind: Kind, unknown: bool, immediate: bool) -> None:
    write = to_store_error(error, "writing", modifies=True, epoch=7)
    assert (write.kind, write.unknown, write.immediate, write.epoch) == (kind, unknown, immediate, 7)
    read = to_store_error(error, "reading", modifies=False)
    assert (read.kind, read.unknown) == (kind, False)
    assert str(read) == f"reading: {error}"


def test_retry_after_comes_through() -> None:
    assert to_store_error(service(503, "ServerBusy", 7.0), "x", modifies=True).retry_after_s == 7.0


class Setting:
    def __init__(self, nursery: trio.Nursery, size: int = SIZE) -> None:
        self.blob = SimBlob(size)
        self.client = SimClient(self.blob, nursery)
        self.blob.acquire(60, LEASE)
        self.guard = Guard(LEASE, self.blob.raise_number(3, LEASE).number, trio.current_time() + 60)
        self.meter = Meter()
        self.store = PageBlob(self.client, size, self.guard, meter=self.meter)


async def fails(call: Callable[[], object]) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await call()  # type: ignore[misc]
    return caught.value


async def test_writes_and_clears_carry_lease_and_epoch(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    it = Setting(nursery)
    await it.store.write(0, b"x" * 512)
    it.guard.epoch = it.blob.raise_number(4, LEASE).number
    await it.store.zero(0, 512)
    assert [(w.lease_id, w.epoch, w.code) for w in it.blob.writes] == [(LEASE, 3, ""), (LEASE, 4, "")]


async def test_nothing_is_sent_without_the_lease(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    it = Setting(nursery)
    await trio.sleep(60)
    for error in (
        await fails(lambda: it.store.write(0, b"x" * 512)),
        await fails(lambda: it.store.zero(0, 512)),
    ):
        assert (error.kind, error.unknown, error.immediate) == (Kind.LEASE, False, True)
    assert it.client.sent == []


async def test_without_a_guard_it_is_read_only(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    it = Setting(nursery)
    store = PageBlob(it.client, SIZE, None)
    assert (store.plain_read is None, store.plain_write) == (False, None)
    assert (await fails(lambda: store.write(0, b"x" * 512))).kind is Kind.REJECTED
    assert (await fails(lambda: store.zero(0, 512))).kind is Kind.REJECTED
    assert bytes(await store.read(0, 512)) == bytes(512)
    assert it.client.sent == ["get"]


async def test_errors_name_the_epoch_of_the_request(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    it = Setting(nursery)
    it.client.fate = lambda name: Fate(before_s=1.0, lost_s=0.5)
    for call in (lambda: it.store.write(0, b"x" * 512), lambda: it.store.zero(512, 512)):
        error = await fails(call)
        assert (error.kind, error.unknown, error.epoch) == (Kind.UNREACHABLE, True, 3)
    it.client.fate = lambda name: Fate()
    it.blob.raise_number(9, LEASE)
    error = await fails(lambda: it.store.zero(0, 512))
    assert (error.kind, error.unknown, error.epoch) == (Kind.EPOCH, False, 3)


@pytest.mark.parametrize("difference", [-512, -1, 1, 512])
async def test_a_body_of_another_length_is_an_error(
    difference: int, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    it = Setting(nursery)
    it.blob.get = lambda offset, length: bytes(length + difference)  # type: ignore[method-assign]
    assert (await fails(lambda: it.store.read(0, 512))).kind is Kind.CORRUPT
    assert it.meter.errors == {"corrupt": 1}
    assert it.meter.in_flight == 0


async def test_page_lists_follow_markers(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    it = Setting(nursery)
    it.blob.list_most = 3
    for page in range(0, 40, 2):
        await it.store.write(page * 512, b"x" * 512)
    assert await it.store.extents(0, SIZE) == [(page * 512, 512) for page in range(0, 40, 2)]
    assert await it.store.extents(512, 1024) == [(1024, 512)]
    assert it.client.sent.count("list") == 8


async def test_a_list_that_takes_too_long_is_asked_for_in_halves(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    it = Setting(nursery)
    expected = [(0, 512), (SIZE // 4 - 512, 1024), (SIZE - 512, 512)]
    for offset, length in expected:
        await it.store.write(offset, b"x" * length)
    it.blob.lists_time_out_above = SIZE // 4
    assert await it.store.extents(0, SIZE) == expected, "neighbours across a seam are joined"
    it.blob.lists_time_out_above = 1 << 20
    with trio.fail_after(10):
        assert (await fails(lambda: it.store.extents(0, SIZE))).kind is Kind.THROTTLED


async def test_a_list_that_is_refused_is_not_asked_for_in_halves(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    it = Setting(nursery)
    it.client.fate = lambda name: Fate(error=service(503, "ServerBusy", 2.0))
    error = await fails(lambda: it.store.extents(0, SIZE))
    assert (error.kind, error.retry_after_s) == (Kind.THROTTLED, 2.0)
    assert it.client.sent == ["list"]


async def test_requests_are_counted_by_kind(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    it = Setting(nursery)
    await it.store.write(0, b"x" * 4096)
    await it.store.read(0, 512)
    await it.store.zero(0, 512)
    await it.store.extents(0, SIZE)
    await it.store.flush()
    assert it.meter.calls == {"put": 1, "get": 1, "clear": 1, "list": 1}
    assert it.meter.bytes["put"] == 4096
    status = it.meter.status()
    assert status["in_flight"] == 0
    latency = status["latency_ms"]
    assert isinstance(latency, dict)
    assert latency["put"]["p50"] == pytest.approx(2.0, rel=0.1)


class Lists:
    """A client that knows page lists only. answer: (offset, length, marker) -> the list, or an error."""

    def __init__(self, answer: Callable[[int, int, str | None], PageList]) -> None:
        self.asked: list[tuple[int, int, str | None]] = []
        self._answer = answer

    async def page_ranges(self, offset: int, length: int, *, marker: str | None, timeout_s: float) -> PageList:
        await trio.lowlevel.checkpoint()
        self.asked.append((offset, length, marker))
        return self._answer(offset, length, marker)


def listed_by(lists: Lists, size: int = SIZE) -> PageBlob:
    return PageBlob(cast(BlobApi, lists), size, None)


async def test_a_list_without_an_answer_in_time_is_asked_for_in_halves() -> None:
    """The halves are whole pages, also of a disk with an odd number of them."""
    size = SIZE + 512

    def answer(offset: int, length: int, marker: str | None) -> PageList:
        if length > SIZE // 2:
            raise TransportError("no answer", sent=True)
        return PageList([(size - 512, 512)] if offset + length == size else [], None)

    lists = Lists(answer)
    assert await listed_by(lists, size).extents(0, size) == [(size - 512, 512)]
    assert len(lists.asked) > 2
    assert all(offset % 512 == 0 and length % 512 == 0 for offset, length, _ in lists.asked)


async def test_a_list_on_a_connection_that_broke_while_idle_is_not_asked_for_in_halves() -> None:
    def answer(offset: int, length: int, marker: str | None) -> PageList:
        raise TransportError("reset", sent=True, stale=True)

    lists = Lists(answer)
    error = await fails(lambda: listed_by(lists).extents(0, SIZE))
    assert (error.kind, error.immediate) == (Kind.UNREACHABLE, True)
    assert lists.asked == [(0, SIZE, None)]


async def test_a_marker_that_repeats_is_an_error() -> None:
    """Were the list ended there, what comes behind it would read as zeros, and could be found blank."""
    lists = Lists(lambda offset, length, marker: PageList([(0, 512)], "again"))
    assert (await fails(lambda: listed_by(lists).extents(0, SIZE))).kind is Kind.CORRUPT
    assert lists.asked == [(0, SIZE, None), (0, SIZE, "again")]


MARKERS = ["A", "B", "A", "B"] * 1000
EMPTY = PageList([], None)


@pytest.mark.parametrize(
    "pages",
    [
        [PageList([(0, 512)], "A"), PageList([(1024, 512)], "B")] * 2,  # goes back to the start
        [PageList([], marker) for marker in MARKERS],
        [PageList([(0, 512)], "A"), *(PageList([], marker) for marker in MARKERS)],
        [PageList([(1024, 512)], "A"), PageList([(0, 512)], "B"), EMPTY],
        [PageList([(0, 512)], "A"), PageList([(1024, 512)], "A"), EMPTY],
        [PageList([], str(number)) for number in range(100_000)],
    ],
)
async def test_a_list_that_makes_no_progress_is_an_error_before_long(pages: list[PageList]) -> None:
    following = iter(pages)
    lists = Lists(lambda offset, length, marker: next(following))
    assert (await fails(lambda: listed_by(lists).extents(0, SIZE))).kind is Kind.CORRUPT
    assert len(lists.asked) <= 1002


async def test_empty_pieces_of_a_list_are_followed_while_their_markers_differ() -> None:
    following = iter([*(PageList([], str(number)) for number in range(900)), PageList([(512, 512)], None)])
    lists = Lists(lambda offset, length, marker: next(following))
    assert await listed_by(lists).extents(0, SIZE) == [(512, 512)]


async def test_a_list_of_more_ranges_than_are_kept_becomes_coarser_not_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gaps that are closed count as allocated, which costs requests; a range left out would read as zeros."""
    monkeypatch.setattr(pageblob, "MOST_RANGES", 100)
    far = [(SIZE - 512, 512)]
    pieces = [[(at * 4096, 512) for at in range(first, first + 50)] for first in range(0, 1000, 50)]
    following = iter([*(PageList(piece, str(piece[0][0])) for piece in pieces), PageList(far, None)])
    lists = Lists(lambda offset, length, marker: next(following))
    found = await listed_by(lists).extents(0, SIZE)
    assert len(found) <= 100
    assert found[-1] == far[0]
    for offset, length in [extent for piece in pieces for extent in piece]:
        assert any(start <= offset and offset + length <= start + size for start, size in found)
    assert sum(length for _, length in found) < 8 << 20, "only gaps between neighbours are closed"


async def test_what_a_list_names_is_cut_to_the_range_asked_for() -> None:
    """A service may name whole ranges that only reach into it; beyond it, a layer above would ask past the end."""
    lists = Lists(lambda offset, length, marker: PageList([(0, 8192), (16384, 8192), (1 << 20, 512)], None))
    assert await listed_by(lists).extents(4096, 16384) == [(4096, 4096), (16384, 4096)]
