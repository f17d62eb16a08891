"""How large a volume becomes for what was asked."""

from __future__ import annotations

from grpc import StatusCode

from blobfuse_dysk.disk import MAX_SIZE, format_size
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.status import CallError
from blobfuse_dysk.vhd import FOOTER_SIZE

__all__ = ["DEFAULT_SIZE", "fits", "size_for"]

DEFAULT_SIZE = 1 << 30  # bytes; of a volume of which no size was asked for
_MIB = 1 << 20


def size_for(wanted: pb.CapacityRange, *, vhd: bool, least: int = 0) -> int:
    """Bytes of the device: what was asked for, in whole MiB. least: what it is made from has so many.

    Raises CallError(OUT_OF_RANGE).
    """
    most = MAX_SIZE // _MIB * _MIB - (_MIB if vhd else 0)
    asked = wanted.required_bytes or min(least or DEFAULT_SIZE, wanted.limit_bytes or MAX_SIZE)
    size = -(-asked // _MIB) * _MIB
    if not wanted.required_bytes and wanted.limit_bytes:
        size = min(size, wanted.limit_bytes // _MIB * _MIB)
    if (wanted.limit_bytes and size > wanted.limit_bytes) or size == 0:
        raise _out_of_range(f"a volume is whole MiB, and limit_bytes is {wanted.limit_bytes}", "raise the limit")
    if size > most:
        what = f"a VHD has a footer of {FOOTER_SIZE} bytes, and " if vhd else ""
        raise _out_of_range(
            f"{format_size(size)} was asked for, and {what}a page blob has at most {format_size(MAX_SIZE)}",
            f"ask for at most {most >> 20}Mi",
        )
    if size < least:
        raise _out_of_range(
            f"{format_size(size)} was asked for, and what the volume is made from has {least} bytes",
            f"ask for at least {-(-least // _MIB)}Mi",
        )
    return size


def fits(size: int, wanted: pb.CapacityRange) -> bool:
    """Whether a volume that is there already has what is asked for."""
    return size >= wanted.required_bytes and (not wanted.limit_bytes or size <= wanted.limit_bytes)


def _out_of_range(what: str, remedy: str) -> CallError:
    return CallError(StatusCode.OUT_OF_RANGE, what, remedy=remedy)
