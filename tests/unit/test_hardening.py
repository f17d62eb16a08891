"""What a hardened process has in memory, in one that the test starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import need

MIB = 1 << 20
FRAME = """
import ctypes, mmap
from blobfuse_dysk.device.kernel import hardening

def resident(address, length):
    "Bytes of a mapping that are in memory (mincore(2))."
    pages = (ctypes.c_ubyte * (length // 4096))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), pages) == 0
    return sum(page & 1 for page in pages) * 4096

def address(mapping):
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))

"""


def hardened(program: str) -> str:
    """Run a program after `FRAME`, in a process of its own; returns what it printed."""
    need(os.geteuid() == 0, "locking memory takes root")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", FRAME + program]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_memory_is_there_before_it_is_touched() -> None:
    program = f"""
before = mmap.mmap(-1, 8 * {MIB}, mmap.MAP_PRIVATE)
hardening.harden("test")
after = mmap.mmap(-1, 8 * {MIB}, mmap.MAP_PRIVATE)
with hardening.when_touched():
    slow = mmap.mmap(-1, 8 * {MIB})
last = mmap.mmap(-1, 8 * {MIB}, mmap.MAP_PRIVATE)
print(*[resident(address(each), 8 * {MIB}) // {MIB} for each in (before, after, slow, last)])
"""
    assert hardened(program) == "0 8 0 8"


def test_so_is_what_malloc_hands_out() -> None:
    """From the heap of before, from its growth, and from mappings of its own; what was freed once included."""
    program = f"""
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
libc.mallopt(M_MMAP_THRESHOLD, 32 * {MIB})
holes = [libc.malloc(ctypes.c_size_t({MIB})) for _ in range(4)]  # nobody writes to them
keep = libc.malloc(ctypes.c_size_t(4096))
for hole in holes:
    libc.free(ctypes.c_void_p(hole))
hardening.harden("test")
count = 0
for size in (1 * {MIB}, 3 * {MIB}, 16 * {MIB}, 40 * {MIB}):
    start = libc.malloc(ctypes.c_size_t(size))
    first = -(-start // 4096) * 4096
    length = (start + size) // 4096 * 4096 - first
    count += resident(first, length) == length
print(count)
"""
    assert hardened(program) == "4"


def test_a_process_that_is_not_hardened_stays_so() -> None:
    program = f"""
with hardening.when_touched():
    pass
print(resident(address(after := mmap.mmap(-1, 8 * {MIB}, mmap.MAP_PRIVATE)), 8 * {MIB}))
"""
    assert hardened(program) == "0"


def test_large_buffers_that_were_freed_leave_nothing_behind_once_memory_is_given_back() -> None:
    """A small thing that lives on is allocated after each; some are freed by a thread, and one was larger than all."""
    program = f"""
import threading
threading.stack_size(256 << 10)  # as in a worker
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def own():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) // 1024
def load():
    large = []
    for _ in range(64):
        large.append(libc.malloc(ctypes.c_size_t({MIB})))
        libc.malloc(ctypes.c_size_t(1000))
    for each in large:
        libc.free(ctypes.c_void_p(each))
hardening.harden("test")
libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(8 * {MIB}))))
before = own()
load()
thread = threading.Thread(target=load)
thread.start()
thread.join()
loaded = own()
hardening.give_memory_back()
print(loaded - before > 48, own() - before < 8)
"""
    assert hardened(program).split() == ["True", "True"]


def test_no_core_file_is_made_of_it_or_of_what_it_runs() -> None:
    """Not even where the kernel hands cores to a program, which ignores the limit of a size (core(5))."""
    program = """
import resource, subprocess, sys
hardening.harden("test")
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
print(subprocess.run(["sh", "-c", "ulimit -c"], capture_output=True, text=True).stdout.strip())
"""
    assert hardened(program) == "(0, 0) 0\n0"
