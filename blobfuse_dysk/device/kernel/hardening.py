"""Keeps a process that serves a block device out of the ways a machine short of memory kills or blocks it.

Dirty pages are written back through this process, so it must not wait for memory that only its own progress can free:
its pages stay in memory (mlockall), its allocations do not start writing to disks (PR_SET_IO_FLUSHER), and the OOM
killer looks elsewhere (oom_score_adj). At the end of a shutdown systemd kills every process and only then unmounts what
is still mounted; it spares those whose command line begins with @. Sources: mlockall(2), PR_SET_IO_FLUSHER(2const),
proc_pid_oom_score_adj(5), https://systemd.io/ROOT_STORAGE_DAEMONS. (That page reserves the @ for daemons of an initrd,
because a process that is spared could keep the root file system busy. Holder and worker have no file there open for
writing, so they do not.)

It has keys in its memory. So no core file is made of it, nor of the programs that it runs, of which one prints a token
(RLIMIT_CORE), and only who may trace every process may look into it (PR_SET_DUMPABLE). The first alone does not do:
where cores go to a program, that limit does not count. Sources: core(5), PR_SET_DUMPABLE(2const).

What such a process has is locked in memory as it is touched, page by page: what was mapped before `harden`, and what is
mapped afterwards. That is not enough for what the kernel copies a request into. If a page of that buffer is not in
memory yet, and the worker is being killed, the copy fails. Then the request fails with EIO: it is not sent again to the
next worker. So a buffer for requests is written to, as a whole, before the kernel copies the first request into it
(device/worker/channel.py), and so is a slot of memory that the holder keeps (worker/taken.py). What the kernel copies
answers out of has been written to anyway. Nothing else is needed at once, and most of it never: stacks of threads, what
the heap grows by, libfuse's buffers, into which nothing comes from the device (worker/others.py). To have all of it
there cost a worker 3 MiB. (What is not to be swapped out, and is never touched here, is mapped `at_once`; memfd.py.)
The first touch of a page is an allocation like any other: it waits for no disk (PR_SET_IO_FLUSHER), and the page stays.

glibc keeps what was freed, with small things that live on among it. What is locked cannot be given back page by page
(MADV_DONTNEED refuses it), and a mapping of its own for each large buffer costs more than all else that is done for its
request: 256 pages to be cleared. So buffers come from the heap, threads share one, and once a load is over
`give_memory_back` unlocks the heap, has its unused pages given back, and locks what is left. What malloc() hands out of
it later comes in as it is touched.
Sources: mallopt(3), malloc_trim(3), mlock(2), mlockall(2), madvise(2).

A process that was forked with its program loaded (programs.py) shares what it inherits until it writes to it, and so
to lock all of it at once would copy it. What was inherited is in memory all the same, since the template keeps it there
(`stay`) until it ends, and a child has locked it by then; only the copy of a page is made when it is first written to.
Sources: fork(2), mm/gup.c in the kernel, populate_vma_page_range().
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource

from blobfuse_dysk.device.kernel import commandline

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["at_once", "give_memory_back", "harden", "stay"]

_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_IO_FLUSHER = 57
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_OWN_MAPPING = (1 << 20) + 2048  # bytes: more than a request's data
_KEPT = 256 << 20  # bytes that may be free at the end of the heap until the load is over
_MLOCK_ONFAULT = 1
_CAP_IPC_LOCK = 14
_is_locked = False  # whether what is mapped, and will be, is locked as it is touched


def harden(title: str) -> list[str]:
    """Do all of it for this process and name it `title` (15 bytes count); return a warning for each that failed."""
    global _is_locked
    _is_locked = False  # a process that was forked does not have its parent's locks
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, title.encode()[:15], 0, 0, 0)
    warnings = []
    commandline.mark()
    _keep_heap(libc)
    if not _has_capability(_CAP_IPC_LOCK):
        # Without it, memory beyond RLIMIT_MEMLOCK could not be had at all once future pages are locked.
        warnings.append("memory is not locked: CAP_IPC_LOCK is missing")
    elif libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        warnings.append(f"memory is not locked: mlockall: {os.strerror(ctypes.get_errno())}")
    else:
        _is_locked = True
    if libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0):
        warnings.append(f"allocations may wait for this disk: PR_SET_IO_FLUSHER: {os.strerror(ctypes.get_errno())}")
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")
    except OSError as error:
        warnings.append(f"the OOM killer may choose this process: oom_score_adj: {error.strerror}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    return warnings


def stay() -> None:
    """Keep in memory what this process has, and gets, page by page as it is touched; nothing without CAP_IPC_LOCK."""
    ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """What is mapped within comes into memory, and stays, as a whole, before it is touched.

    Nothing is changed in a process that `harden` has not made otherwise.
    """
    if not _is_locked:
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mlockall(_MCL_FUTURE)
    try:
        yield
    finally:
        libc.mlockall(_MCL_FUTURE | _MCL_ONFAULT)


def give_memory_back() -> None:
    """Give the kernel what the heap has and does not use; takes some milliseconds. See the module's text."""
    libc = ctypes.CDLL(None)
    if _is_locked:
        libc.munlock(*_heap(libc))
    libc.malloc_trim(ctypes.c_size_t(0))
    if _is_locked:
        libc.mlock2(*_heap(libc), ctypes.c_uint(_MLOCK_ONFAULT))


def _keep_heap(libc: ctypes.CDLL) -> None:
    """Have malloc() take what requests carry from one heap, and keep it while there is a load. Source: mallopt(3)."""
    libc.mallopt(_M_MMAP_THRESHOLD, ctypes.c_int(_OWN_MAPPING))
    libc.mallopt(_M_TRIM_THRESHOLD, ctypes.c_int(_KEPT))
    libc.mallopt(_M_ARENA_MAX, ctypes.c_int(1))


def _heap(libc: ctypes.CDLL) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    """Where it begins, and its bytes. Source: proc_pid_stat(5), field 47; sbrk(2)."""
    start = commandline.own_stat(47)
    libc.sbrk.restype = ctypes.c_void_p
    end = libc.sbrk(ctypes.c_ssize_t(0)) or 0
    return ctypes.c_void_p(start), ctypes.c_size_t(end - start if 0 < start < end else 0)


def _has_capability(number: int) -> bool:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False
