"""A copy of the tree in which tests run as if it were the tree itself, and from which nothing comes back.

The tests run in a mount and a process namespace of their own, where the copy is mounted over the tree: whatever finds
the project by a path of it (the editable install, console scripts, a worker that a holder starts) finds the copy. When
the first process of the namespace ends, the kernel kills what is left and takes the mounts down. /run is empty there,
and the mount helpers in /sbin are those of this tree's environment.

Source: unshare(1), pid_namespaces(7), mount_namespaces(7).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tools.mutatelib.mutants import SUFFIX, Mutant

__all__ = ["Place", "Run"]

_SHARED = (".venv", ".cache")  # too large to copy, and nothing in them is the project's own
_LEFT_OUT = (*_SHARED, ".git", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist", f"*{SUFFIX}")
_MOST_KIB = 4 << 20  # memory of one process: a loop without an end that collects something would take the machine's
_GRACE_S = 30.0  # for the fixtures of tests that are stopped
_FIRST_MTIME = 1_000_000_000  # seconds since the epoch; no file of the tree is as old

# Bash stays as the first process: it reaps what tests orphan. The copy's own mounts come first, and then go with it.
_SETUP = """
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p -m 1777 /run/lock /run/postgresql
for name in {shared}; do mount --rbind "{root}/$name" "{tree}/$name"; done
sbin=$(readlink -f /sbin)
mkdir -p /run/mutate/upper /run/mutate/work
for name in mount.dysk umount.dysk; do ln -s "{root}/.venv/bin/$name" /run/mutate/upper/; done
mount -t overlay overlay -o "lowerdir=$sbin,upperdir=/run/mutate/upper,workdir=/run/mutate/work" "$sbin"
mount --rbind "{tree}" "{root}"
cd "{root}"
ulimit -d {most_kib}
set +e
"$@"
exit $?
"""
_DETACH = """
losetup -n -l -O NAME,BACK-FILE | while read -r name file; do
    case $file in /run/dyskt-*) losetup -d "$name" ;; esac
done
ls -d /dev/dyskt-* 2>/dev/null | while read -r directory; do
    if [ -d "/run/${directory#/dev/}" ]; then rm -rf "$directory"; fi
done
"""


@dataclass(frozen=True, slots=True)
class Run:
    """How a command ended. code: None if it was stopped for the time it took. output: stdout and stderr."""

    code: int | None
    output: str
    seconds: float


class Place:
    """One copy of the tree. One command at a time; once `stop` is set, by anybody, it ends and no other begins."""

    def __init__(self, root: Path, directory: Path, stop: threading.Event) -> None:
        """Copies the tree at `root` into `directory`, which is made."""
        self._root = root.resolve()
        self._tree = directory / "tree"
        self._tmp = directory / "t"  # short: names of sockets lie below
        self._mutations = 0
        self._stop = stop
        shutil.copytree(self._root, self._tree, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        self._shared = [name for name in _SHARED if (self._root / name).exists()]
        for name in self._shared:
            (self._tree / name).mkdir()

    def run(self, command: list[str], limit_s: float, mutant: Mutant | None = None) -> Run:
        """Run a command at the tree's own path, in the copy, with a mutant's lines in it. Raises InterruptedError."""
        if mutant is None:
            return self._run(command, limit_s)
        target = self._tree / mutant.file
        original = self._root / mutant.file
        try:
            target.write_text(mutant.mutated)
            # Bytecode counts as current while the source's size and time, in seconds, are what they were.
            self._mutations += 1
            os.utime(target, (_FIRST_MTIME + self._mutations,) * 2)
            return self._run(command, limit_s)
        finally:
            target.write_text(mutant.text)
            shutil.copystat(original, target)

    def _run(self, command: list[str], limit_s: float) -> Run:
        shutil.rmtree(self._tmp, ignore_errors=True)
        self._tmp.mkdir()
        shutil.rmtree(self._tree / ".hypothesis", ignore_errors=True)
        shared = shlex.join(self._shared)
        setup = _SETUP.format(root=self._root, tree=self._tree, shared=shared, most_kib=_MOST_KIB)
        words = ["setpriv", "--pdeathsig", "KILL"]
        words += ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
        words += ["bash", "-c", setup, "mutate", *command]
        # CI: what cannot be tested here fails in place of being skipped, and hypothesis draws the same each time.
        environment = {**os.environ, "TMPDIR": str(self._tmp), "CI": "true"}
        for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):  # without bytecode each run compiles everything
            environment.pop(name, None)
        output = self._tmp.with_name("output")
        started = time.monotonic()
        with (
            output.open("wb") as out,
            subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            ) as process,
        ):
            code: int | None = None
            try:
                code = self._wait(process, started + limit_s)
            finally:
                if process.poll() is None:
                    self._take_down(process)
        if self._stop.is_set():
            raise InterruptedError
        return Run(code, output.read_text(errors="replace"), time.monotonic() - started)

    def _wait(self, process: subprocess.Popen[bytes], until: float) -> int | None:
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(min(left, 0.2))
        return None

    def _take_down(self, unshare: subprocess.Popen[bytes]) -> None:
        """Let the command end as by Ctrl-C, for its fixtures' sake; then end the whole namespace."""
        first = _children(unshare.pid)
        for shell in first:
            for pid in _children(shell):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            unshare.wait(_GRACE_S)
        if unshare.poll() is None:
            for shell in first:
                into = ["nsenter", f"--target={shell}", "--mount", "--pid"]
                subprocess.run([*into, "bash", "-c", _DETACH], capture_output=True, timeout=_GRACE_S, check=False)
            unshare.kill()


def _children(pid: int) -> list[int]:
    """Source: proc_tid_children(5)."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
