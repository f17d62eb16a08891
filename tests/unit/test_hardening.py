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


def locked(program: str) -> str:
    """As `hardened`; LOCKED is a function: the KiB of a mapping that are locked, by its address (proc_pid_smaps(5))."""
    return hardened(f"""
def LOCKED(where):
    found, size = False, 0
    for line in open("/proc/self/smaps"):
        words = line.split()
        if "-" in words[0]:
            low, high = (int(each, 16) for each in words[0].split("-"))
            found = low <= where < high
        elif found and words[0] == "Locked:":
            size = int(words[1])
    return size

{program}""")


def test_memory_is_locked_as_it_is_touched() -> None:
    """What was mapped before, and what comes later; nothing of it before it is touched."""
    program = f"""
before = mmap.mmap(-1, 8 * {MIB}, mmap.MAP_PRIVATE)
hardening.harden("test")
after = mmap.mmap(-1, 8 * {MIB}, mmap.MAP_PRIVATE)
shared = mmap.mmap(-1, 8 * {MIB})
for each in (before, after, shared):
    there = resident(address(each), 8 * {MIB})
    each[: 4 * {MIB}] = bytes(4 * {MIB})
    print(there, resident(address(each), 8 * {MIB}) // {MIB}, LOCKED(address(each)) >= 4 << 10)
"""
    assert locked(program) == "0 4 True\n0 4 True\n0 4 True"


def test_at_once_it_is_there_as_a_whole() -> None:
    program = f"""
with hardening.at_once():
    before = mmap.mmap(-1, 8 * {MIB}, mmap.MAP_PRIVATE)
hardening.harden("test")
with hardening.at_once():
    whole = mmap.mmap(-1, 8 * {MIB}, mmap.MAP_PRIVATE)
after = mmap.mmap(-1, 8 * {MIB}, mmap.MAP_PRIVATE)
print(*[resident(address(each), 8 * {MIB}) // {MIB} for each in (before, whole, after)], LOCKED(address(whole)) >> 10)
"""
    assert locked(program) == "0 8 0 8"


def test_so_is_what_malloc_hands_out() -> None:
    """From the heap of before, from its growth, and from a mapping of its own."""
    program = f"""
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
hole = libc.malloc(ctypes.c_size_t({MIB} // 2))  # nobody writes to it
keep = libc.malloc(ctypes.c_size_t(4096))
libc.free(ctypes.c_void_p(hole))
hardening.harden("test")
for size in ({MIB} // 2, {MIB}, 16 * {MIB}):
    start = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(start, 1, size)
    print(LOCKED(start) >= size >> 10)
"""
    assert locked(program).split() == ["True"] * 3


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
        ctypes.memset(large[-1], 0, {MIB})  # as the kernel's copy needs it
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
