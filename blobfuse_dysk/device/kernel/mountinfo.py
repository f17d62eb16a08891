"""The kernel's table of mounts, as a process sees it. Source: proc_pid_mountinfo(5).

    22 1 7:1 /sub /mnt/a\\040b ro,noatime master:2 shared:3 - xfs /dev/loop1 rw,attr2
         |   |     |          |                           |   |
    device root  directory  options                  fstype   source

The holder reads it too, so no more of the standard library is loaded for it than the holder has anyway.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Mount", "mounts"]

_PROC = "/proc"
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount:
    """One mount. device: `major:minor`, which for FUSE is 0:N, N being the connection's number in fusectl.

    root: what of the file system is shown. read_only: whether nothing can be written by this mount of it. id: what
    `/proc/PID/fdinfo` calls it.
    """

    __slots__ = ("device", "directory", "fstype", "id", "read_only", "root", "source")

    def __init__(
        self,
        device: str,
        directory: str,
        fstype: str,
        source: str,
        *,
        root: str = "/",
        options: str = "rw",
        id: str = "",
    ) -> None:
        self.device = device
        self.directory = directory
        self.fstype = fstype
        self.source = source
        self.root = root
        self.read_only = "ro" in options.split(",")
        self.id = id

    def __repr__(self) -> str:
        return f"<Mount of {self.source} ({self.fstype}, {self.device}) on {self.directory}>"


def mounts(process: int | str = "self") -> list[Mount]:
    """Everything mounted in the mount namespace of this or another process, in the order of mounting. Raises OSError.

    Names that are no UTF-8 have surrogates in them, as os.fsdecode makes them.
    """
    return list(_read(f"{_PROC}/{process}/mountinfo"))


def _read(path: str) -> Iterator[Mount]:
    # Only a line feed ends a line: the kernel escapes that one, but leaves a carriage return in a name as it is.
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for line in file:
            before, _, after = line.rstrip("\n").partition(" - ")  # behind a changing number of optional fields
            fields, tail = before.split(" "), after.split(" ")
            directory, source, root = _unescape(fields[4]), _unescape(tail[1]), _unescape(fields[3])
            yield Mount(fields[2], directory, tail[0], source, root=root, options=fields[5], id=fields[0])


def _unescape(text: str) -> str:
    """Blanks, tabs, line feeds and backslashes (and # since Linux 5.14) are written as `\\040`."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
