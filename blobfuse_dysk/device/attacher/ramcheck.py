"""Whether this machine has the memory that an attachment may come to use."""

from __future__ import annotations

from blobfuse_dysk.disk import format_size
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import AttachOptions

__all__ = ["available", "check"]

_MEMINFO = "/proc/meminfo"


def available(path: str = _MEMINFO) -> int | None:
    """Bytes that programs can still have without swapping (MemAvailable, see proc(5)); None if that is not told."""
    try:
        with open(path) as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name == "MemAvailable":
                    return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def check(options: AttachOptions, path: str = _MEMINFO) -> None:
    """Refuse caches larger than half of what is available: they are locked into memory, page by page as they fill."""
    wanted = options.cache_memory
    free = available(path)
    if free is not None and wanted > free // 2:
        raise UsageError(
            f"caches of {format_size(wanted)} do not fit into this machine's memory ({format_size(free)} available)",
            remedy="give them half of what is available at most (write-cache-size, read-cache-size), or use cache=none",
        )
