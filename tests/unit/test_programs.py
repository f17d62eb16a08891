"""Programs that are forked, compared with the same ones executed; in processes that the tests start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = '''
import gc, json, os, signal, sys, time

def main():
    """Says on standard error how it was started."""
    told = os.read(0, 100).decode()
    files = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            files[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # that of the list
    lines = open("/proc/self/status").read().splitlines()
    found = {
        "told": told, "argv": sys.argv, "files": len(files), "environment": dict(os.environ),
        "signals": [  # but for those that are glibc's own, 32 and 33
            int(line.split()[1], 16) & ~(3 << 31) for line in lines if line.startswith(("SigBlk", "SigIgn", "SigCgt"))
        ],
        "command": open("/proc/self/cmdline").read().rstrip("\\0"), "wakeup": signal.set_wakeup_fd(-1),
        "python": [signal.getsignal(number) == signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGUSR1)],
    }
    os.write(2, json.dumps(found).encode())
    return 3

if __name__ == "__main__":
    os._exit(main())
'''
FRAME = """
import gc, json, os, select, signal, socket, sys, threading, time
began = time.time_ns()
sys.path[:0] = [DIRECTORY, ROOT]
import program
from blobfuse_dysk.device.kernel import programs
argv = [sys.executable, "-S", "-P", program.__file__, "--name", "data"]
environment = dict(os.environ)
null = os.open("/dev/null", os.O_RDWR)

def keep():
    programs.keep({(sys.executable, "-S", "-P", program.__file__): program.main}, environment, began)

def run(start=programs.start):
    "What the program says, and its exit status."
    words, errors = os.pipe(), os.pipe()
    os.write(words[1], b"hello")
    pid = start(argv, environment, (words[0], null, errors[1]))
    os.close(errors[1])
    said = b""
    while piece := os.read(errors[0], 65536):
        said += piece
    return said.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def parent(directory: Path, program: str, module: str = PROGRAM) -> Any:
    """Run a program after FRAME that has a module `program`; what it prints as JSON."""
    path = directory / "program.py"
    path.write_text(module)
    before = (path.stat().st_ctime_ns, 0)
    frame = FRAME.replace("DIRECTORY", repr(str(directory))).replace("ROOT", repr(str(ROOT)))
    late = "\nbegan = max(began, os.stat(program.__file__).st_ctime_ns + 20_000_000)\n"
    command = [sys.executable, "-c", frame + late + program, " " * 200]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=directory)
    assert done.returncode == 0, (done.stderr, before)
    return json.loads(done.stdout)


def test_a_fork_is_what_would_have_been_executed(tmp_path: Path) -> None:
    """Signals that the parent deals with, ignores or blocks, descriptors, arguments: all are those of a new program."""
    both = parent(
        tmp_path,
        """
signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell's job in the background ignores it, and what it executes
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
ours, theirs = socket.socketpair()
theirs.setblocking(False)
signal.set_wakeup_fd(theirs.fileno())
executed = run()
keep()
assert programs.fork(argv, environment, (null, null, null)) is not None
forked = run(programs.fork)
kept = signal.getsignal(signal.SIGTERM) != signal.SIG_DFL and not signal.pthread_sigmask(signal.SIG_BLOCK, ())
print(json.dumps([executed, forked, kept, programs.is_fork()]))
""",
    )
    (executed, status), (forked, forked_status), kept, is_fork = both
    assert (status, forked_status, kept, is_fork) == (3, 3, True, False)
    assert json.loads(forked) == json.loads(executed)
    assert json.loads(forked)["files"] == 3
    assert json.loads(forked)["command"].endswith("program.py\0--name\0data")
    assert json.loads(forked)["signals"][0] == 0
    assert json.loads(forked)["wakeup"] == -1


def test_what_the_parent_had_is_never_taken_apart_in_the_child(tmp_path: Path) -> None:
    """Garbage that has a descriptor closes it when it is collected; in the child that number is another file."""
    module = """
import gc, os
def main():
    mine = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    gc.collect()
    for fd in mine:
        os.fstat(fd)
    return 0
"""
    program = """
gc.disable()
keep()
for _ in range(4):
    garbage = [socket.socket()]
    garbage.append(garbage)
garbage = None
print(json.dumps(run(programs.fork)))
"""
    assert parent(tmp_path, program, module) == ["", 0]


@pytest.mark.parametrize(
    ("ends", "status"),
    [("raise OSError('odd')", 1), ("raise SystemExit(4)", 4), ("raise SystemExit('why')", 1), ("raise SystemExit", 0)],
)
def test_however_it_ends_nothing_of_the_parent_goes_on_in_it(tmp_path: Path, ends: str, status: int) -> None:
    said, found = parent(tmp_path, "keep(); print(json.dumps(run(programs.fork)))", f"def main(): {ends}")
    assert found == status
    assert ("OSError: odd" in said) == ("odd" in ends)


def test_what_is_another_program_is_executed(tmp_path: Path) -> None:
    program = """
keep()
for change in ("flags", "path", "environment", "less"):
    odd, other = list(argv), dict(environment)
    if change == "flags":
        odd.remove("-S")
    elif change == "path":
        odd[3] = "/tmp/program.py"
    elif change == "environment":
        other["PYTHONPATH"] = "/tmp"
    else:
        del other["PATH"]
    assert programs.fork(odd, other, (null, null, null)) is None, change
del environment["ODD"]
assert programs.fork(argv, environment, (null, null, null)) is None
environment["ODD"] = "1"
environment.pop("PYTHONPATH", None)
print(json.dumps(programs.fork(argv, environment, (null, null, null)) is not None))
"""
    before = os.environ.get("ODD")
    os.environ["ODD"] = "1"
    try:
        assert parent(tmp_path, program)
    finally:
        del os.environ["ODD"]
        assert before is None


def test_nothing_is_forked_while_there_are_threads(tmp_path: Path) -> None:
    program = """
keep()
end = threading.Event()
thread = threading.Thread(target=end.wait)
thread.start()
during = programs.fork(argv, environment, (null, null, null))
said, status = run()
end.set()
thread.join()
while len(os.listdir("/proc/self/task")) > 1:  # join returns a moment before the kernel's thread has ended
    time.sleep(0.001)
print(json.dumps([during, status, programs.fork(argv, environment, (null, null, null)) is not None]))
"""
    assert parent(tmp_path, program) == [None, 3, True]


@pytest.mark.parametrize("change", ["written", "replaced", "gone", "again"])
def test_what_was_replaced_since_it_was_loaded_is_executed(tmp_path: Path, change: str) -> None:
    """For ever: what was there once more might be half of each."""
    program = f"""
change = {change!r}
keep()
assert programs.is_installed()
path = program.__file__
if change == "written":
    open(path, "a").write("#")
elif change == "replaced":
    os.link(path, path + ".new")
    os.rename(path + ".new", path)
    open(path + ".new", "w").write(open(path).read())
    os.rename(path + ".new", path)
elif change == "gone":
    os.unlink(path)
else:
    os.rename(path, path + ".old")
time.sleep(0.11)
found = programs.is_installed(), programs.fork(argv, environment, (null, null, null))
if change == "again":
    os.rename(path + ".old", path)
    time.sleep(0.11)
    found += (programs.is_installed(),)
print(json.dumps(found))
"""
    assert parent(tmp_path, program)[:2] == [False, None]


def test_what_was_replaced_while_it_was_loaded_is_executed(tmp_path: Path) -> None:
    program = """
began = os.stat(program.__file__).st_ctime_ns + 5_000_000
keep()
late = programs.is_installed()
began += 20_000_000
keep()
print(json.dumps([late, programs.is_installed()]))
"""
    assert parent(tmp_path, program) == [False, True]


def test_a_library_counts_as_well(tmp_path: Path) -> None:
    """Whatever is mapped."""
    program = """
import mmap
library = "library.so"
open(library, "wb").write(bytes(4096))
with open(library, "rb") as file:
    mapping = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
began = time.time_ns() + 20_000_000
keep()
before = programs.is_installed()
os.rename(library, "other.so")
time.sleep(0.11)
print(json.dumps([before, programs.is_installed()]))
"""
    assert parent(tmp_path, program) == [True, False]


RANDOM = """
import os, random

def main():
    os.write(2, str(random.random()).encode())
    return 0
"""


def test_random_numbers_are_the_child_s_own_without_what_modules_register(tmp_path: Path) -> None:
    """The template passes over os.register_at_fork, by which `random` would see to that; see template.py."""
    first, second, ours = parent(
        tmp_path,
        """
import random
keep()
print(json.dumps([run(programs.fork)[0], run(programs.fork)[0], str(random.random())]))
""",
        "import os\nos.register_at_fork = lambda **_: None\n" + RANDOM,
    )
    assert len({first, second, ours}) == 3
