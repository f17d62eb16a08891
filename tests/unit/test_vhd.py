"""The VHD footer, field by field against the specification."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.vhd import FOOTER_SIZE, Layout, footer, geometry, parse_footer

GIB = 1 << 30
IDENTIFIER = UUID("00112233-4455-6677-8899-aabbccddeeff")


def test_every_field_stands_where_the_specification_puts_it() -> None:
    data = footer(2 * GIB, uuid=IDENTIFIER, created=946_684_800 + 86_400)
    assert len(data) == 512
    assert data[0:8] == b"conectix"
    assert data[8:12] == b"\0\0\0\2"  # features: the reserved bit
    assert data[12:16] == b"\0\1\0\0"  # version 1.0
    assert data[16:24] == b"\xff" * 8  # no dynamic header
    assert struct.unpack(">I", data[24:28]) == (86_400,)
    assert data[28:32] == b"win "
    assert data[36:40] == b"Wi2k"
    assert struct.unpack(">QQ", data[40:56]) == (2 * GIB, 2 * GIB)
    assert struct.unpack(">HBB", data[56:60]) == (4161, 16, 63)
    assert struct.unpack(">I", data[60:64]) == (2,)  # fixed
    assert data[68:84] == IDENTIFIER.bytes
    assert data[84:] == bytes(428)


def test_checksum_is_the_complement_of_the_sum_of_the_other_bytes() -> None:
    data = footer(GIB)
    (checksum,) = struct.unpack(">I", data[64:68])
    assert checksum == 0xFFFFFFFF - sum(data[:64] + data[68:])


@pytest.mark.parametrize(
    ("size", "expected"),
    [  # the branches of the specification's "CHS Calculation"
        (512 * 17 * 4, (1, 4, 17)),
        (30 << 20, (903, 4, 17)),
        (100 << 20, (1003, 12, 17)),
        (200 << 20, (825, 16, 31)),
        (GIB, (2080, 16, 63)),
        (32 * GIB, (16448, 16, 255)),
        (8 << 40, (65535, 16, 255)),
    ],
)
def test_the_geometry_is_that_of_the_specification(size: int, expected: tuple[int, int, int]) -> None:
    assert geometry(size) == expected


@given(st.integers(1, (8 << 40) // 512))
def test_geometry_never_exceeds_the_disk_or_its_fields(pages: int) -> None:
    cylinders, heads, sectors = geometry(pages * 512)
    assert cylinders * heads * sectors <= pages
    assert cylinders <= 65535 and heads <= 16 and sectors <= 255


@given(st.integers(1, (8 << 40) // 512))
def test_what_is_written_is_read_back(pages: int) -> None:
    parsed = parse_footer(footer(pages * 512, uuid=IDENTIFIER, created=1_700_000_000))
    assert parsed is not None
    assert (parsed.current_size, parsed.original_size) == (pages * 512, pages * 512)
    assert (parsed.created, parsed.creator, parsed.uuid) == (1_700_000_000, "win", IDENTIFIER)


@given(st.integers(0, 511), st.integers(1, 255))
def test_a_damaged_footer_is_none(position: int, difference: int) -> None:
    data = bytearray(footer(GIB))
    data[position] ^= difference
    assert parse_footer(data) is None


def _with(data: bytes, offset: int, replacement: bytes) -> bytes:
    """Replace bytes and make the checksum right again."""
    changed = bytearray(data)
    changed[offset : offset + len(replacement)] = replacement
    changed[64:68] = bytes(4)
    changed[64:68] = (0xFFFFFFFF - sum(changed)).to_bytes(4, "big")
    return bytes(changed)


@pytest.mark.parametrize(
    ("offset", "replacement"),
    [
        (0, b"cxsparse"),  # the header of a dynamic disk
        (60, b"\0\0\0\3"),  # a dynamic disk
        (16, bytes(6) + b"\2\0"),  # a data offset, as a dynamic disk has
        (12, b"\0\2\0\0"),  # a version that is not 1
        (48, bytes(8)),  # size zero
        (48, bytes(7) + b"\1"),  # size of one byte
    ],
)
def test_other_kinds_of_vhd_are_none(offset: int, replacement: bytes) -> None:
    assert parse_footer(_with(footer(GIB), offset, replacement)) is None


def test_a_change_that_keeps_it_a_fixed_vhd_is_accepted() -> None:
    """The helper above makes checksums right: without this the test before would prove nothing."""
    parsed = parse_footer(_with(footer(GIB), 28, b"wa\0\0"))
    assert parsed is not None and parsed.creator == "wa"


def test_the_size_is_the_current_one() -> None:
    parsed = parse_footer(_with(footer(GIB), 48, struct.pack(">Q", 2 * GIB)))
    assert parsed is not None
    assert (parsed.original_size, parsed.current_size) == (GIB, 2 * GIB)
    assert parsed.layout(2 * GIB + FOOTER_SIZE) is Layout.BEHIND
    assert parsed.layout(GIB + FOOTER_SIZE) is None


def test_wrong_length_is_none() -> None:
    assert parse_footer(b"") is None
    assert parse_footer(footer(GIB) + bytes(1)) is None


def test_a_footer_lies_behind_the_disk_or_inside_of_it() -> None:
    parsed = parse_footer(footer(GIB))
    assert parsed is not None
    assert parsed.layout(GIB + FOOTER_SIZE) is Layout.BEHIND
    assert parsed.layout(GIB) is Layout.INSIDE
    assert parsed.layout(2 * GIB) is None


@pytest.mark.parametrize("size", [0, -512, 1000])
def test_sizes_that_are_no_disk(size: int) -> None:
    with pytest.raises(UsageError):
        footer(size)
