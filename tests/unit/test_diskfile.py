"""Files in /etc/dysk/disks.d: what they stand for, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobfuse_dysk.diskfile import DiskFile, read_disk_file
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import AttachOptions


def written(tmp_path: Path, text: str, mode: int = 0o644) -> Path:
    path = tmp_path / "db.conf"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_becomes_options_of_attach(tmp_path: Path) -> None:
    text = "# the database\n\ndisk = store/disks/db\nio_timeout = never\nread-only = yes\nCACHE = 'none'\n"
    assert read_disk_file(written(tmp_path, text)) == DiskFile(
        "store/disks/db", AttachOptions(name="db", io_timeout_s=None, read_only=True, cache="none")
    )


def test_no_leaves_an_option_out(tmp_path: Path) -> None:
    path = written(tmp_path, 'disk = "store/disks/db"\nread_only = no\n')
    assert read_disk_file(path) == DiskFile("store/disks/db", AttachOptions(name="db"))


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("cache = none\n", "names no disk", "ACCOUNT/CONTAINER/BLOB"),
        ("disk = a/b/c\nio_timeuot = 5\n", "line 2: unknown key 'io_timeuot'", "did you mean io-timeout?"),
        ("disk = a/b/c\nname = x\n", "name cannot be set here", "file's own name"),
        ("disk = a/b/c\ndisk = a/b/d\n", "given in line 1 already", "remove one"),
        ("disk = a/b/c\nread_only = perhaps\n", "expected yes or no", ""),
        ("disk = a/b/c\nsize = 1GiB\n", "size cannot be set here", "dyskctl create"),
        ("disk = a/b/c\nio_timeout =\n", "line 2: expected a value behind 'io_timeout ='", "fill it in"),
        ("disk = a/b/c\nzzz = 1\n", "unknown key 'zzz'", "keys are disk and the options of dyskctl attach"),
        ("disk = a/b/c\ncache = all\n", "db.conf, line 2: cache 'all' is not known", "use none, readonly or readwrite"),
        ("disk\n", "expected 'key = value'", "disk = "),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_disk_file(written(tmp_path, text))
    assert message in str(caught.value)
    assert remedy in (caught.value.remedy or "")


def test_a_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can be written by others"):
        read_disk_file(written(tmp_path, "disk = a/b/c\n", 0o666))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_disk_file(tmp_path / "none.conf")
