"""The load on a machine's block device: many writes and reads at once, past the page cache, each byte compared.

`python3 hammer.py DEVICE DEPTH` has DEPTH threads, each with a region of its own. Without end, one writes some pages of
it, or reads some and compares them with what it wrote last, and now and then flushes. SIGTERM ends it: all of every
region is read once more, `DONE OPERATIONS` is printed. The first error, or wrong byte, ends it with status 1 and a line
that begins with BAD.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import sys
import threading

PAGE = 4096
MOST = 1 << 20  # bytes of one operation


def content(page: int, number: int) -> bytes:
    """What a page holds after write `number` of its region; zeros before the first."""
    return struct.pack("<QQ", page, number) * (PAGE // 16) if number else bytes(PAGE)


class Region:
    """`pages` pages of the device from `first` on, which nobody else writes. It begins with whatever is there."""

    def __init__(self, fd: int, first: int, pages: int, chance: random.Random) -> None:
        self.fd = fd
        self.first = first
        self.numbers = [0] * pages
        self.number = 0
        self.chance = chance
        self.buffer = mmap.mmap(-1, pages * PAGE)

    def write(self, at: int, count: int) -> None:
        """Some pages."""
        self.number += 1
        self.numbers[at : at + count] = [self.number] * count
        self.buffer[: count * PAGE] = b"".join(content(self.first + at + each, self.number) for each in range(count))
        view = memoryview(self.buffer)[: count * PAGE]
        done = os.pwritev(self.fd, [view], (self.first + at) * PAGE)
        if done != count * PAGE:
            raise ValueError(f"{done} of {count * PAGE} bytes were written")

    def check(self, at: int, count: int) -> None:
        """Some pages are what was written last."""
        view = memoryview(self.buffer)[: count * PAGE]
        done = os.preadv(self.fd, [view], (self.first + at) * PAGE)
        if done != count * PAGE:
            raise ValueError(f"{done} of {count * PAGE} bytes were read")
        for each in range(at, at + count):
            page = self.first + each
            found = self.buffer[(each - at) * PAGE : (each - at + 1) * PAGE]
            if found != content(page, self.numbers[each]):
                raise ValueError(f"page {page} holds {found[:16].hex()}, write {self.numbers[each]} was the last")

    def step(self) -> None:
        """Whatever comes next."""
        pages = len(self.numbers)
        count = min(self.chance.choice((1, 1, 2, 4, 15, 16, 17, 64, 256)), pages)
        at = self.chance.randrange(pages - count + 1)
        what = self.chance.randrange(20)
        if what == 0:
            os.fdatasync(self.fd)
        elif what < 12:
            self.write(at, count)
        else:
            self.check(at, count)


class Hammer:
    """All of them."""

    def __init__(self, fd: int, depth: int, size: int) -> None:
        pages = min(size // depth, MOST) // PAGE
        self.regions = [Region(fd, number * pages, pages, random.Random(number)) for number in range(depth)]
        self.operations = [0] * depth
        self.ends = threading.Event()
        self.errors: list[str] = []

    def run(self) -> None:
        """Until `ends` is set, or something is wrong."""
        threads = [threading.Thread(target=self._live, args=(number,)) for number in range(len(self.regions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _live(self, number: int) -> None:
        region = self.regions[number]
        try:
            region.write(0, len(region.numbers))
            while not self.ends.is_set():
                region.step()
                self.operations[number] += 1
            region.check(0, len(region.numbers))
        except (OSError, ValueError) as error:
            self.errors.append(str(error))
            self.ends.set()


def main() -> None:
    """See above."""
    fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
    hammer = Hammer(fd, int(sys.argv[2]), os.lseek(fd, 0, os.SEEK_END))
    signal.signal(signal.SIGTERM, lambda *_: hammer.ends.set())
    hammer.run()
    if hammer.errors:
        sys.exit(f"BAD {'; '.join(hammer.errors[:3])}")
    print(f"DONE {sum(hammer.operations)}")


if __name__ == "__main__":
    main()
