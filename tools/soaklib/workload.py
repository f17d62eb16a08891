"""Workloads that run in a process of their own: what a program does with a disk, with every step in the journal."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from blobfuse_dysk.testing.pages import PAGE, versions
from tools.soaklib.journal import Journal
from tools.soaklib.pages import PageBuffer

__all__ = ["Child", "DeviceLoad", "Strike", "device_load", "log_size", "start"]

_MOST = 1 << 20  # bytes of the largest write
_MOST_READ = 64 << 10
STRIDE = 1 << 24  # versions of one life of a workload


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """life: from 1; keeps the versions of the lives of one disk apart. flush_share: of all operations.

    flusher_gap_s: if not 0, one thread does nothing but flush, after pauses of up to twice that, and
    the others do not flush. hot_size: bytes of a hot spot, of which there are three.
    most: bytes of one write. step: of offsets, in bytes; more than `most` leaves gaps, so that nothing can be joined.
    errors: how many a thread takes before it ends.
    """

    device: str
    size: int
    seed: str
    life: int
    threads: int
    flush_share: float
    flusher_gap_s: float
    hot_share: float
    hot_size: int
    most: int
    step: int
    zero_share: float
    pause_s: float
    errors: int


def log_size(random: Random, most: int) -> int:
    """Multiples of PAGE, up to `most`: small ones more often, odd ones included."""
    bits = (most // PAGE).bit_length()
    top = 1 << min(random.randrange(bits), random.randrange(bits))
    return min(most, PAGE * random.choice((top, random.randint(1, top))))


class Child:
    """A forked workload. Each flush that returned is a tick. It ends when it is stopped, or when I/O fails."""

    def __init__(self, pid: int, ticks: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._ticks = ticks

    def wait_ticks(self, count: int, until: float) -> int:
        """Wait until `count` flushes returned, or time.monotonic() is `until`, or it ended; returns how many."""
        poll = select.poll()
        poll.register(self._ticks, select.POLLIN)
        seen = 0
        while seen < count and (left := until - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                data = os.read(self._ticks, 1)
                if not data:
                    break
                seen += 1
        return seen

    def stop(self) -> None:
        """Have it end after the operations in progress."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def wait(self, limit_s: float) -> int | None:
        """The exit status; None if it does not end."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(limit_s * 1000):
            return None
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._pidfd)
        os.close(self._ticks)
        return status


@dataclass(frozen=True, slots=True)
class Strike:
    """Kill the node as its flush number `count` returns. holder, worker: pidfds."""

    count: int
    holder: int
    worker: int

    def carry_out(self, journal: Journal) -> None:
        journal.mark("kill")
        for pidfd, number in ((self.holder, signal.SIGSTOP), (self.worker, signal.SIGKILL)):
            with contextlib.suppress(ProcessLookupError):  # somebody was faster
                signal.pidfd_send_signal(pidfd, number)


def start(
    path: Path,
    work: Callable[[Journal, Callable[[], None], threading.Event], None],
    strike: Strike | None = None,
) -> Child:
    """Run `work(journal, tick, stopped)` in a child process, with its journal at `path`."""
    ticks, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    pid = os.fork()
    if pid:
        os.close(write_end)
        return Child(pid, ticks)
    code = 70
    try:
        stopped = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.setswitchinterval(0.0005)  # a flush that returned is to be acted upon at once
        journal = Journal(path)
        numbers = itertools.count(1)

        def tick() -> None:
            if strike and next(numbers) == strike.count:
                strike.carry_out(journal)
            try:
                os.write(write_end, b".")
            except BlockingIOError:
                return  # nobody counts any more

        work(journal, tick, stopped)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def run_threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work(0)` to `work(count - 1)` at once. The main thread stays free for signals."""
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.005)


def device_load(load: DeviceLoad, journal: Journal, tick: Callable[[], None], stopped: threading.Event) -> None:
    """Random writes, reads and flushes of a raw device."""
    fd = os.open(load.device, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    plan = Random(load.seed)
    hot = [plan.randrange(max(1, (load.size - load.hot_size) // PAGE)) * PAGE for _ in range(3)]
    lock = threading.Lock()
    last = load.life * STRIDE

    def version() -> int:
        nonlocal last
        with lock:
            last += 1
            return last

    def work(number: int) -> None:
        random = Random(f"{load.seed} {number}")
        buffer = PageBuffer(_MOST)
        errors = 0
        flushes = load.flusher_gap_s > 0 and number == 0
        flush_share = (1.0 if flushes else 0.0) if load.flusher_gap_s else load.flush_share
        while not stopped.is_set() and errors <= load.errors:
            if flushes:
                time.sleep(random.uniform(0, 2 * load.flusher_gap_s))
            dice = random.random()
            if dice < flush_share:
                operation = journal.begin("f", 0)
            else:
                length = log_size(random, min(_MOST_READ, load.most) if dice > 0.85 else load.most)
                if random.random() < load.hot_share:
                    length = min(length, load.hot_size)
                    offset = (
                        random.choice(hot) + random.randrange((load.hot_size - length) // load.step + 1) * load.step
                    )
                else:
                    offset = random.randrange((load.size - length) // PAGE + 1) * PAGE
                if dice > 0.85:
                    operation = journal.begin("r", 0, offset, length)
                else:
                    stamp = 0 if random.random() < load.zero_share else version()
                    view = buffer.prepared(0, offset, length, stamp)
                    operation = journal.begin("w", 0, offset, length, stamp)
            try:
                if dice < flush_share:
                    os.fsync(fd)
                    journal.end(operation)
                    tick()
                elif dice > 0.85:
                    journal.end(operation, versions(buffer.read(fd, offset, length), offset // PAGE))
                else:
                    done = os.pwrite(fd, view, offset)
                    if done != length:
                        raise OSError(5, f"{done} of {length} bytes")
                    journal.end(operation)
            except OSError as error:
                journal.failed(operation, error)
                errors += 1
            if load.pause_s:
                time.sleep(random.uniform(0, 2 * load.pause_s))

    run_threads(load.threads, work)
    os.close(fd)
