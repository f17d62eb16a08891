"""A load that knows what a device must hold: overwrites few places again and again, and checks each read.

fio writes a place once per pass. The faults that matter most (a late copy of an older write, a write that was said to
be done and was not) show when the same place is written again soon, so that is what this does: tasks (threads) with a
stripe of their own each write, zero and read ranges in it at random, past the kernel's cache, and a model of the pages
(blobfuse_dysk/testing/pages.py) says what they may find. A write that failed may be there or not.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

from blobfuse_dysk.testing.pages import PAGE, PageModel

__all__ = ["Checker"]

MOST = 64 << 10  # bytes of one operation
STRIPE = 256 << 10


class Checker:
    """The first `tasks` * 256 KiB of a device. `run` may be called several times; `verify` compares everything.

    kinds: what is drawn from, r for read, w for write, z for writing zeros, f for fsync.
    """

    def __init__(self, device: str | Path, *, tasks: int = 8, seed: int = 1, kinds: str = "rrwwwzf") -> None:
        self.device = str(device)
        self.tasks = tasks
        self.done = 0  # operations that succeeded, of all tasks
        self.errors: list[Exception] = []
        self._seed = seed
        self._kinds = kinds
        self._model = PageModel[int, bytes](bytes(PAGE))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def run(self, operations: int) -> None:
        """So many operations in each task; raises the first error."""
        self.start(operations)
        self.join()

    def start(self, operations: int | None = None) -> None:
        """Begin in the background; None: until `stop`."""
        self._stop.clear()
        self._seed += 1
        self._threads = [threading.Thread(target=self._task, args=(n, operations)) for n in range(self.tasks)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End what `start` began, and raise its first error."""
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait for the tasks, and raise their first error."""
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def progress(self, operations: int) -> Callable[[], bool]:
        """A condition: that many operations more than now are done (or a task failed)."""
        goal = self.done + operations
        return lambda: self.done >= goal or bool(self.errors)

    def verify(self, device: str | Path | None = None) -> None:
        """Compare the whole area with the model, on this device or, by another way to the same disk, on that."""
        fd = os.open(device or self.device, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, STRIPE) as buffer:
                for offset in range(0, self.size, STRIPE):
                    since = self._model.now()
                    came = os.preadv(fd, [buffer], offset)
                    assert came == STRIPE, f"{came} bytes at {offset} of {os.lseek(fd, 0, os.SEEK_END)}"
                    self._compare(buffer, offset, STRIPE, since)
        finally:
            os.close(fd)

    def adopt(self, data: bytes) -> None:
        """Take over what somebody else wrote to the whole area."""
        assert len(data) == self.size
        self._model = PageModel(bytes(PAGE), _pages(data, 0))

    def digest(self) -> str:
        """SHA-256 of what the area must hold; a write that failed counts as not done."""
        return hashlib.sha256(b"".join(map(self._model.settled, range(self.size // PAGE)))).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of the area."""
        return self.tasks * STRIPE

    def _task(self, number: int, operations: int | None) -> None:
        generator = random.Random(self._seed * 1000 + number)
        fd = os.open(self.device, os.O_RDWR | os.O_DIRECT)
        try:
            with mmap.mmap(-1, MOST) as buffer:
                count = 0
                while not self._stop.is_set() and (operations is None or count < operations):
                    self._operate(fd, buffer, number * STRIPE, generator)
                    count += 1
                    with self._lock:
                        self.done += 1
        except Exception as error:
            self.errors.append(error)
            self._stop.set()
        finally:
            os.close(fd)

    def _operate(self, fd: int, buffer: mmap.mmap, start: int, generator: random.Random) -> None:
        length = PAGE * generator.choice((1, 8, 8, 8, 32, 128))
        offset = start + PAGE * generator.randrange((STRIPE - length) // PAGE + 1)
        kind = generator.choice(self._kinds)
        if kind == "f":
            os.fsync(fd)
            return
        if kind == "r":
            since = self._model.now()
            with memoryview(buffer)[:length] as view:
                assert os.preadv(fd, [view], offset) == length
            self._compare(buffer, offset, length, since)
            return
        buffer[:length] = data = generator.randbytes(length) if kind == "w" else bytes(length)
        pages = _pages(data, offset)
        with memoryview(buffer)[:length] as view, self._model.writing(pages):
            assert os.pwritev(fd, [view], offset) == length
        self._model.forget(pages)  # nobody else reads this stripe now

    def _compare(self, buffer: mmap.mmap, offset: int, length: int, since: int) -> None:
        self._model.check(_pages(buffer[:length], offset).items(), since, when=f"{length} bytes read at {offset}")


def _pages(data: bytes, offset: int) -> dict[int, bytes]:
    """Bytes that stand at `offset`, by the number of the page."""
    return {(offset + at) // PAGE: data[at : at + PAGE] for at in range(0, len(data), PAGE)}
