"""The table of options: what a user can say about an attachment, one row an option.

A row is a field of AttachOptions, MountOptions or LiveOptions: key, notation, what is refused, default in the user's
own words, whether it can be changed while the disk is in use, help. Everything that takes options is made from the
rows, so that all of it takes and refuses the same values with the same words:

    cli/types.py       the options of `dyskctl attach`, and of the verbs that reach an account
    mount/options.py   mount's -o
    diskfile.py        the keys of /etc/dysk/disks.d/NAME.conf
    cli/verbs/live.py  `dyskctl set`; the worker checks with the same rows (device/worker/operations.py)

Nothing slow is imported here: mount.dysk and dyskctl load this at every start.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields, replace
from math import inf
from typing import Any, Literal, TypeAlias, get_args

from blobfuse_dysk.disk import DEFAULT_REALM, check_snapshot, format_size, parse_duration, parse_size
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.proxies import Proxy

__all__ = [
    "ATTACH_OPTIONS",
    "LIVE_OPTIONS",
    "MOUNT_OPTIONS",
    "AttachOptions",
    "Cache",
    "FileSystem",
    "LiveOptions",
    "MountOptions",
    "Option",
    "is_name",
]

Cache: TypeAlias = Literal["none", "readonly", "readwrite"]
FileSystem: TypeAlias = Literal[
    "ext4", "xfs", "btrfs", "ext3", "ext2", "vfat", "exfat", "ntfs", "ntfs3", "f2fs", "auto"
]
_Read: TypeAlias = Callable[[str, str], Any]  # text, key -> value
_Check: TypeAlias = Callable[[Any, str], None]  # value, key
_NAME = re.compile(r"(?!by-blob\Z)(?!.*-part[0-9]+\Z)[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")  # see device/kernel/devlink.py
_LEASE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Option:
    """A row. key: as users write it. field: the name of the dataclass's field.

    metavar: what stands for the value in a help text; '' for a switch, which takes no value. choices: all values there
    are, if they can be listed. default: as a user would write it; None for none. live: can be changed while the disk is
    in use. in_mount: mount's -o takes it under this key. may_be_empty: whether '' is a value.
    """

    key: str
    metavar: str
    choices: tuple[str, ...]
    default: str | None
    live: bool
    in_mount: bool
    may_be_empty: bool
    help: str
    read_text: _Read
    check_value: _Check
    field: str = ""

    @property
    def is_switch(self) -> bool:
        return not self.metavar

    def read(self, text: str) -> Any:
        """The value that a user wrote; raises UsageError, in whose words there is nothing of where it was written."""
        if not text and not self.may_be_empty:
            raise self.without_value()
        value = self.read_text(text, self.key)
        self.check(value)
        return value

    def without_value(self) -> UsageError:
        """What to raise where a value is missing."""
        return UsageError(f"option {self.key} has no value", remedy=f"give one, or leave {self.key} out")

    def check(self, value: object) -> None:
        """Raise UsageError unless it is a value of this option; for what comes from a program and not from a text."""
        self.check_value(value, self.key)


def _as_it_is(text: str, key: str) -> str:
    return text


def _anything(value: object, key: str) -> None:
    pass


def _option(
    key: str,
    metavar: str = "",
    read: _Read = _as_it_is,
    check: _Check = _anything,
    *,
    choices: tuple[object, ...] = (),
    default: str | None = None,
    live: bool = False,
    in_mount: bool = True,
    may_be_empty: bool = False,
    help: str = "",
) -> Any:
    """A field of a dataclass with its row; what it returns stands for the default value, hence Any."""
    words = {str(choice): choice for choice in choices}
    if choices:
        metavar = f"[{'|'.join(words)}]"
        read, check = (lambda text, key: words.get(text, text)), _one_of(choices)
    row = Option(key, metavar, tuple(words), default, live, in_mount, may_be_empty, help, read, check)
    value = (None if metavar else False) if default is None else row.read(default)
    return field(default=value, metadata={Option: row})


def _one_of(choices: tuple[object, ...]) -> _Check:
    *most, last = map(str, choices)

    def check(value: object, key: str) -> None:
        if value not in choices:
            raise UsageError(f"{key} {str(value)!r} is not known", remedy=f"use {', '.join(most)} or {last}")

    return check


def _device_name(value: str | None, key: str) -> None:
    if value is not None and not is_name(value):
        raise UsageError(
            f"{key} {value!r} cannot be a device name",
            remedy="use up to 63 letters, digits, '_', '.' and '-'; not by-blob, nor a partition's NAME-partN",
        )


def is_name(text: str) -> bool:
    """Whether an attachment may have this name."""
    return bool(_NAME.match(text))


def _uuid(value: str | None, key: str) -> None:
    if value is not None and not _LEASE_ID.match(value):
        raise UsageError(
            f"lease id {value!r} is not a UUID", remedy="it looks like 01234567-89ab-cdef-0123-456789abcdef"
        )


def _seconds(takes: Callable[[float], bool], remedy: str) -> _Check:
    """Seconds, where None is for ever; takes: whether a number of them (inf for None) can be taken."""

    def check(value: float | None, key: str) -> None:
        seconds = inf if value is None else value
        if not takes(seconds) or value == inf:
            raise UsageError(f"{key} of {seconds:g} s", remedy=remedy)

    return check


def _size(text: str, key: str) -> int:
    return parse_size(text, key, unit_meant="MiB")


def _bytes_at_least(least: int) -> _Check:
    def check(value: int, key: str) -> None:
        if value < least:
            raise UsageError(
                f"{key} of {format_size(value)}",
                remedy=f"use at least {format_size(least)}, or cache=none to go without caches",
            )

    return check


def _limit(kind: type[int] | type[float]) -> _Read:
    """A number, or `none` for no limit."""

    def read(text: str, key: str) -> float | None:
        if text == "none":
            return None
        try:
            value = kind(text)
            float(value)  # an integer may be too large for the arithmetic of pacer.py
        except (ValueError, OverflowError):
            what = "whole number" if kind is int else "number"
            raise UsageError(f"{key} {text!r} is not a {what}", remedy="give a number, or none for no limit") from None
        return value

    return read


def _at_least(least: float, kind: type[int] | type[float]) -> _Check:
    def check(value: float | None, key: str) -> None:
        if value is not None and (not least <= value < inf or kind(value) != value):
            what = f"a whole number, {least:g} or more" if kind is int else f"{least:g} or more"
            raise UsageError(f"{key} of {value:g}", remedy=f"use {what}, or none for no limit")

    return check


def _snapshot(value: str | None, key: str) -> None:
    check_snapshot(value)


def _proxy(value: str | None, key: str) -> None:
    if value is not None:
        Proxy.parse(value, key)


def _shell_words(text: str, key: str) -> tuple[str, ...]:
    import shlex

    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{key}: {error}", remedy="quote it as a shell wants it") from None


def _partition(text: str, key: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 255:
        raise UsageError(f"{key}={text} is not a partition's number", remedy="use a number from 1 on")
    return int(text)


@dataclass(frozen=True, slots=True)
class AttachOptions:
    """How to attach a disk. Seconds are floats, None means for ever; sizes are bytes. Raises UsageError.

    autoclear: detach when the last user of the device closes it (mounts). original_link: a link /dev/NAME
    as well, as the original dysk had it. Both are no user's options.
    """

    name: str | None = _option(
        "name",
        "NAME",
        check=_device_name,
        help="Name of the attachment and of /dev/dysk/NAME. Default: the blob's last part.",
    )
    any_name: bool = _option("any-name", help="Where that name is taken, take NAME-2, NAME-3...")
    read_only: bool = _option(  # mount has ro
        "read-only", in_mount=False, help="Attach without write access, and without a lease."
    )
    break_lease: bool = _option(
        "break-lease", help="Take the disk from the node that has it. That node gets I/O errors."
    )
    lease_s: float | None = _option(
        "lease",
        "DURATION",
        parse_duration,
        _seconds(lambda s: 15 <= s <= 60 or s == inf, "use 15 to 60 seconds, or infinite"),
        default="60",
        help="Lease: 15 to 60 seconds, or infinite.",
    )
    lease_id: str | None = _option("lease-id", "UUID", check=_uuid, help="Use this lease, which you hold already.")
    sector_size: Literal[512, 4096] = _option("sector-size", choices=(512, 4096), default="512", help="Of the device.")
    partscan: bool = _option(  # mount has partition=N
        "partscan", in_mount=False, help="Make devices for the partitions on the disk."
    )
    io_timeout_s: float | None = _option(
        "io-timeout",
        "DURATION",
        parse_duration,
        _seconds(lambda s: s >= 1, "use at least 1 second, or never"),
        default="5m",
        live=True,
        help="How long I/O waits for a service that does not answer: a time, or never.",
    )
    vhd: Literal["auto", "yes", "no"] = _option(
        "vhd",
        choices=("auto", "yes", "no"),
        default="auto",
        help="Hide a VHD footer at the blob's end. With --create, yes writes one.",
    )
    checksum: Literal["auto", "md5", "none"] = _option(
        "checksum",
        choices=("auto", "md5", "none"),
        default="auto",
        help="Check content on its way: auto does so where there is no TLS.",
    )
    cache: Cache = _option(  # noqa: RUF009 - it returns a field
        "cache",
        choices=get_args(Cache),
        default="readwrite",
        help="readwrite: writes return before the service has them, a flush after; readonly: read ahead only.",
    )
    write_cache_size: int = _option(  # the dirty ring (cache=readwrite); at least room for a few of the largest writes
        "write-cache-size", "SIZE", _size, _bytes_at_least(16 << 20), default="64MiB", help="For readwrite."
    )
    read_cache_size: int = _option(  # chunks read ahead (cache=readonly, readwrite); at least a few of them
        "read-cache-size", "SIZE", _size, _bytes_at_least(1 << 20), default="32MiB", help="For read-ahead."
    )
    write_delay_s: float = _option(
        "write-delay",
        "DURATION",
        parse_duration,
        _seconds(lambda s: 0 < s <= 60, "use more than 0 s and at most 60 s"),
        default="1s",
        help="Written data is on its way after this long, although nobody asked for a flush.",
    )
    iops: int | None = _option(  # requests to the service; each 256 KiB of a larger one count as one
        "iops",
        "N",
        _limit(int),
        _at_least(1, int),
        live=True,
        help="At most so many requests a second. Default: no limit.",
    )
    mbps: float | None = _option(  # read and written together
        "mbps",
        "N",
        _limit(float),
        _at_least(0.1, float),
        live=True,
        help="At most so many 10^6 bytes a second.",
    )
    credentials: str | None = _option(
        "credentials",
        "FILE",
        help="Credential file. Default: /etc/dysk/ACCOUNT.conf, then AZURE_STORAGE_* variables.",
    )
    endpoint: str | None = _option("endpoint", "URL", help="Blob service to use, for private and emulated ones.")
    realm: str | None = _option("realm", "SUFFIX", help=f"The cloud's suffix. Default: {DEFAULT_REALM}.")
    proxy: str | None = _option(
        "proxy",
        "URL",
        check=_proxy,
        help="Reach the account through this HTTP proxy, or none. Default: the https_proxy variables.",
    )
    allow_http: bool = _option("allow-http", help="Allow plain HTTP to another machine. It hides nothing.")
    autoclear: bool = False
    original_link: bool = False

    def __post_init__(self) -> None:
        for option in ATTACH_OPTIONS.values():
            option.check(getattr(self, option.field))

    @property
    def cache_memory(self) -> int:
        """The most bytes that the caches come to hold."""
        writes = self.write_cache_size if self.cache == "readwrite" and not self.read_only else 0
        return writes + (self.read_cache_size if self.cache != "none" else 0)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What mount's -o takes beside the options of an attachment: which file system, and where on the disk it is."""

    fstype: FileSystem = _option("fstype", choices=get_args(FileSystem), default="auto")  # noqa: RUF009 - as above
    mkfs: Literal["blank", "never"] | None = _option("mkfs", choices=("blank", "never"))
    mkfs_options: tuple[str, ...] | None = _option("mkfs.options", "WORDS", _shell_words, may_be_empty=True)
    partition: int | None = _option("partition", "N", _partition)
    snapshot: str | None = _option("snapshot", "TIME", check=_snapshot)
    grow: bool = _option("grow")


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """What only `dyskctl set` takes: nothing that an attachment begins with, nor a later worker of it."""

    trace_s: float = _option(
        "trace",
        "DURATION",
        parse_duration,
        _seconds(lambda s: 0 <= s <= 3600, "use at most 1 hour, or 0 to end it"),
        default="0",
        live=True,
        in_mount=False,
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            each.metadata[Option].check(getattr(self, each.name))


def _rows(*of: Field[Any]) -> dict[str, Option]:
    rows = [replace(each.metadata[Option], field=each.name) for each in of if Option in each.metadata]
    return {row.key: row for row in rows}


# Each by the key that users write.
ATTACH_OPTIONS = _rows(*fields(AttachOptions))
LIVE_OPTIONS = {key: row for key, row in ATTACH_OPTIONS.items() if row.live} | _rows(*fields(LiveOptions))
MOUNT_OPTIONS = {key: row for key, row in ATTACH_OPTIONS.items() if row.in_mount} | _rows(*fields(MountOptions))
