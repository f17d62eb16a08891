"""Loop devices: finding a free one, putting a file behind it, its queue, its partitions, letting it go.

Source: linux/loop.h, loop(4), Documentation/block/queue-sysfs.rst.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
import sys
import time

from blobfuse_dysk.device.kernel import mountinfo
from blobfuse_dysk.errors import DeviceError

__all__ = [
    "backing_file",
    "bound_to",
    "clear",
    "configure",
    "ensure_partition_nodes",
    "follow_size",
    "has_behind",
    "is_read_only",
    "make_partition_nodes",
    "partitions",
    "set_read_only",
    "tune",
]

_CONTROL = "/dev/loop-control"
_SYSFS = "/sys/block"
_DEV = "/dev"
_LOOP_CLR_FD, _LOOP_GET_STATUS64, _LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C01, 0x4C05, 0x4C0A, 0x4C82
_LOOP_SET_CAPACITY = 0x4C07
_BLKROSET, _BLKROGET, _BLKRRPART = 0x125D, 0x125E, 0x125F  # linux/fs.h
_BLKPG, _DEL_PARTITION = 0x1269, 2
# linux/blkpg.h: struct blkpg_ioctl_arg: op, flags, datalen, data; struct blkpg_partition: start, length, pno, names
_BLKPG_ARGUMENT, _BLKPG_PARTITION = struct.Struct("=iii4xQ"), struct.Struct("=qqi128x4x")
_READ_ONLY, _AUTOCLEAR, _PARTSCAN, _DIRECT_IO = 1, 4, 8, 16
# struct loop_config: fd, block_size; struct loop_info64: device, inode, rdevice, offset, sizelimit, number,
# encrypt_type, encrypt_key_size, flags, file_name, crypt_name, encrypt_key, init; reserved
_CONFIG = struct.Struct("=II" + "QQQQQIIII64s64s32s16x" + "64x")
_TRIES = 64  # of GET_FREE and CONFIGURE: others take devices at the same time
_READ_AHEAD_KB = 4096
_MAX_SECTORS_KB = 1024  # as much as one FUSE request takes; of the driver's own 1280 every second one is a small rest
_FOLLOW_S = 10.0
_NUMBER = re.compile(r"(?:/dev/)?loop(\d+)\Z")


def configure(
    fd: int, *, block_size: int, read_only: bool, partscan: bool, autoclear: bool, label: str
) -> tuple[str, int]:
    """Put the file `fd` behind a free loop device with direct I/O; return the device's path and an open descriptor.

    With autoclear the device lets the file go when its last descriptor is closed, so keep the returned one until
    somebody else has the device open. label: what LOOP_GET_STATUS shows as the file's name.
    Raises DeviceError.
    """
    flags = _DIRECT_IO
    flags |= _READ_ONLY if read_only else 0
    flags |= _PARTSCAN if partscan else 0
    flags |= _AUTOCLEAR if autoclear else 0
    config = _CONFIG.pack(fd, block_size, *[0] * 8, flags, label.encode()[:63], b"", b"")
    control = _open_control()
    try:
        for attempt in range(_TRIES):
            device = f"/dev/loop{_get_free(control)}"
            loop = _open_node(device, os.O_RDONLY if read_only else os.O_RDWR)
            try:
                fcntl.ioctl(loop, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(loop)
                if error.errno != errno.EBUSY:
                    remedy = "the loop driver needs Linux 5.8 or later" if error.errno == errno.EINVAL else None
                    raise DeviceError(f"cannot set up {device}: {error.strerror}", remedy=remedy) from None
            else:
                if not read_only:
                    set_read_only(loop, False)
                if _forget_partitions(loop, device, rescan=partscan):
                    return device, loop
                os.close(loop)
                clear(device)
            time.sleep(0.001 * attempt)  # somebody else took it; the next GET_FREE names another one
    finally:
        os.close(control)
    raise DeviceError(f"no loop device could be had in {_TRIES} tries", remedy="losetup -l shows who has them")


def set_read_only(fd: int, read_only: bool) -> None:
    """Have a device refuse writes, or take them again. Raises OSError.

    It stays so when the device lets its file go, and is then so for whoever is given that device next.
    Source: block/ioctl.c, blkdev_roset(): the flag is the block device's, not the disk's that LOOP_CONFIGURE sets.
    """
    fcntl.ioctl(fd, _BLKROSET, struct.pack("=i", read_only))


def is_read_only(fd: int) -> bool:
    """Whether a device refuses writes. Raises OSError."""
    flag = bytearray(4)
    fcntl.ioctl(fd, _BLKROGET, flag)
    return bool(struct.unpack("=i", flag)[0])


def clear(device: str) -> bool:
    """Let the file behind the device go, or, while others have the device open, mark it to do so on their last close.

    False if it had no file. May wait for what is still to be written to the device. Raises DeviceError.

    It always is the last close, by us or by others, that lets go. To its only opener LOOP_CLR_FD would cut the device
    off at once, before the close that writes the page cache out: what a program wrote without fsync and left when it
    closed the device beside us would be lost. So we have it open twice. Source: drivers/block/loop.c, loop_clr_fd().
    Partitions that are not in use go with it: the driver takes them along only where it was told to look for them.
    """
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(2):
                fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DeviceError(f"cannot open {device}: {error.strerror}") from None
        _delete_partitions(fd, device)
        try:
            fcntl.ioctl(fd, _LOOP_CLR_FD)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise DeviceError(f"cannot detach {device} from its file: {error.strerror}") from None
            return False
    return True


def follow_size(device: str, path: str, size: int) -> None:
    """Give the device the size of its file `path`, once the kernel knows it to be `size`. Raises DeviceError.

    The driver takes what the file's inode says (before Linux 6.18), and FUSE reads nothing behind that: a device that
    is larger answers with I/O errors there. The inode's size is as old as the last answer about attributes that the
    kernel took; it passes over each that crosses a write's, although it shows stat(2) what it says. Seeking to the
    end has it ask again if need be, and tells what the inode has.
    Source: drivers/block/loop.c, loop_set_capacity(); fs/fuse/file.c, fuse_file_llseek() and fuse_direct_IO();
    fs/fuse/inode.c, fuse_change_attributes_i().
    """
    try:
        with open(path, "rb", buffering=0) as file:
            deadline = time.monotonic() + _FOLLOW_S
            while (found := file.seek(0, os.SEEK_END)) < size:
                if time.monotonic() > deadline:
                    raise DeviceError(f"the kernel takes {path} for {found} bytes still", remedy="try again")
                time.sleep(0.001)
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_SET_CAPACITY)
        finally:
            os.close(fd)
    except OSError as error:
        raise DeviceError(f"cannot give {device} the size of its file: {error.strerror}") from None


def backing_file(device: str) -> str | None:
    """The path of the file behind a loop device (`/disk` once the file's mount is detached); None if it has none."""
    match = _NUMBER.match(device)
    return _read(f"{_SYSFS}/loop{match[1]}/loop/backing_file") if match else None


def bound_to(path: str, device: str | None = None, connection: int | None = None) -> str | None:
    """The loop device that has the file `path` behind it, by the kernel's own list; None if there is none.

    device: the one that it was put on, if that is known. Then it is also found once the file's mount is detached, when
    the kernel shows no more of the path than the part inside the mount. connection: the number of that mount's FUSE
    connection. Then it is also found by who attached in another mount namespace, with another root, whose path for the
    same file is another one (a chroot, a container); and what has the same path there, but is another file, is not.
    """
    if device and (shown := backing_file(device)):
        if shown in (path, f"/{os.path.basename(path)}"):
            return device
        if connection is not None and _device_behind(device) == os.makedev(0, connection):
            return device
    for name in os.listdir(_SYSFS):
        same = name.startswith("loop") and _read(f"{_SYSFS}/{name}/loop/backing_file") == path
        if same and (connection is None or _device_behind(f"/dev/{name}") == os.makedev(0, connection)):
            return f"/dev/{name}"
    return None


def has_behind(device: str, connection: int | None) -> bool:
    """Whether a file is behind the device, and, if `connection` is known, one of that FUSE connection's mount."""
    if backing_file(device) is None:
        return False
    return connection is None or _device_behind(device) == os.makedev(0, connection)


def _device_behind(device: str) -> int | None:
    """The number of the file system that has the file behind a loop device; None if it has none."""
    info = bytearray(_CONFIG.size)  # more than struct loop_info64 takes; its first field is lo_device
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_GET_STATUS64, info)
        finally:
            os.close(fd)
    except OSError:
        return None
    return int.from_bytes(info[:8], sys.byteorder)


def tune(device: str, *, read_ahead_kb: int = _READ_AHEAD_KB) -> list[str]:
    """Set the device's queue for a disk behind a network; return a warning for each setting that was refused.

    No scheduler, since order means nothing there; requests that FUSE need not split, and more read-ahead, a multiple of
    them; no discard, which FUSE here could not carry out.
    """
    warnings = []
    queue = f"{_SYSFS}/{os.path.basename(device)}/queue"
    settings = {
        "scheduler": "none",
        "max_sectors_kb": str(min(_MAX_SECTORS_KB, int(_read(f"{queue}/max_hw_sectors_kb") or _MAX_SECTORS_KB))),
        "read_ahead_kb": str(read_ahead_kb),
        "discard_max_bytes": "0",
    }
    for setting, value in settings.items():
        present = _read(f"{queue}/{setting}")
        if present is None or present == value or f"[{value}]" in present:
            continue  # every write to a queue's settings freezes it for some milliseconds
        try:
            with open(f"{queue}/{setting}", "w") as file:
                file.write(value)
        except OSError as error:
            warnings.append(f"cannot set {setting} of {device} to {value}: {error.strerror}")
    return warnings


def partitions(device: str) -> list[str]:
    """The device's partitions that the kernel knows, as /dev/loopNpM, by number."""
    name = os.path.basename(device)
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(f"{_SYSFS}/{name}"):
            match = re.fullmatch(rf"{name}p(\d+)", entry)
            if match:
                found.append((int(match[1]), f"/dev/{entry}"))
    return [path for _, path in sorted(found)]


def _forget_partitions(fd: int, device: str, *, rescan: bool) -> bool:
    """Whether a device that has just got its file has no partitions of the file before; they are made to go.

    The driver keeps them when it lets a file go and when it takes one, unless it is to look for partitions. They would
    lie somewhere in the new disk, and whoever uses them would write there. rescan: the device's own are there, too.
    False if one of them is in use, which is for a moment only: somebody looks at it. Source: drivers/block/loop.c,
    __loop_clr_fd(), loop_configure(); block/partitions/core.c, bdev_disk_changed().
    """
    if not partitions(device):
        return True
    if not rescan:
        return _delete_partitions(fd, device)
    try:
        fcntl.ioctl(fd, _BLKRRPART)
    except OSError:
        return False
    return True


def _delete_partitions(fd: int, device: str) -> bool:
    """Have the kernel forget all of the device's partitions; False if one is in use."""
    done = True
    for path in partitions(device):
        partition = array.array("B", _BLKPG_PARTITION.pack(0, 0, int(path.rpartition("p")[2])))
        address, size = partition.buffer_info()
        try:
            fcntl.ioctl(fd, _BLKPG, _BLKPG_ARGUMENT.pack(_DEL_PARTITION, 0, size, address))
        except OSError as error:
            done = done and error.errno == errno.ENXIO  # somebody else was faster
    return done


def ensure_partition_nodes(device: str) -> None:
    """Make the device nodes of partitions where nobody else does (no devtmpfs and no udev, as in containers).

    A kernel that was built without the formats of partition tables (as for small virtual machines) finds no partition
    by itself: partx(8) reads the table and tells it. Both forget them when the device lets its file go.
    """
    if not partitions(device):
        _tell_partitions(device)
    make_partition_nodes(device)


def make_partition_nodes(device: str) -> None:
    """Have the nodes that the kernel's partitions have, with their numbers, and no others. Waits for no I/O.

    A number is another device's as soon as its partition is gone, so a node that stayed would name a wrong disk.
    devtmpfs makes and takes away its own: one that we made a moment earlier it would leave behind.
    The nodes are read before sysfs is: the kernel has a partition in sysfs while it has a node in devtmpfs, so what was
    a node first and no partition then is of one that is gone, not of one that just came. Should one come between that
    look and the removal, its node is made again. What cannot be done is left out.
    Source: drivers/base/core.c, device_add(), device_del().
    """
    nodes = _partition_nodes(device)
    known = _partition_numbers(device)
    wrong = {path for path, number in nodes.items() if number != known.get(path)}  # devtmpfs could make none there
    for path in wrong:
        with contextlib.suppress(OSError):
            os.unlink(path)
    by_kernel = any(mount.directory == _DEV and mount.fstype == "devtmpfs" for mount in mountinfo.mounts())
    for path, number in _partition_numbers(device).items():
        with contextlib.suppress(OSError):
            if path in wrong or not by_kernel:
                _make_node(path, number)


def _partition_nodes(device: str) -> dict[str, str]:
    """The block devices' nodes that are named as the device's partitions: {path: "major:minor"}."""
    name = os.path.basename(device)
    found = {}
    with contextlib.suppress(OSError):
        for entry in os.listdir(_DEV):
            number = _node_number(f"{_DEV}/{entry}") if re.fullmatch(rf"{name}p\d+", entry) else None
            if number:
                found[f"{_DEV}/{entry}"] = number
    return found


def _partition_numbers(device: str) -> dict[str, str]:
    """The partitions that the kernel knows: {path: "major:minor"}."""
    name = os.path.basename(device)
    numbers = {path: _read(f"{_SYSFS}/{name}/{os.path.basename(path)}/dev") for path in partitions(device)}
    return {path: number for path, number in numbers.items() if number}


def _node_number(path: str) -> str | None:
    """`major:minor` of a block device's node; None if it is none."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISBLK(found.st_mode):
            return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return None


def _tell_partitions(device: str) -> None:
    import subprocess  # for this rare case only

    for tool in ("/usr/bin/partx", "/usr/sbin/partx", "/sbin/partx"):
        if os.access(tool, os.X_OK):
            subprocess.run([tool, "--add", device], stdin=subprocess.DEVNULL, capture_output=True, env={}, check=False)
            return


def _open_control() -> int:
    try:
        return os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        remedy = "modprobe loop" if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) else "run it as root"
        raise DeviceError(f"cannot open {_CONTROL}: {error.strerror}", remedy=remedy) from None


def _get_free(control: int) -> int:
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    except OSError as error:
        raise DeviceError(f"no loop device is free: {error.strerror}", remedy="losetup -l shows who has them") from None


def _open_node(device: str, flags: int) -> int:
    """Open a loop device, making its node first where nobody else does."""
    try:
        with contextlib.suppress(FileNotFoundError):
            return os.open(device, flags | os.O_CLOEXEC)
        number = _read(f"{_SYSFS}/{os.path.basename(device)}/dev")
        if number is None:
            raise DeviceError(f"{device} does not exist and /sys does not know it", remedy="mount /sys")
        _make_node(device, number)
        return os.open(device, flags | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(f"cannot open {device}: {error.strerror}", remedy="run it as root") from None


def _make_node(path: str, number: str) -> None:
    major, _, minor = number.partition(":")
    with contextlib.suppress(FileExistsError):  # udev was faster
        os.mknod(path, 0o660 | stat.S_IFBLK, os.makedev(int(major), int(minor)))


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None
