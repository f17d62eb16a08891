"""Memory control groups for tests: a group of the test's own, of either version."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import need
from tests.leaks import is_template

__all__ = ["MemoryGroup", "memory_group"]

# Names of the files, version 1 and 2. Source: Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst
_LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}
_USED = {1: "memory.usage_in_bytes", 2: "memory.current"}


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A group. `words` makes a command line that runs in it, children and daemons included."""

    path: Path
    version: int

    def words(self, *words: str) -> list[str]:
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.path), *words]

    def limit(self, size: int) -> None:
        """Bytes that all of it may use, page cache included. What is beyond is reclaimed, as far as it can be."""
        (self.path / _LIMIT[self.version]).write_text(str(size))

    @property
    def used(self) -> int:
        return int((self.path / _USED[self.version]).read_text())


def _top() -> tuple[Path, int] | None:
    """Where the memory controller's groups are, and the version."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind, path = fields[fields.index("-") + 1], Path(fields[4])
        if kind == "cgroup" and "memory" in fields[-1].split(","):
            return path, 1
        if kind == "cgroup2" and "memory" in (path / "cgroup.subtree_control").read_text().split():
            return path, 2
    return None


@contextlib.contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A group without a limit yet. At the end it must be empty, or become so."""
    top = _top()
    need(top, "no memory control group can be made here")
    assert top
    path = top[0] / f"dysk-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        need(False, f"no memory control group can be made here: {error.strerror}")
    try:
        yield MemoryGroup(path, top[1])
    finally:
        deadline = time.monotonic() + 10
        while True:
            for pid in (path / "cgroup.procs").read_text().split():  # a template waits there for the next attach
                with contextlib.suppress(OSError):
                    if is_template(Path(f"/proc/{pid}/cmdline").read_bytes()):
                        os.kill(int(pid), signal.SIGKILL)
            try:
                path.rmdir()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
