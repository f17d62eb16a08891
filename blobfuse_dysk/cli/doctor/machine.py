"""Checks of this machine: kernel, FUSE, loop devices, capabilities, tools, files. One function a check."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import tempfile
from pathlib import Path

from blobfuse_dysk import environment
from blobfuse_dysk.cli.doctor.findings import Check, Finding, fail, ok, warn
from blobfuse_dysk.cli.doctor.leftovers import leftovers
from blobfuse_dysk.device.kernel import mountinfo, privileges
from blobfuse_dysk.disk import format_size
from blobfuse_dysk.errors import CredentialError, DyskError, UsageError

__all__ = ["MACHINE_CHECKS"]

_LOOP_CONFIGURE = (5, 8)
_PR_GET_IO_FLUSHER = 58  # linux/prctl.h, since 5.6
_CAPABILITIES = {  # bit -> name, whether nothing works without it, what for. Source: linux/capability.h
    21: ("CAP_SYS_ADMIN", True, "mounting and loop devices"),
    24: ("CAP_SYS_RESOURCE", False, "protection from the OOM killer and from deadlock under memory pressure"),
    14: ("CAP_IPC_LOCK", False, "keeping the worker's memory from being swapped out"),
}
_ROOM = 1 << 20  # bytes that /run should have left


def kernel() -> Finding:
    """Its version: all else that a disk needs of it is there since LOOP_CONFIGURE."""
    release = platform.release()
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < _LOOP_CONFIGURE:
        return fail("kernel", release, "use Linux 5.8 or later")
    return ok("kernel", release)


def fuse_device() -> Finding:
    """/dev/fuse can be opened."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return fail("FUSE", "there is no /dev/fuse", "modprobe fuse; in a container add --device /dev/fuse")
    except PermissionError:
        return fail("FUSE", "/dev/fuse may not be opened", "run it as root; in a container add --device /dev/fuse")
    except OSError as error:
        return fail("FUSE", f"/dev/fuse: {error.strerror}", "modprobe fuse")
    return ok("FUSE", "/dev/fuse opens")


def fuse_control() -> Finding:
    """The control file system is there: without it a disk is limited to 12 requests in the background."""
    connections = Path("/sys/fs/fuse/connections")
    if not connections.is_dir():
        return warn("fusectl", f"there is no {connections}", "modprobe fuse; mount /sys")
    if not any(mount.fstype == "fusectl" for mount in mountinfo.mounts()):
        return ok("fusectl", "not mounted; attach mounts it")
    return ok("fusectl", f"mounted on {connections}")


def fuse_timeouts() -> Finding:
    """The kernel's own time limits for FUSE requests, which abort the whole connection (since 6.15)."""
    limits = {}
    for name in ("default_request_timeout", "max_request_timeout"):
        path = Path("/proc/sys/fs/fuse", name)
        if path.exists():
            limits[name] = int(path.read_text())
    set_limits = {name: seconds for name, seconds in limits.items() if seconds}
    if not set_limits:
        return ok("FUSE request timeout", "none is set")
    name, seconds = min(set_limits.items(), key=lambda item: item[1])
    return warn(
        "FUSE request timeout",
        f"the kernel gives a disk up when a request takes {seconds} s",
        f"sysctl fs.fuse.{name}=0, or use an --io-timeout well below {seconds}",
    )


def loop_devices() -> Finding:
    """A loop device can be had, and has direct I/O: shown with a small file that is gone afterwards."""
    from blobfuse_dysk.device.kernel import loop

    what = "loop devices"
    try:
        with tempfile.TemporaryFile() as file:
            file.truncate(1 << 20)
            device, fd = loop.configure(
                file.fileno(), block_size=512, read_only=True, partscan=False, autoclear=True, label="dyskctl doctor"
            )
            try:
                direct = Path("/sys/block", Path(device).name, "loop/dio").read_text().strip() == "1"
            finally:
                os.close(fd)
    except DyskError as error:
        return fail(what, str(error), error.remedy or "modprobe loop; in a container share /dev")
    except OSError as error:
        return warn(what, f"cannot be tried: {error.strerror}: {error.filename}", "look with losetup -f")
    if not direct:
        return ok(what, f"{device} works; no direct I/O on {tempfile.gettempdir()}, which does not matter")
    return ok(what, f"{device} works, with direct I/O")


def capabilities() -> Finding:
    """The capabilities that this process has, and so will the holder and the worker that it starts."""
    status = Path("/proc/self/status").read_text()
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    mask = int(match[1], 16) if match else 0
    missing = [entry for bit, entry in _CAPABILITIES.items() if not mask >> bit & 1]
    if not missing:
        return ok("capabilities", "all that are needed")
    names = ", ".join(name for name, _, _ in missing)
    purpose = "; ".join(purpose for _, _, purpose in missing)
    if any(needed for _, needed, _ in missing):
        return fail("capabilities", f"no {names}", f"run it as root; in a container --privileged (for {purpose})")
    added = " ".join(f"--cap-add {name.removeprefix('CAP_')}" for name, _, _ in missing)
    return warn("capabilities", f"no {names}", f"in a container {added}; for {purpose}")


def worker_user() -> Finding:
    """Whether workers run as a user who owns nothing."""
    if privileges.find_user():
        return ok("workers", f"run as the user {privileges.USER}")
    make = f"useradd --system --no-create-home --shell /usr/sbin/nologin {privileges.USER}"
    return warn("workers", f"there is no user {privileges.USER}, so they have root's user id", make)


def io_flusher() -> Finding:
    """The kernel knows PR_SET_IO_FLUSHER, which keeps a worker from waiting for its own disk when memory is short."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_GET_IO_FLUSHER, 0, 0, 0, 0) >= 0:
        return ok("I/O flusher", "PR_SET_IO_FLUSHER works")
    return warn(
        "I/O flusher",
        f"PR_SET_IO_FLUSHER: {os.strerror(ctypes.get_errno())}",
        "in a container --cap-add SYS_RESOURCE: without it a disk may hang when memory is short",
    )


def tools() -> Finding:
    """The programs that mount.dysk calls."""
    from blobfuse_dysk.mount.tools import find_tool

    missing = []
    for tool in ("mount", "umount", "blkid", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"):
        try:
            find_tool(tool)
        except DyskError:
            missing.append(tool)
    needed = {"mount", "umount", "blkid"} & set(missing)
    if needed:
        return fail("tools", f"no {', '.join(missing)}", "install mount and util-linux")
    if missing:
        return warn(
            "tools", f"no {', '.join(missing)}", "install what you want to format: e2fsprogs, xfsprogs, btrfs-progs"
        )
    return ok("tools", "mount, blkid, mkfs.ext4, mkfs.xfs and mkfs.btrfs are there")


def mount_helpers() -> Finding:
    """mount(8) looks for helpers in /sbin only (and places below it), whatever PATH is."""
    missing = [name for name in ("mount.dysk", "umount.dysk") if not os.access(f"/sbin/{name}", os.X_OK)]
    if missing:
        import shutil

        where = shutil.which(missing[0]) or f"/path/to/{missing[0]}"
        return warn("mount helpers", f"no /sbin/{missing[0]}", f"for mount -t dysk: ln -s {where} /sbin/")
    return ok("mount helpers", "/sbin/mount.dysk and /sbin/umount.dysk are there")


def run_directory() -> Finding:
    """/run/dysk can be written to and has room: attach, and every change of state, need it."""
    path = environment.run_dir()
    there = path
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        return fail("state directory", f"{there} cannot be written to", "run it as root")
    system = os.statvfs(there)
    free = system.f_bavail * system.f_frsize
    if free < _ROOM:
        return fail("state directory", f"{there} has {format_size(free)} left", f"free some space in {there}")
    return ok("state directory", f"{path}, {format_size(free)} free")


def credential_files() -> Finding:
    """Each credential file can be read, and by nobody else."""
    from blobfuse_dysk.azure.credential.file import read_conf

    directory = environment.config_dir()
    try:  # not glob, which takes a directory that it may not read for an empty one
        files = sorted(path for path in directory.iterdir() if path.suffix == ".conf")
    except FileNotFoundError:
        files = []
    except OSError as error:
        return fail("credential files", f"{directory}: {error.strerror}", "run it as root")
    for path in files:
        try:
            read_conf(path)
        except (CredentialError, UsageError) as error:
            return fail("credential files", str(error), error.remedy or "see CREDENTIALS in dyskctl(8)")
    return ok("credential files", f"{len(files)} in {directory}")


def attachments() -> Finding:
    """No attachment of this machine is in trouble."""
    from blobfuse_dysk.attachment import attachments as all_attachments

    try:
        found = all_attachments()
    except DyskError as error:
        return fail("attachments", str(error), error.remedy or "dyskctl list")
    except PermissionError as error:
        return fail("attachments", f"{error.filename} may not be read", "run it as root")
    troubled = [each.trouble for each in found if each.trouble]
    if any(each.is_lost for each in found):
        return fail("attachments", "; ".join(troubled), "do what it says there; dyskctl status NAME says more")
    if troubled:
        return warn("attachments", "; ".join(troubled), "dyskctl status NAME says more")
    return ok("attachments", f"{len(found)}, all in order")


MACHINE_CHECKS: tuple[Check, ...] = (
    kernel,
    fuse_device,
    fuse_control,
    fuse_timeouts,
    loop_devices,
    capabilities,
    worker_user,
    io_flusher,
    tools,
    mount_helpers,
    run_directory,
    credential_files,
    attachments,
    leftovers,
)
