"""One file, random operations, and a model of it in memory: what is read must be what the model says, byte by byte.

As fsx does it (xfstests, ltp/fsx.c), written anew: reads and writes at any byte, through the page cache, past it or
through a map, truncations up and down, holes, fsync, pages dropped from the cache so that reads come from the disk.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

from tools.soaklib.journal import Journal

__all__ = ["Exerciser", "compare"]

_MOST = 512 << 10  # bytes of the file
_ONE = 64 << 10  # bytes of one operation
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)


class Exerciser:
    """`run` is the work of a child process. The model is left in the file `model` at the end."""

    def __init__(self, path: Path, seed: str, *, model: Path) -> None:
        self._path = path
        self._random = Random(seed)
        self._model_path = model
        self._model = bytearray()
        self._fd = -1

    def run(self, journal: Journal, tick: Callable[[], None], stopped: threading.Event) -> None:
        """Work until stopped, an I/O error or a mismatch; either is in the journal (`!`, `m`)."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        operations = (
            (self._write, 30),
            (self._read, 30),
            (self._read_map, 8),
            (self._write_map, 8),
            (self._truncate, 6),
            (self._punch, 6),
            (self._sync, 6),
            (self._drop, 6),
            (self._reopen, 2),
        )
        works, weights = zip(*operations, strict=True)
        thread = threading.Thread(target=self._loop, args=(works, weights, journal, tick, stopped), daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.05)
        self._model_path.write_bytes(self._model)

    def _loop(
        self,
        works: tuple[Callable[[], None], ...],
        weights: tuple[int, ...],
        journal: Journal,
        tick: Callable[[], None],
        stopped: threading.Event,
    ) -> None:
        ending = False
        while not ending:
            ending = stopped.is_set()
            work = self._sync if ending else self._random.choices(works, weights)[0]
            operation = journal.begin("x", 0)
            try:
                work()
            except OSError as error:
                journal.failed(operation, error)
                return
            except _Mismatch as mismatch:
                journal.mark(str(mismatch))
                return
            journal.end(operation)
            if work == self._sync:
                tick()

    # The operations.

    def _range(self, limit: int) -> tuple[int, int]:
        offset = self._random.randrange(limit)
        return offset, self._random.randint(1, min(_ONE, limit - offset))

    def _put(self, offset: int, data: bytes) -> None:
        if len(self._model) < offset:
            self._model.extend(bytes(offset - len(self._model)))
        self._model[offset : offset + len(data)] = data

    def _write(self) -> None:
        offset, length = self._range(_MOST)
        data = bytes(length) if self._random.random() < 0.1 else self._random.randbytes(length)
        if os.pwrite(self._fd, data, offset) != length:
            raise OSError(5, "a short write")
        self._put(offset, data)

    def _read(self) -> None:
        offset, length = self._range(_MOST)
        self._expect("read", offset, length, os.pread(self._fd, length, offset))

    def _read_map(self) -> None:
        if self._model:
            offset, length = self._range(len(self._model))
            with mmap.mmap(self._fd, len(self._model), access=mmap.ACCESS_READ) as area:
                self._expect("map", offset, length, area[offset : offset + length])

    def _write_map(self) -> None:
        if self._model:
            offset, length = self._range(len(self._model))
            data = self._random.randbytes(length)
            with mmap.mmap(self._fd, len(self._model)) as area:
                area[offset : offset + length] = data
                area.flush()
            self._put(offset, data)

    def _truncate(self) -> None:
        size = self._random.randrange(_MOST)
        os.ftruncate(self._fd, size)
        if size < len(self._model):
            del self._model[size:]
        else:
            self._model.extend(bytes(size - len(self._model)))

    def _punch(self) -> None:
        if not self._model:
            return
        offset, length = self._range(len(self._model))
        hole = ctypes.c_long(offset), ctypes.c_long(length)
        if _libc.fallocate(self._fd, _KEEP_SIZE | _PUNCH_HOLE, *hole):
            raise OSError(ctypes.get_errno(), "fallocate")
        self._put(offset, bytes(length))

    def _sync(self) -> None:
        os.fsync(self._fd)

    def _drop(self) -> None:
        os.fsync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._expect("read after drop", 0, _MOST, os.pread(self._fd, _MOST, 0))

    def _reopen(self) -> None:
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        self._expect("read after open", 0, _MOST, os.pread(self._fd, _MOST, 0))

    def _expect(self, what: str, offset: int, length: int, found: bytes) -> None:
        if difference := _difference(found, bytes(self._model[offset : offset + length]), offset):
            raise _Mismatch(f"{what} {offset}+{length}: {difference}")


class _Mismatch(Exception):
    pass


def compare(path: Path, model: Path) -> str | None:
    """How a file differs from the model that an exerciser left; None if it does not."""
    return _difference(path.read_bytes(), model.read_bytes(), 0)


def _difference(found: bytes, wanted: bytes, offset: int) -> str | None:
    if found == wanted:
        return None
    if len(found) != len(wanted):
        return f"{len(found)} bytes where there are {len(wanted)}"
    places = [at for at in range(len(found)) if found[at] != wanted[at]]
    return f"{len(places)} bytes differ, from {offset + places[0]} to {offset + places[-1]}"
