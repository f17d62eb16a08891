"""device/kernel/memfd.py: what is in it stays as it is, and stays in memory."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobfuse_dysk.device.kernel import memfd
from tests.conftest import need

DATA = b"secret" * 3000


@pytest.fixture
def fd() -> Iterator[int]:
    fd = memfd.sealed("dysk-config", DATA)
    yield fd
    os.close(fd)


def test_nobody_who_gets_it_changes_it(fd: int) -> None:
    for change in (
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.ftruncate(fd, 0),
        lambda: os.ftruncate(fd, 1 << 20),
        lambda: mmap.mmap(fd, len(DATA)),
        lambda: os.pwrite(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), b"x", 0),
    ):
        with pytest.raises(PermissionError):
            change()
    assert os.pread(fd, 1 << 20, 0) == DATA
    assert not os.get_inheritable(fd)


def test_it_is_locked_for_as_long_as_that_is_wanted(fd: int) -> None:
    need(os.geteuid() == 0, "locking memory takes root")
    assert locked_kib() == 0
    mapping = memfd.locked(fd)
    assert mapping and locked_kib() == 20
    mapping.close()
    assert locked_kib() == 0


def test_what_cannot_be_locked_is_no_error() -> None:
    """A worker of an older version hands over one that is not sealed; a wrong one must not end the holder."""
    empty = os.memfd_create("x")
    read_end, write_end = os.pipe()
    assert memfd.locked(empty) is None and memfd.locked(read_end) is None
    os.write(empty, b"config")
    assert memfd.locked(empty) is not None
    for fd in (empty, read_end, write_end):
        os.close(fd)


def test_what_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(OSError):
        memfd.sealed("x", b"data")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def refuse(*arguments: object) -> None:
    raise OSError(errno.EINVAL, "no seals")


def locked_kib() -> int:
    """How much of the mappings of such memfds is locked. Source: proc_pid_smaps(5)."""
    found = re.findall(r"memfd:dysk-config.*?^Locked:\s+(\d+) kB", Path("/proc/self/smaps").read_text(), re.S | re.M)
    return sum(map(int, found))
