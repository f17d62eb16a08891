"""From the file of an attachment to its device: the loop device, its queue, its partitions, the links to it."""

from __future__ import annotations

import logging
import os

from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.statefile import StateFile
from blobfuse_dysk.device.kernel import devlink, fuse, loop
from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.imageformat import inspect
from blobfuse_dysk.options import AttachOptions

__all__ = ["set_up"]

_log = logging.getLogger("blobfuse_dysk.attachment")


def set_up(run: str, dev: str, fields: StateFile, options: AttachOptions) -> tuple[str, int]:
    """Return the device and an open descriptor of it; if this raises, the device is let go of by its last user."""
    name = fields["name"]
    fd = _open_disk(state.disk_path(run, name), options.read_only)
    try:
        device, loop_fd = loop.configure(
            fd,
            block_size=options.sector_size,
            read_only=options.read_only,
            partscan=options.partscan,
            autoclear=options.autoclear,
            label=f"dysk:{name}",
        )
        try:
            warnings = [*loop.tune(device), *fuse.set_background(fields["connection"])]
            if options.partscan:
                loop.ensure_partition_nodes(device)
            links = devlink.Links(dev, name, fields["disk"])
            warnings += links.make(device, original=options.original_link)
            if not options.autoclear:  # mount looks by itself
                warnings += _foreign(fd, fields, options, links.stable or device)
        except BaseException:
            os.close(loop_fd)  # the holder has the device let go
            raise
    finally:
        os.close(fd)
    for warning in warnings:
        _log.warning("%s", warning)
    return device, loop_fd


def _foreign(fd: int, fields: StateFile, options: AttachOptions, path: str) -> list[str]:
    """A warning for a disk that is an image of another format, which shows plain bytes; see imageformat.py."""
    try:
        found = inspect(lambda offset, length: os.pread(fd, length, offset), fields["size"])
    except OSError:
        return []  # whoever reads the device will be told
    if found is None or found.kind == "container" or (found.kind == "footer" and options.vhd == "no"):
        return []
    return [f"{fields['disk']} is {found.what}: {found.remedy.format(path)}"]


def _open_disk(path: str, read_only: bool) -> int:
    try:
        return os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}", remedy="see the log") from None
