"""What the device shows of a blob, and when a disk counts as blank: the two that decide about formatting."""

from __future__ import annotations

from typing import Any

import pytest

from blobfuse_dysk.device.worker.geometry import Geometry, is_blank, measure
from blobfuse_dysk.errors import Kind, StoreError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing import CheckedStore, Fault, FaultyStore, MemoryStore, RecordingStore
from blobfuse_dysk.vhd import FOOTER_SIZE, footer

MIB = 1 << 20
HEAD = 64 * MIB  # what is asked about first
PAGE = 512


def disk(size: int, *written: int, last_page: bytes = b"") -> MemoryStore:
    """A disk with a page of data at each of these places."""
    memory = MemoryStore(size)
    for offset in written:
        memory.poke(offset, b"d" * PAGE)
    if last_page:
        memory.poke(size - PAGE, last_page)
    return memory


@pytest.mark.parametrize(
    ("size", "at"),
    [
        *((128 * MIB, at) for at in (0, 1000 * PAGE, HEAD - PAGE, HEAD, HEAD + PAGE, 128 * MIB - PAGE)),
        *((8 << 40, at) for at in (4 << 40, (8 << 40) - PAGE)),
        *((16 * MIB, at) for at in (0, 16 * MIB - PAGE)),
        (HEAD, HEAD - PAGE),
        (PAGE, 0),
    ],
)
async def test_a_page_anywhere_makes_a_disk_not_blank(size: int, at: int) -> None:
    geometry = Geometry(size, size, False)
    assert await is_blank(CheckedStore(disk(size)), geometry)
    assert not await is_blank(CheckedStore(disk(size, at)), geometry)


@pytest.mark.parametrize("size", [16 * MIB, HEAD, 128 * MIB])
async def test_a_footer_is_not_content_but_the_page_before_it_is(size: int) -> None:
    geometry = Geometry(size, size + FOOTER_SIZE, True)
    assert await is_blank(CheckedStore(disk(size + PAGE, last_page=footer(size))), geometry)
    assert not await is_blank(CheckedStore(disk(size + PAGE, size - PAGE, last_page=footer(size))), geometry)


@pytest.mark.parametrize("which", [1, 2])
async def test_a_page_list_that_cannot_be_had_makes_no_disk_blank(which: int) -> None:
    asked = 0

    def choose(name: str, offset: int, length: int) -> Fault | None:
        nonlocal asked
        asked += 1
        return Fault(Kind.INTERNAL) if asked == which else None

    with pytest.raises(StoreError):
        await is_blank(FaultyStore(disk(128 * MIB), choose), Geometry(128 * MIB, 128 * MIB, False))


async def test_a_short_list_tells_of_a_disk_in_use() -> None:
    size = 8 << 40
    store = RecordingStore(disk(size, 0))
    assert not await is_blank(store, Geometry(size, size, False))
    assert store.named("extents") == [("extents", 0, HEAD)]


@pytest.mark.parametrize(
    ("blob_size", "says", "options", "size"),
    [  # says: the size in the footer, None without one; size: the device's
        (2 * MIB + PAGE, 2 * MIB, {}, 2 * MIB),
        (2 * MIB, 2 * MIB, {}, 2 * MIB - PAGE),  # the original dysk's, which counts itself
        (2 * MIB, None, {}, 2 * MIB),
        (2 * MIB + PAGE, 1 * MIB, {}, 2 * MIB + PAGE),  # the last page of a VHD that the disk holds
        (2 * MIB + PAGE, 4 * MIB, {}, 2 * MIB + PAGE),  # the blob was made smaller
        (2 * MIB + PAGE, 1 * MIB, {"vhd": "yes"}, 2 * MIB),
        (2 * MIB + PAGE, 2 * MIB, {"vhd": "yes"}, 2 * MIB),
        (2 * MIB + PAGE, 2 * MIB, {"vhd": "no"}, 2 * MIB + PAGE),
        (2 * MIB + PAGE, 2 * MIB, {"sector_size": 4096}, 2 * MIB),
    ],
)
async def test_what_the_device_shows(blob_size: int, says: int | None, options: dict[str, Any], size: int) -> None:
    store = disk(blob_size, last_page=b"" if says is None else footer(says))
    found = await measure(CheckedStore(store), AttachOptions(**options))
    assert found == Geometry(size, blob_size, vhd=size != blob_size)


@pytest.mark.parametrize(
    ("blob_size", "says", "options", "about"),
    [
        (2 * MIB, None, {"vhd": "yes"}, "does not end with a VHD footer"),
        (PAGE, PAGE, {}, "no room"),
        (2 * MIB, 2 * MIB, {"sector_size": 4096}, "no multiple of the sector size 4096"),
        (2 * MIB + PAGE, None, {"sector_size": 4096}, "no multiple of the sector size 4096"),
    ],
)
async def test_what_cannot_be_a_device(blob_size: int, says: int | None, options: dict[str, Any], about: str) -> None:
    store = disk(blob_size, last_page=b"" if says is None else footer(says))
    with pytest.raises(UsageError, match=about) as caught:
        await measure(store, AttachOptions(**options))
    assert caught.value.remedy
