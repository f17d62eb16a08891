"""What /etc/dysk/disks.d/NAME.conf says: a disk to attach under the name NAME, without mounting it.

Lines `key = value` as in a credential file; a line that begins with '#' is a comment. `disk` is needed, every other key
is a long option of `dyskctl attach`, with hyphens or underscores (`io_timeout = never`); options that take no value are
`yes` or `no`. There are no secrets in it: `credentials` names a file. It must not be writable by others than root.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from blobfuse_dysk.errors import UsageError

__all__ = ["read_disk_file"]

_NOT_HERE = {"name": "the file's own name is the name", "create": "create the disk first: dyskctl create", "size": ""}


def read_disk_file(path: Path, options: Mapping[str, bool]) -> list[str]:
    """The words for `dyskctl attach` that the file stands for. options: each long option -> whether it takes a value.

    Raises UsageError, which names the file and the line.
    """
    words: list[str] = []
    seen: dict[str, int] = {}
    disk = ""
    for number, line in enumerate(_read(path).splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        name, equals, value = (part.strip() for part in line.partition("="))
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if not equals or not value:
            raise UsageError(f"{where}: expected 'key = value'", remedy="for example: disk = mystore/disks/data")
        key = name.lower().replace("_", "-")
        if key in seen:
            raise UsageError(f"{where}: {name} is given in line {seen[key]} already", remedy="remove one of them")
        seen[key] = number
        if key == "disk":
            disk = value
        else:
            words += _option(where, name, key, value, options)
    if not disk:
        raise UsageError(f"{path} names no disk", remedy="add a line: disk = ACCOUNT/CONTAINER/BLOB")
    return [disk, "--name", path.stem, *words]


def _option(where: str, name: str, key: str, value: str, options: Mapping[str, bool]) -> list[str]:
    if key in _NOT_HERE:
        raise UsageError(f"{where}: {name} cannot be set here", remedy=_NOT_HERE[key] or None)
    if key not in options:
        known = [*options, "disk"]
        near = difflib.get_close_matches(key, known, 1)
        raise UsageError(
            f"{where}: unknown key {name!r}",
            remedy=f"did you mean {near[0]}?" if near else "keys are disk and the options of dyskctl attach",
        )
    if options[key]:
        return [f"--{key}", value]
    if value.lower() not in ("yes", "no"):
        raise UsageError(f"{where}: expected yes or no")
    return [f"--{key}"] if value.lower() == "yes" else []


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or status.st_uid not in (0, os.geteuid()):
                raise UsageError(
                    f"{path} can be written by others", remedy=f"run: chown root {path} && chmod 600 {path}"
                )
            return file.read()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
