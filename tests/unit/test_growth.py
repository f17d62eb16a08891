"""Growing a disk: what the blob, its footer and the device are afterwards, and after an end in the middle of it."""

from __future__ import annotations

from uuid import UUID

import pytest

from blobfuse_dysk.device.worker.geometry import Geometry, measure
from blobfuse_dysk.device.worker.growth import grow
from blobfuse_dysk.errors import Kind, StoreError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing import CheckedStore, Fault, FaultyStore, MemoryStore, RecordingStore
from blobfuse_dysk.vhd import FOOTER_SIZE, Layout, footer, parse_footer

MIB = 1 << 20
PAGE = 512
ID = UUID("01234567-89ab-cdef-0123-456789abcdef")
CREATED = 1_500_000_000.0


def vhd(layout: Layout) -> tuple[MemoryStore, Geometry]:
    """A disk of 4 MiB behind which there is a footer, of Azure's kind or the original dysk's."""
    behind = layout is Layout.BEHIND
    size = 4 * MIB if behind else 4 * MIB - FOOTER_SIZE
    memory = MemoryStore(size + FOOTER_SIZE)
    memory.poke(size, footer(size if behind else size + FOOTER_SIZE, uuid=ID, created=CREATED))
    memory.poke(size - PAGE, b"d" * PAGE)
    return memory, Geometry(size, size + FOOTER_SIZE, True)


def check_vhd(memory: MemoryStore, before: Geometry, size: int, layout: Layout) -> None:
    """It is a disk of this size, of the same kind, with the content that it had and zeros behind that."""
    assert memory.size == size + FOOTER_SIZE
    found = parse_footer(memory.peek(size, FOOTER_SIZE))
    assert found is not None and found.layout(memory.size) is layout
    assert (found.uuid, found.created) == (ID, CREATED)
    assert memory.peek(before.size - PAGE, PAGE) == b"d" * PAGE
    assert memory.peek(before.size, size - before.size) == bytes(size - before.size)


async def test_a_disk_without_a_footer_grows_with_its_blob() -> None:
    memory = MemoryStore(4 * MIB)
    grown = await grow(CheckedStore(memory), Geometry(4 * MIB, 4 * MIB, False), 6 * MIB)
    assert grown == Geometry(6 * MIB, 6 * MIB, False)
    assert memory.size == 6 * MIB


@pytest.mark.parametrize("layout", Layout)
async def test_a_footer_moves_to_the_new_end(layout: Layout) -> None:
    memory, before = vhd(layout)
    size = 8 * MIB if layout is Layout.BEHIND else before.size // 4096 * 4096 + 4 * MIB
    grown = await grow(CheckedStore(memory), before, size)
    assert grown == Geometry(size, size + FOOTER_SIZE, True) == await measure(memory, AttachOptions())
    check_vhd(memory, before, size, layout)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("which", range(1, 7))
async def test_what_fails_in_between_can_be_repeated_and_another_size_asked_for(which: int, layout: Layout) -> None:
    """Call number `which` is not carried out, as if the worker had died before it."""
    memory, before = vhd(layout)
    recording = RecordingStore(memory)

    def choose(name: str, offset: int, length: int) -> Fault | None:
        return Fault(Kind.TIMEOUT) if len(recording.calls) == which - 1 else None

    size = 8 * MIB
    with pytest.raises(StoreError):
        await grow(FaultyStore(recording, choose), before, size)
    assert memory.peek(before.size - PAGE, PAGE) == b"d" * PAGE
    size += 4 * MIB
    assert await grow(CheckedStore(memory), before, size) == Geometry(size, size + FOOTER_SIZE, True)
    check_vhd(memory, before, size, layout)


async def test_the_old_footer_stays_until_the_new_one_is_durable() -> None:
    memory, before = vhd(Layout.BEHIND)
    recording = RecordingStore(memory)
    await grow(recording, before, 8 * MIB)
    assert recording.named("grow", "write", "flush", "zero") == [
        ("grow", 0, 8 * MIB + FOOTER_SIZE),
        ("write", 8 * MIB, FOOTER_SIZE),
        ("flush", 0, 0),
        ("zero", before.size, 4 * MIB),
        ("flush", 0, 0),
    ]


async def test_a_disk_that_has_the_size_is_left_as_it_is() -> None:
    memory, before = vhd(Layout.BEHIND)
    recording = RecordingStore(memory)
    assert await grow(recording, before, before.size) == before
    assert recording.calls == []


@pytest.mark.parametrize("size", [4 * MIB - 4096, 4 * MIB + 512, (8 << 40) + 4096, 0, -4096])
async def test_a_disk_does_not_become_smaller_nor_too_large_nor_odd(size: int) -> None:
    recording = RecordingStore(MemoryStore(4 * MIB))
    with pytest.raises(UsageError):
        await grow(recording, Geometry(4 * MIB, 4 * MIB, False), size)
    assert recording.calls == []


async def test_the_footer_counts_for_what_a_blob_can_have() -> None:
    memory, before = vhd(Layout.BEHIND)
    with pytest.raises(UsageError, match="cannot have 8796093022208"):
        await grow(memory, before, 8 << 40)


async def test_a_footer_that_is_not_there_any_more_is_not_made_up() -> None:
    memory, before = vhd(Layout.BEHIND)
    memory.wipe(before.size, FOOTER_SIZE)
    with pytest.raises(UsageError, match="footer is not there"):
        await grow(memory, before, 8 * MIB)
    assert memory.size == before.blob_size
