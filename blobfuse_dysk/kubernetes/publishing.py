"""Showing a staged volume to a pod (publish), and no longer (unpublish): a bind mount, in one step.

What is shown is looked at by its device's number before it is put there, so that a staging directory on which nothing
is mounted any more never takes the volume's place: a pod would write to the node's own disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from blobfuse_dysk.device.kernel import loop
from blobfuse_dysk.device.kernel.bind import bind
from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.kubernetes import mounting
from blobfuse_dysk.kubernetes.own import Own, is_left_over
from blobfuse_dysk.kubernetes.refusals import ConflictError, UnsuitableError
from blobfuse_dysk.mount.tools import top_mount

__all__ = ["publish", "unpublish"]


def publish(own: Own, staged: str, target: str, *, block: bool, read_only: bool, alone: bool) -> None:
    """Show the volume at `target`; staged: where it is mounted. alone: refuse if it is shown elsewhere on this node.

    Raises ConflictError if it is there in another way, UnsuitableError if it cannot be shown so; nothing is left then.
    """
    attached = own.attachment
    others = [place for place in own.places() if place.directory not in (staged, target)]
    if attached.read_only and not read_only:
        raise UnsuitableError(
            f"{attached.disk} is attached on this node for reading only: another node writes to it",
            remedy="publish it readonly here, or end its use there",
        )
    top = top_mount(target)
    if top and own.shows(top):
        if read_only != (_is_read_only(own) if block else top.read_only):
            raise ConflictError(f"{attached.disk} is on {target} already, {'rw' if read_only else 'ro'}")
        return
    if top and not is_left_over(top):
        raise UnsuitableError(f"something else is mounted on {target}", remedy=f"see what: findmnt {target}")
    if alone and others:
        raise UnsuitableError(
            f"{attached.disk} is for one workload at a time, and is on {others[0].directory}",
            remedy="end the pod that uses it first",
        )
    if block:
        _set_read_only(own, read_only, others=bool(others))
    made = _make(target, block=block)
    try:
        _show(own, staged, target, block=block, read_only=read_only)
    except BaseException:
        if made:
            _remove(target)
        raise


def unpublish(own: Own | None, target: str) -> None:
    """Show it there no longer; target is removed. Nothing if there is nothing."""
    while top := top_mount(target):
        if not (own and own.shows(top)) and not is_left_over(top):
            raise UnsuitableError(
                f"another file system than that of the volume is mounted on {target}",
                remedy=f"see what: findmnt {target}",
            )
        mounting.unmount(target)
    if own and own.device and not own.attachment.read_only and not own.places():
        _set_read_only(own, False, others=False)  # or the next to be given that loop device could not write to it
    _remove(target)


def _show(own: Own, staged: str, target: str, *, block: bool, read_only: bool) -> None:
    assert own.device
    try:
        if block:
            bind(own.device, target, read_only=read_only, is_it=own.is_node)
            return
        top = top_mount(staged)
        if not own.shows(top):
            raise UnsuitableError(f"the volume is not mounted on {staged} any more", remedy="it is staged again")
        number = own.rdev
        if top and top.fstype == "btrfs":  # has a number of its own
            number = Path(staged).stat().st_dev
        bind(staged, target, read_only=read_only, is_it=lambda status: status.st_dev == number)
    except OSError as error:
        raise DyskError(f"{own.attachment.disk} cannot be shown at {target}: {error.strerror}") from None


def _make(target: str, *, block: bool) -> bool:
    """Make what the volume is put over; False if it was there."""
    try:
        if not block:
            Path(target).mkdir(0o750)
        else:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640))
    except FileExistsError:
        mode = os.lstat(target).st_mode
        if block == stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            raise UnsuitableError(
                f"{target} is {'a directory' if block else 'not a directory'}", remedy="remove what is there"
            ) from None
        return False
    except OSError as error:
        raise UnsuitableError(
            f"{target} cannot be made: {error.strerror}", remedy="see that directory's disk"
        ) from None
    return True


def _remove(target: str) -> None:
    """Remove the directory or file of a publish; what has something in it is the node's, and stays."""
    try:
        path = Path(target)
        if stat.S_ISDIR(path.lstat().st_mode):
            path.rmdir()
        else:
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        why = "there are files of the node's in it" if error.errno == errno.ENOTEMPTY else error.strerror
        raise UnsuitableError(f"{target} cannot be removed: {why}", remedy="see what is there") from None


def _is_read_only(own: Own) -> bool:
    with _opened(own) as fd:
        return loop.is_read_only(fd)


def _set_read_only(own: Own, read_only: bool, *, others: bool) -> None:
    """A mount flag does not keep anybody from writing to a device: the device itself has to be read-only."""
    if _is_read_only(own) == read_only:
        return
    if others:
        raise UnsuitableError(
            f"{own.attachment.disk} is in use on this node {'to be written' if read_only else 'for reading only'}",
            remedy="a raw block volume is read-only for all pods of a node or for none",
        )
    with _opened(own) as fd:
        loop.set_read_only(fd, read_only)


@contextlib.contextmanager
def _opened(own: Own) -> Iterator[int]:
    assert own.device
    fd = os.open(own.device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
