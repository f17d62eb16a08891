"""The FUSE connection as a descriptor that outlives the process which serves it.

The holder opens /dev/fuse, mounts it, takes the kernel's FUSE_INIT from it and keeps both. Every worker gets the INIT
bytes and gives them to its libfuse (worker/others.py), so each one believes to be the first.

A later worker also asks for the requests that its predecessor had taken and not answered (FUSE_NOTIFY_RESEND). Kernels
before 6.9 cannot do it; `can_resend` says so from the INIT bytes. There they lie in memory that the holder keeps
(worker/taken.py), and the kernel is asked of each whether it still waits for it.

Sources: linux/fuse.h; Documentation/filesystems/fuse.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import select
import struct

from blobfuse_dysk.device.kernel import mountinfo
from blobfuse_dysk.errors import DeviceError

__all__ = [
    "IN_HEADER",
    "MAX_BACKGROUND",
    "OUT_HEADER",
    "RESEND",
    "abort",
    "can_resend",
    "connection",
    "largest_write",
    "mount",
    "open_device",
    "read_init",
    "refuse",
    "request_timeout_s",
    "set_background",
    "size_changed",
    "unmount",
    "wait_aborted",
    "waits_for",
    "without_splicing",
]

# Requests in flight; the kernel's default of 12 caps a disk at 4000 IOPS with 3 ms of service time.
MAX_BACKGROUND = 256
_CONNECTIONS = "/sys/fs/fuse/connections"
_SYSCTL = "/proc/sys/fs/fuse"
_MOST_PAGES = 256
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
IN_HEADER = struct.Struct("<IIQQIIII")
"""Before each request: len, opcode, unique, nodeid, uid, gid, pid, padding."""
OUT_HEADER = struct.Struct("<IiQ")
"""Before each answer: len, error (negative), unique; before each notice: len, its code, 0."""
FORGET, INTERRUPT, BATCH_FORGET = 2, 36, 42
NO_ANSWER = frozenset((FORGET, INTERRUPT, BATCH_FORGET))
"""The requests to which the kernel wants no answer, by opcode."""
_NOTIFY_INVAL_INODE, _NOTIFY_RESEND = 2, 7
RESEND = OUT_HEADER.pack(OUT_HEADER.size, _NOTIFY_RESEND, 0)
"""The notice that asks for the requests which were taken and not answered."""
_OF_INTERRUPT = 1  # in the number of an answer: it is one to the INTERRUPT of that request
_INVAL_INODE = struct.Struct("<Qqq")  # struct fuse_notify_inval_inode_out: ino, off, len
_INIT_IN = struct.Struct("<IIIII")  # major, minor, max_readahead, flags, flags2
_FLAGS_AT, _FLAGS = 12, struct.Struct("<I")  # in it; an older kernel sends no flags2
_FUSE_INIT = 26
_INIT_EXT = 1 << 30  # in flags: flags2 is valid
_HAS_RESEND = 1 << (39 - 32)  # in flags2
_SPLICE = 1 << 7 | 1 << 8 | 1 << 9  # FUSE_SPLICE_WRITE, _MOVE, _READ; in flags
_MOST_INIT = 128 << 10  # the kernel refuses reads with less than 8 KiB of room


def open_device(path: str = "/dev/fuse") -> int:
    """Open a new FUSE connection; raises DeviceError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        remedy = "modprobe fuse" if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) else "run it as root"
        raise DeviceError(f"cannot open {path}: {error.strerror}", remedy=remedy) from None


def mount(fd: int, path: str, source: str, *, read_only: bool) -> None:
    """Mount the connection on the directory `path`; raises DeviceError."""
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | (_MS_RDONLY if read_only else 0)
    data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), os.fsencode(path), b"fuse.dysk", ctypes.c_ulong(flags), data.encode()):
        reason = os.strerror(ctypes.get_errno())
        raise DeviceError(f"cannot mount FUSE on {path}: {reason}", remedy="it takes root (CAP_SYS_ADMIN)")


def unmount(path: str) -> None:
    """Detach the mount at once, whoever still uses it; nothing if there is none (any more)."""
    libc = ctypes.CDLL(None, use_errno=True)
    while libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        pass  # one may lie upon the other


def read_init(fd: int) -> bytes:
    """Take the kernel's first request, which waits from the moment of the mount."""
    init = os.read(fd, _MOST_INIT)
    if IN_HEADER.unpack_from(init)[1] != _FUSE_INIT:
        raise DeviceError("the kernel's first FUSE request is not INIT", remedy="report this as a bug")
    return init


def can_resend(init: bytes) -> bool:
    """Whether this kernel can send a dead worker's requests again (6.9 and later)."""
    if len(init) < IN_HEADER.size + _INIT_IN.size:
        return False
    _, _, _, flags, flags2 = _INIT_IN.unpack_from(init, IN_HEADER.size)
    return bool(flags & _INIT_EXT and flags2 & _HAS_RESEND)


def waits_for(fd: int, unique: int) -> bool:
    """Whether the kernel waits for the answer to this request, which was read from the device. Raises OSError.

    It is told that the request's INTERRUPT, which it need not have sent, was seen. That changes nothing, but fails with
    ENOENT where there is no such request. Source: fs/fuse/dev.c, fuse_dev_do_write(), FUSE_INT_REQ_BIT (Linux 5.8).
    """
    try:
        os.write(fd, OUT_HEADER.pack(OUT_HEADER.size, 0, unique | _OF_INTERRUPT))
    except FileNotFoundError:
        return False
    return True


def refuse(fd: int, unique: int, code: int) -> None:
    """Have a request fail with this errno; nothing if it was answered. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.write(fd, OUT_HEADER.pack(OUT_HEADER.size, -code, unique))


def without_splicing(init: bytes) -> bytes:
    """INIT as a kernel without splice(2) would send it."""
    at = IN_HEADER.size + _FLAGS_AT
    if len(init) < at + _FLAGS.size:
        return init
    (flags,) = _FLAGS.unpack_from(init, at)
    return init[:at] + _FLAGS.pack(flags & ~_SPLICE) + init[at + _FLAGS.size :]


def size_changed(inode: int) -> bytes:
    """The notice that a file has another size: the kernel asks for its attributes when it is asked for them.

    Waits for nothing where the kernel keeps no content of the file (FOPEN_DIRECT_IO).
    Source: fs/fuse/inode.c, fuse_reverse_inval_inode(), for which an offset below 0 means the attributes alone.
    """
    size = OUT_HEADER.size + _INVAL_INODE.size
    return OUT_HEADER.pack(size, _NOTIFY_INVAL_INODE, 0) + _INVAL_INODE.pack(inode, -1, 0)


async def wait_aborted(fd: int) -> None:
    """Return when the connection of this descriptor is aborted. For the worker only: it needs trio.

    Readiness to read says nothing about that. An epoll that asks for no event gets the error alone, and is itself
    readable then. Source: epoll(7); fuse_dev_poll() answers EPOLLERR once the connection is not connected any more.
    """
    import trio

    with select.epoll() as errors_only:
        errors_only.register(fd, 0)
        await trio.lowlevel.wait_readable(errors_only.fileno())


def connection(path: str) -> int | None:
    """The number of the connection mounted on `path`; None if nothing is. Never waits for the worker."""
    found = [each.device for each in mountinfo.mounts() if each.directory == path and each.fstype.startswith("fuse")]
    return int(found[-1].partition(":")[2]) if found else None


def set_background(number: int | None, limit: int = MAX_BACKGROUND) -> list[str]:
    """Let `limit` requests be in flight on a connection; return a warning for each setting that was refused."""
    warnings = []
    for setting in ("max_background", "congestion_threshold"):
        try:
            _write_setting(number, setting, str(limit))
        except OSError as error:
            warnings.append(f"cannot set {setting} of FUSE connection {number} to {limit}: {error.strerror}")
    return warnings


def request_timeout_s() -> float | None:
    """The longest that a request may take without the kernel aborting the connection, with a margin; None: any time.

    Source: Documentation/admin-guide/sysctl/fs.rst, fs.fuse.default_request_timeout and max_request_timeout (Linux 6.14
    and later; seconds, 0 for none).
    """
    limits = []
    for setting in ("default_request_timeout", "max_request_timeout"):
        try:
            with open(f"{_SYSCTL}/{setting}") as file:
                limits.append(int(file.read()))
        except FileNotFoundError:
            continue
    return max(1.0, 0.75 * min(filter(None, limits))) if any(limits) else None


def largest_write() -> int:
    """Bytes of data that the kernel may put into one request.

    Source: FUSE_MAX_MAX_PAGES; Documentation/admin-guide/sysctl/fs.rst, fs.fuse.max_pages_limit (Linux 6.13 and later).
    """
    pages = _MOST_PAGES
    with contextlib.suppress(FileNotFoundError), open(f"{_SYSCTL}/max_pages_limit") as file:
        pages = max(pages, int(file.read()))
    return pages * mmap.PAGESIZE


def abort(number: int) -> None:
    """End a connection: everything that waits in it fails with an error, now and from now on. Raises OSError."""
    _write_setting(number, "abort", "1")


def _write_setting(number: int | None, setting: str, value: str) -> None:
    directory = f"{_CONNECTIONS}/{number}"
    if not os.path.isdir(directory):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"fusectl", _CONNECTIONS.encode(), b"fusectl", ctypes.c_ulong(0), None):
            raise OSError(ctypes.get_errno(), f"mount fusectl: {os.strerror(ctypes.get_errno())}")
    with open(f"{directory}/{setting}", "w") as file:
        file.write(value)
