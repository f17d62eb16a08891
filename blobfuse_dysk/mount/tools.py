"""The system's own tools and tables that mounting needs: how they are started, what is mounted where.

A mount helper may be started with an empty PATH (by the kernel, by automounters), so tools are looked for where the
file system hierarchy has them, and they get an environment of their own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from blobfuse_dysk.device.kernel.mountinfo import Mount, mounts
from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.installed import TREES, own_tree
from blobfuse_dysk.patience import telling

__all__ = ["device_size", "find_mounted", "find_tool", "reading", "run_tool", "top_mount", "whole_device"]

_DIRECTORIES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
_ENVIRONMENT = {"PATH": ":".join(_DIRECTORIES), "LC_ALL": "C.UTF-8"}
_KILLED_S = 2.0  # for a killed tool to be gone, if it is not stuck in I/O


def find_tool(name: str, remedy: str | None = None) -> str:
    """The path of a program; raises DeviceError if this machine does not have it.

    The machine's own come first, as they fit its kernel; a tree has some for the case that there are none.
    """
    tree = own_tree()
    for directory in (*_DIRECTORIES, f"{TREES}/{tree}/bin") if tree else _DIRECTORIES:
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK):
            return path
    raise DeviceError(f"{name} is not installed", remedy=remedy or f"install it; searched {', '.join(_DIRECTORIES)}")


def run_tool(
    arguments: Sequence[str], waiting: Callable[[], str] | None = None, held: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end, keeping what it prints. An exception here (an interrupt) kills the tool first.

    A killed tool that waits for a device whose service does not answer stays until that I/O ends; it is not waited for,
    since whoever was interrupted is about to end that I/O. waiting: what to tell people if it takes long.
    held: descriptors that it keeps open.
    """
    name, started = Path(arguments[0]).name, time.monotonic()
    tool = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=_ENVIRONMENT,
        pass_fds=held,
    )
    try:
        with telling(waiting or (lambda: f"{name} is at work for {time.monotonic() - started:.0f} s; no limit is set")):
            out, err = tool.communicate()
    except BaseException:
        tool.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            tool.wait(_KILLED_S)
        raise
    return subprocess.CompletedProcess(arguments, tool.returncode, out, err)


@contextlib.contextmanager
def reading(device: str) -> Iterator[int]:
    """A descriptor of the device, to read from. What cannot be read is a DeviceError, and never taken as nothing."""
    try:
        with Path(device).open("rb", buffering=0) as file:
            yield file.fileno()
    except OSError as error:
        raise DeviceError(
            f"{device} cannot be read: {error.strerror}", remedy="dyskctl list says how its disk is"
        ) from error


def device_size(device: str) -> int:
    """Bytes. Raises DeviceError."""
    with reading(device) as fd:
        return os.lseek(fd, 0, os.SEEK_END)


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
