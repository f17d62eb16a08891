"""The system's own tools and tables that mounting needs: mkfs, blkid, mount(8), umount(8), the mounts.

A mount helper may be started with an empty PATH (by the kernel, by automounters), so tools are looked for where the
file system hierarchy has them, and they get an environment of their own.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Sequence

from blobfuse_dysk.device.kernel.mountinfo import Mount, mounts
from blobfuse_dysk.errors import DeviceError

__all__ = [
    "find_mounted",
    "find_tool",
    "make_file_system",
    "probe",
    "run_tool",
    "top_mount",
    "whole_device",
]

_DIRECTORIES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
_ENVIRONMENT = {"PATH": ":".join(_DIRECTORIES), "LC_ALL": "C.UTF-8"}
# Debian's names; other systems' differ little, and a wrong name still tells what to look for.
_PACKAGES = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}
_BLKID_NOTHING, _BLKID_AMBIGUOUS = 2, 8
_KILLED_S = 2.0  # for a killed tool to be gone, if it is not stuck in I/O
_BANNER = re.compile(r"(mke2fs|btrfs-progs) v?\d")  # what some tools print before they say what is wrong


def find_tool(name: str, remedy: str | None = None) -> str:
    """The path of a program; raises DeviceError if this machine does not have it."""
    for directory in _DIRECTORIES:
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK):
            return path
    raise DeviceError(f"{name} is not installed", remedy=remedy or f"install it; searched {', '.join(_DIRECTORIES)}")


def run_tool(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end, keeping what it prints. An exception here (an interrupt) kills the tool first.

    A killed tool that waits for a device whose service does not answer stays until that I/O ends; it is not waited for,
    since whoever was interrupted is about to end that I/O.
    """
    tool = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=_ENVIRONMENT,
    )
    try:
        out, err = tool.communicate()
    except BaseException:
        tool.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            tool.wait(_KILLED_S)
        raise
    return subprocess.CompletedProcess(arguments, tool.returncode, out, err)


def make_file_system(fstype: str, device: str, options: Sequence[str]) -> None:
    """Make a file system on a device known to be blank; raises DeviceError with the tool's own words."""
    package = _PACKAGES.get(fstype, f"the package with mkfs.{fstype}")
    tool = find_tool(f"mkfs.{fstype}", remedy=f"install {package}, or give the disk a file system elsewhere")
    result = run_tool([tool, "-q", *options, device])
    if result.returncode:
        words = _first_line(result.stderr) or _first_line(result.stdout) or f"exit code {result.returncode}"
        words = words.removeprefix(f"{tool}: ").removeprefix(f"mkfs.{fstype}: ").rstrip(".")
        raise DeviceError(
            f"mkfs.{fstype} on {device} failed: {words}",
            remedy="see mkfs.options in mount.dysk(8)" if options else f"is the disk large enough for {fstype}?",
        )


def probe(device: str) -> dict[str, str]:
    """What blkid(8) finds on the device itself, not in its cache: TYPE, PTTYPE, ...; empty if it finds nothing."""
    result = run_tool([find_tool("blkid", remedy="install util-linux"), "-p", "-o", "export", device])
    if result.returncode == _BLKID_NOTHING:
        return {}
    if result.returncode == _BLKID_AMBIGUOUS:
        raise DeviceError(
            f"{device} has traces of more than one file system",
            remedy=f"look with wipefs {device}, remove the wrong one, or name the right one with fstype=",
        )
    if result.returncode:
        raise DeviceError(f"blkid on {device} failed: {_first_line(result.stderr) or result.returncode}")
    pairs = (line.partition("=") for line in result.stdout.splitlines())
    return {name: value for name, _, value in pairs}


def top_mount(directory: str) -> Mount | None:
    """What is mounted on this directory, the uppermost if several are."""
    found = [entry for entry in mounts() if entry.directory == directory]
    return found[-1] if found else None


def find_mounted(target: str) -> Mount | None:
    """The mount that umount's argument means: a directory, or a device, whose last mount goes first."""
    everything = mounts()
    # Resolving a path looks at the file system, which may be the one that does not answer: only if it must be.
    for path in (target, os.path.realpath(target)):
        found = [entry for entry in everything if entry.directory == path]
        found = found or [entry for entry in everything if entry.source == path]
        if found:
            return found[-1]
    return None


def whole_device(source: str) -> str:
    """`/dev/loop3p1` -> `/dev/loop3`"""
    head, mark, tail = source.rpartition("p")
    return head if mark and tail.isdigit() and head[-1:].isdigit() else source


def _first_line(text: str) -> str:
    """What a tool says is wrong; most follow it up with their usage."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in lines if line and not _BANNER.match(line)), "")
