"""The journal of a workload: what was begun, what was acknowledged, in the order in which it happened.

One line an event, appended by one write(2) each, so that a line that stands before another happened before it, whoever
of the workload's threads (and the soak itself, for marks) wrote them. The machine does not crash, only processes of the
product do, so nothing needs to be made durable here.

    TIME w OP SPACE OFFSET LENGTH VERSION    a write is begun (version 0: of zeros)
    TIME r OP SPACE OFFSET LENGTH            a read is begun
    TIME f OP SPACE                          a flush is begun
    TIME + OP [VERSIONS]                     it has succeeded; of a read, what was found: version,version,...
    TIME ! OP ERRNO                          it has failed
    TIME n NAME SPACE                        a name event of a file: born, renamed, gone (begun), and the same with `=`
    TIME m TEXT                              a mark of the soak: kill, takeover
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Journal", "Line", "read_journal"]

Line = list[str]


class Journal:
    """Any number of threads and processes may write. Times are those of time.monotonic()."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._numbers = itertools.count(1)

    def begin(self, kind: str, *fields: int) -> int:
        """Enter the start of an operation; returns its number. To be called before the system call."""
        number = next(self._numbers)
        self._put(kind, number, *fields)
        return number

    def end(self, number: int, versions: list[int] | None = None) -> None:
        """Enter a success. To be called after the system call returned."""
        self._put("+", number, *(() if versions is None else (",".join(map(str, versions)),)))

    def failed(self, number: int, error: OSError) -> None:
        self._put("!", number, error.errno or 0)

    def name(self, event: str, space: int) -> None:
        self._put("n", event, space)

    def mark(self, text: str) -> None:
        self._put("m", text)

    def close(self) -> None:
        os.close(self._fd)

    def _put(self, *fields: object) -> None:
        line = " ".join(map(str, (f"{time.monotonic():.4f}", *fields)))
        os.write(self._fd, line.encode() + b"\n")


def read_journal(path: Path) -> Iterator[Line]:
    """The lines, split."""
    with path.open() as file:
        for line in file:
            yield line.split()
