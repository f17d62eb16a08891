"""The last words of an attachment that did not write all that it took."""

from __future__ import annotations

import os

import pytest

from blobfuse_dysk.device.worker.losses import farewell, is_for_good, left_in
from blobfuse_dysk.errors import DyskError, Kind, LeasedError, NotFoundError, StoreError
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY, Ring

REFUSED = StoreError("writing: HTTP 400", Kind.REJECTED)
FENCED = StoreError("node b took the disk", Kind.FENCED)
GONE = StoreError("the blob is gone", Kind.GONE)


@pytest.mark.parametrize(
    ("error", "lost", "unwritten", "line"),
    [
        (None, None, [], None),
        (FENCED, None, [], None),
        (
            REFUSED,
            None,
            [(0, 4096)],
            "data is detached; 4096 bytes (at 0-4095) were never written: writing: HTTP 400: attach it again and check"
            " its file system (fsck) before it is used",
        ),
        (
            FENCED,
            None,
            [(0, 512), (1024, 512)],
            "data is detached; 1024 bytes (at 0-511, 1024-1535) were never written: node b took the disk: check its"
            " file system (fsck) where it is attached next",
        ),
        (
            None,
            "put: HTTP 400",
            [],
            "data is detached; a write was refused before its end, and may be missing: put: HTTP 400: attach it again"
            " and check its file system (fsck) before it is used",
        ),
        (
            FENCED,
            "put: HTTP 400",
            [],
            "data is detached; a write was refused before its end, and may be missing: put: HTTP 400: check its file"
            " system (fsck) where it is attached next",
        ),
        (
            GONE,
            None,
            [],
            "data is detached; nothing that it took is missing, but its last flush failed: the blob is gone: see"
            " whether a snapshot, or soft delete in the portal, still has what was on the disk",
        ),
    ],
)
def test_the_last_words_say_how_much_is_missing_and_where_and_what_to_do(
    error: DyskError | None, lost: str | None, unwritten: list[tuple[int, int]], line: str | None
) -> None:
    found = farewell("data", error, lost, unwritten)
    assert (found and found.line()) == line


@pytest.mark.parametrize(
    ("count", "places"),
    [
        (3, "(at 0-511, 1024-1535, 2048-2559)"),
        (4, "2048-2559 and 1 more range)"),
        (9, "2048-2559 and 6 more ranges)"),
    ],
)
def test_many_ranges_are_counted_not_listed(count: int, places: str) -> None:
    found = farewell("data", REFUSED, None, [(n * 1024, 512) for n in range(count)])
    assert f"; {count * 512} bytes (" in str(found)
    assert places in str(found)


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (FENCED, True),
        (LeasedError("leased by node b"), True),
        (NotFoundError("no such disk", missing="disk"), True),
        (NotFoundError("no such account", missing="account"), False),
        (REFUSED, False),
    ],
)
def test_a_disk_that_is_gone_or_taken_is_not_waited_for(error: DyskError, final: bool) -> None:
    assert is_for_good(error) is final


def test_what_a_ring_holds_is_counted_though_no_disk_was_opened_for_it() -> None:
    memory = os.memfd_create("ring")
    try:
        assert left_in(memory) == []
        ring = Ring(memory, MIN_CAPACITY)
        ring.append(4096, b"x" * 512)
        ring.append(4608, b"x" * 512)
        ring.append_zero(0, 1024)
        ring.close()
        assert left_in(memory) == [(0, 1024), (4096, 1024)]
    finally:
        os.close(memory)
