"""A workload on files: paged content, fsync as the barrier of each file, names that come, change and go.

Every file is a space of its own. Its writes are journalled like those of a device, and an fsync that returned
guarantees what was written to that file before. Names: a file is born as `new-N`, may be renamed to `N`, may be
removed; each such step is followed by an fsync of the directory, and entered as begun and as done.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from blobfuse_dysk.testing.pages import PAGE, versions
from tools.soaklib.history import Finding, History
from tools.soaklib.history import Place as PagePlace
from tools.soaklib.journal import Journal
from tools.soaklib.pages import PageBuffer
from tools.soaklib.workload import STRIDE, log_size, run_threads

__all__ = ["FileLoad", "check_names", "file_load", "read_files"]

_MOST = 128 << 10  # bytes of one write
_SIZE = 1 << 20  # bytes of one file
_FILES = 6  # of one thread, open at one time


@dataclass(frozen=True, slots=True)
class FileLoad:
    """life: from 1. sync_share: of all operations."""

    directory: Path
    seed: str
    life: int
    threads: int
    sync_share: float


class _Files:
    """The files of one thread. Each method is one operation; OSError ends the thread."""

    def __init__(self, load: FileLoad, number: int, journal: Journal, tick: Callable[[], None]) -> None:
        self._load = load
        self._journal = journal
        self._tick = tick
        self._random = Random(f"{load.seed} {number}")
        self._buffer = PageBuffer(_MOST)
        self._space = load.life * 1000 + number * 100
        self._version = load.life * STRIDE + number * (STRIDE >> 3)
        self._open: dict[int, int] = {}  # space -> descriptor
        self._directory = os.open(load.directory, os.O_RDONLY | os.O_DIRECTORY)

    def step(self) -> None:
        random = self._random
        dice = random.random()
        if not self._open or (dice < 0.05 and len(self._open) < _FILES):
            self._create()
            return
        space = random.choice(list(self._open))
        if dice < self._load.sync_share:
            self._sync(space)
        elif dice > 0.97:
            self._rename(space)
        elif dice > 0.95:
            self._remove(space)
        elif dice > 0.85:
            self._read(space)
        else:
            self._write(space)

    def _guarded(self, work: Callable[[], None], kind: str, *fields: int) -> None:
        operation = self._journal.begin(kind, *fields)
        try:
            work()
        except OSError as error:
            self._journal.failed(operation, error)
            raise
        self._journal.end(operation)

    def _named(self, event: str, space: int, work: Callable[[], None]) -> None:
        self._journal.name(event, space)
        work()
        os.fsync(self._directory)
        self._journal.name(f"={event}", space)

    def _create(self) -> None:
        self._space += 1
        space, flags = self._space, os.O_RDWR | os.O_CREAT | os.O_EXCL

        def create() -> None:
            self._open[space] = os.open(f"new-{space}", flags, dir_fd=self._directory)
            os.fsync(self._open[space])

        self._named("born", space, create)

    def _write(self, space: int) -> None:
        length = log_size(self._random, _MOST)
        offset = self._random.randrange((_SIZE - length) // PAGE + 1) * PAGE
        if self._random.random() < 0.5:
            length, offset = min(length, 8192), offset % 65536
        self._version += 1
        view = self._buffer.prepared(space, offset, length, self._version)

        def write() -> None:
            if os.pwrite(self._open[space], view, offset) != length:
                raise OSError(5, "a short write")

        self._guarded(write, "w", space, offset, length, self._version)

    def _read(self, space: int) -> None:
        fd = self._open[space]
        length = min(64 << 10, os.fstat(fd).st_size)
        if not length:
            return
        operation = self._journal.begin("r", space, 0, length)
        try:
            data = self._buffer.read(fd, 0, length)
        except OSError as error:
            self._journal.failed(operation, error)
            raise
        self._journal.end(operation, versions(data, space=space))

    def _sync(self, space: int) -> None:
        fd = self._open[space]
        self._guarded(lambda: (os.fdatasync if self._random.random() < 0.5 else os.fsync)(fd), "f", space)
        self._tick()
        if self._random.random() < 0.3:  # so that the next read comes from the disk
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _rename(self, space: int) -> None:
        try:
            os.stat(f"new-{space}", dir_fd=self._directory)
        except FileNotFoundError:
            return
        directory = self._directory
        self._sync(space)
        self._named(
            "renamed",
            space,
            lambda: os.rename(f"new-{space}", f"{space}", src_dir_fd=directory, dst_dir_fd=directory),
        )

    def _remove(self, space: int) -> None:
        def remove() -> None:
            for name in (f"new-{space}", f"{space}"):
                try:
                    os.unlink(name, dir_fd=self._directory)
                except FileNotFoundError:
                    continue

        self._named("gone", space, remove)
        os.close(self._open.pop(space))


def file_load(load: FileLoad, journal: Journal, tick: Callable[[], None], stopped: threading.Event) -> None:
    """Work on files until stopped, or until the first error of each thread."""

    def work(number: int) -> None:
        try:
            files = _Files(load, number, journal, tick)
            while not stopped.is_set():
                files.step()
                time.sleep(0)
        except OSError as error:
            journal.failed(journal.begin("f", -1), error)

    run_threads(load.threads, work)


def read_files(directory: Path) -> tuple[dict[PagePlace, int], dict[int, list[str]]]:
    """What stands in all files, and the names that each file has."""
    found: dict[PagePlace, int] = {}
    names: dict[int, list[str]] = {}
    for path in directory.iterdir():
        if not path.is_file():
            continue
        space = int(path.name.removeprefix("new-"))
        names.setdefault(space, []).append(path.name)
        for page, version in enumerate(versions(path.read_bytes(), space=space)):
            if version:
                found[(space, page)] = version
    return found, names


def check_names(history: History, names: dict[int, list[str]]) -> list[Finding]:
    """Compare the names that are there with the steps that were done, or may have been, at the crash."""
    findings = []
    for space, events in history.names.items():
        present = names.get(space, [])
        if "=gone" in events and present:
            findings.append(Finding("lost", f"file {space} was removed durably and is back as {present}"))
        if "=born" in events and "gone" not in events and not present:
            findings.append(Finding("lost", f"file {space} was created durably and is not there"))
        if "=renamed" in events and "gone" not in events and present != [f"{space}"]:
            findings.append(Finding("lost", f"file {space} was renamed durably and has the names {present}"))
        if len(present) > 1:
            findings.append(Finding("check", f"file {space} has the names {present}"))
    return findings
