"""What /etc/dysk/disks.d/NAME.conf says: a disk to attach under the name NAME, without mounting it.

Lines `key = value` as in a credential file; a line that begins with '#' is a comment. `disk` is needed, every other key
is a long option of `dyskctl attach`, with hyphens or underscores (`io_timeout = never`); options that take no value are
`yes` or `no`. There are no secrets in it: `credentials` names a file. It must not be writable by others than root.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.keyvalue import Entry, open_text, read_entries
from blobfuse_dysk.options import ATTACH_OPTIONS, AttachOptions, Option

__all__ = ["DiskFile", "read_disk_file"]

_NOT_HERE = {
    "name": "the file's own name is the name",
    "create": "create the disk first: dyskctl create",
    "size": "create the disk first: dyskctl create",
}
_KEYS = ("disk", *ATTACH_OPTIONS, "create", "size")
_SWITCH = {"yes": True, "no": False}


@dataclass(frozen=True, slots=True)
class DiskFile:
    """disk: as the file has it. options: with the file's name as the name."""

    disk: str
    options: AttachOptions


def read_disk_file(path: Path) -> DiskFile:
    """Raises UsageError, which names the file and the line."""
    entries = read_entries(
        _read(path),
        path,
        _KEYS,
        expected="for example: disk = mystore/disks/data; keys are disk and the options of dyskctl attach",
        fold=lambda key: key.replace("_", "-"),
    )
    for key in _NOT_HERE:
        if key in entries:
            raise UsageError(f"{entries[key].where}: {key} cannot be set here", remedy=_NOT_HERE[key])
    disk = entries.pop("disk", None)
    if disk is None:
        raise UsageError(f"{path} names no disk", remedy="add a line: disk = ACCOUNT/CONTAINER/BLOB")
    values = {ATTACH_OPTIONS[key].field: _value(ATTACH_OPTIONS[key], entry) for key, entry in entries.items()}
    return DiskFile(disk.value, AttachOptions(name=path.stem, **values))


def _value(option: Option, entry: Entry) -> Any:
    if option.is_switch:
        if entry.value.lower() not in _SWITCH:
            raise UsageError(f"{entry.where}: expected yes or no", remedy=f"write {option.key} = yes, or leave it out")
        return _SWITCH[entry.value.lower()]
    try:
        return option.read(entry.value)
    except UsageError as error:
        raise UsageError(f"{entry.where}: {error}", remedy=error.remedy) from None


def _read(path: Path) -> str:
    try:
        with open_text(path) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path} is not a regular file", remedy="write one there")
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or status.st_uid not in (0, os.geteuid()):
                raise UsageError(
                    f"{path} can be written by others", remedy=f"run: chown root {path} && chmod 600 {path}"
                )
            return file.read()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
