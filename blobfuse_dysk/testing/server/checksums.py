"""Checksums of bodies: MD5, and the CRC-64 that the service calls crc64.

That is the polynomial 0x9A6C9329AC4BC9B5 reflected, initial and final value all ones; a header has its eight bytes,
least significant first, in base64. Its check value (of "123456789") is 0xAE8B14860A799888, as of CRC-64/NVME in
https://reveng.sourceforge.io/crc-catalogue/all.htm. Python takes half a second for
4 MiB, so only who asks for it gets it.
"""

from __future__ import annotations

import array
import base64
import binascii
import functools
import hashlib
import sys

from .answers import Refusal
from .request import Request

__all__ = ["check_checksums", "crc64_of", "md5_of"]

_POLYNOMIAL = 0x9A6C9329AC4BC9B5
_ONES = (1 << 64) - 1


def md5_of(data: bytes) -> str:
    """The value of Content-MD5."""
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def crc64_of(data: bytes) -> str:
    """The value of x-ms-content-crc64."""
    table = _table()
    value = _ONES
    whole = len(data) & ~1
    words = array.array("H", data[:whole])
    if sys.byteorder == "big":
        words.byteswap()
    for word in words:
        value = table[(value ^ word) & 0xFFFF] ^ (value >> 16)
    for byte in data[whole:]:
        value = _steps(value ^ byte, 8)
    return base64.b64encode((value ^ _ONES).to_bytes(8, "little")).decode()


def check_checksums(request: Request, data: bytes, prefix: str = "") -> dict[str, str]:
    """Compare the checksum that a request carries, of either kind, with `data`; returns the header to answer with.

    prefix: "x-ms-source-" for data that comes from a URL. Refusal if it is malformed, does not fit, or there are two.
    """
    md5_name, crc_name = ("content-md5", "x-ms-content-crc64")
    if prefix:
        md5_name, crc_name = f"{prefix}content-md5", f"{prefix}content-crc64"
    md5, crc = request.header(md5_name.encode()), request.header(crc_name.encode())
    if md5 is not None and crc is not None:
        raise Refusal("InvalidHeaderValue", "Content-MD5 and crc64 exclude each other.")
    if md5 is not None:
        if _decoded(md5, 16, "InvalidMd5") != hashlib.md5(data).digest():
            raise Refusal("Md5Mismatch")
        return {"Content-MD5": md5}
    if crc is not None:
        if _decoded(crc, 8, "InvalidHeaderValue") != base64.b64decode(crc64_of(data)):
            raise Refusal("Crc64Mismatch")
        return {"x-ms-content-crc64": crc}
    return {}


def _decoded(text: str, length: int, code: str) -> bytes:
    try:
        found = base64.b64decode(text, validate=True)
    except binascii.Error:
        found = b""
    if len(found) != length:
        raise Refusal(code)
    return found


@functools.cache
def _table() -> list[int]:
    """By the next two bytes."""
    return [_steps(word, 16) for word in range(1 << 16)]


def _steps(value: int, bits: int) -> int:
    for _ in range(bits):
        value = (value >> 1) ^ _POLYNOMIAL if value & 1 else value >> 1
    return value
