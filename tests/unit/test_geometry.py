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
    assert await is_blank(CheckedStore(disk(size)), disk(size), geometry)
    assert not await is_blank(CheckedStore(disk(size, at)), disk(size), geometry)


@pytest.mark.parametrize("size", [16 * MIB, HEAD, 128 * MIB])
async def test_a_footer_is_not_content_but_the_page_before_it_is(size: int) -> None:
    geometry = Geometry(size, size + FOOTER_SIZE, True)
    store = disk(size + PAGE, last_page=footer(size))
    assert await is_blank(CheckedStore(store), CheckedStore(store), geometry)
    store = disk(size + PAGE, size - PAGE, last_page=footer(size))
    assert not await is_blank(CheckedStore(store), CheckedStore(store), geometry)


@pytest.mark.parametrize("which", [1, 2])
async def test_a_page_list_that_cannot_be_had_makes_no_disk_blank(which: int) -> None:
    asked = 0

    def choose(name: str, offset: int, length: int) -> Fault | None:
        nonlocal asked
        asked += 1
        return Fault(Kind.INTERNAL) if asked == which else None

    with pytest.raises(StoreError):
        await is_blank(FaultyStore(disk(128 * MIB), choose), disk(128 * MIB), Geometry(128 * MIB, 128 * MIB, False))


async def test_a_short_list_tells_of_a_disk_in_use() -> None:
    size = 8 << 40
    store = RecordingStore(disk(size, 0))
    assert not await is_blank(store, store, Geometry(size, size, False))
    assert store.named("extents") == [("extents", 0, HEAD)]
    assert not store.named("read")


@pytest.mark.parametrize("size", [PAGE, 16 * MIB, 1 << 30, 5 << 30, 8 << 40])
@pytest.mark.parametrize("what", ["mbr", "ext4", "btrfs", "gpt", "md", "vg", "xfs", "ext4-backup", "btrfs-mirror"])
async def test_a_map_that_shows_nothing_is_not_believed_over_what_the_disk_holds(what: str, size: int) -> None:
    """The map is one answer, and may be another's; a disk with data must not be formatted because of it."""
    places = {
        "mbr": 0,
        "ext4": 1024,
        "btrfs": 64 << 10,
        "gpt": size - PAGE,
        "md": size - (128 << 10),
        "vg": 4096,
        "xfs": size // 2 // 4096 * 4096,  # of four allocation groups
        "ext4-backup": 128 * MIB,
        "btrfs-mirror": 64 * MIB,
    }
    at = places[what]
    if not 0 <= at < size:
        at = 0
    with pytest.raises(StoreError, match=f"shows no page of it, but there is data at {at}$") as caught:
        await is_blank(disk(size), CheckedStore(disk(size, at)), Geometry(size, size, False))
    assert caught.value.remedy


async def test_a_disk_that_cannot_be_read_is_not_blank() -> None:
    def choose(name: str, offset: int, length: int) -> Fault | None:
        return Fault(Kind.INTERNAL) if offset else None

    with pytest.raises(StoreError):
        await is_blank(disk(128 * MIB), FaultyStore(disk(128 * MIB), choose), Geometry(128 * MIB, 128 * MIB, False))


async def test_the_look_at_a_blank_disk_stays_within_it_and_is_short() -> None:
    for size in (PAGE, 3 * PAGE, MIB + PAGE, 128 * MIB, 8 << 40):
        store = RecordingStore(disk(size + PAGE, last_page=footer(size)))
        assert await is_blank(store, store, Geometry(size, size + PAGE, True))
        reads = store.named("read")
        assert all(offset >= 0 and offset + length <= size for _, offset, length in reads)
        assert sum(length for _, _, length in reads) <= 4 * MIB
        assert len(reads) <= 32


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
