"""What mount(8) and umount(8) hand to a helper: words become frozen dataclasses, and `-o` is sorted into three heaps.

- options of ours (`fstype=`, `io-timeout=`, ...) say how to attach;
- options that mount(8) keeps for itself and for /etc/fstab (`noauto`, `user`, `x-*`, ...) end here;
- everything else goes to the file system's own mount, which says if it does not know it.

A mistyped option of ours would end in the third heap, and the file system's complaint would not help, so a word that
is near to one of ours is an error that names it. No file system's option known to us is that near (a test keeps it so).

Sources: mount(8), "EXTERNAL HELPERS" and "FILESYSTEM-INDEPENDENT MOUNT OPTIONS"; umount(8), "EXTERNAL HELPERS";
and what mount 2.38 was seen to pass: `SPEC DIR -sfnv -o ro,...`, with the x- options and comments taken out already.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from blobfuse_dysk.disk import DiskAddress, check_snapshot, parse_duration, parse_size
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import AttachOptions

__all__ = [
    "DEFAULT_FILE_SYSTEM",
    "DYSK_OPTIONS",
    "MOUNT_USAGE",
    "UMOUNT_USAGE",
    "MountRequest",
    "UmountRequest",
    "parse_mount",
    "parse_umount",
    "split_options",
]

_Value = TypeVar("_Value")
_DEFAULTS = AttachOptions()
FileSystem = Literal["ext4", "xfs", "btrfs", "auto"]
FILE_SYSTEMS: tuple[FileSystem, ...] = ("ext4", "xfs", "btrfs", "auto")
DEFAULT_FILE_SYSTEM = "ext4"  # what a blank disk gets when fstype= does not say it

DYSK_OPTIONS = (
    "allow-http",
    "break-lease",
    "cache",
    "checksum",
    "credentials",
    "endpoint",
    "fstype",
    "io-timeout",
    "iops",
    "lease",
    "lease-id",
    "mbps",
    "mkfs",
    "mkfs.options",
    "name",
    "partition",
    "read-cache-size",
    "realm",
    "sector-size",
    "snapshot",
    "vhd",
    "write-cache-size",
    "write-delay",
)
_WITHOUT_VALUE = frozenset({"allow-http", "break-lease"})
# For mount(8), libmount, init systems and people; neither the kernel nor a file system knows them. `nofail` and `user`
# have been acted upon before a helper is started; `helper` is ours to set.
_DROPPED = frozenset(
    {
        *("auto", "noauto", "comment", "defaults", "nofail", "helper", "uhelper"),
        *("user", "users", "nouser", "nousers", "owner", "noowner", "group", "nogroup"),
    }
)
MOUNT_USAGE = "mount.dysk DISK DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t dysk[.FSTYPE]]"
UMOUNT_USAGE = "umount.dysk DIR|DEVICE [-flnrv] [-N NAMESPACE] [-t TYPE]"
_READ_ONLY = frozenset({"read-only", "readonly"})  # as dyskctl has it; for mount(8) it is ro
_NEAR = 0.78  # difflib's ratio, from which on a word counts as mistyped


@dataclass(frozen=True, slots=True)
class MountRequest:
    """One call of mount.dysk, checked."""

    disk: DiskAddress
    directory: str
    attach: AttachOptions = field(default_factory=AttachOptions)
    fstype: FileSystem = "auto"
    make_blank: bool = True  # mkfs=blank, not never
    mkfs_options: tuple[str, ...] = ()
    partition: int | None = None
    options: tuple[str, ...] = ()  # for the file system's mount, without ro and remount
    read_only: bool = False
    remount: bool = False
    nofail: bool = False
    fake: bool = False
    no_mtab: bool = False
    verbose: bool = False
    sloppy: bool = False
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class UmountRequest:
    """One call of umount.dysk. flags: the words to hand on to umount(8)."""

    target: str
    flags: tuple[str, ...] = ()
    lazy: bool = False
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class _Words:
    """A helper's command line, split into what it consists of."""

    positional: tuple[str, ...]
    flags: str
    values: dict[str, str]


def parse_mount(arguments: list[str]) -> MountRequest:
    """Read mount.dysk's arguments (without the program's name); UsageError says what is wrong."""
    words = _split_words(arguments, flags="sfnv", with_value="oNt", usage=MOUNT_USAGE)
    if len(words.positional) != 2:
        raise UsageError("a disk and a directory are needed", remedy=f"write {MOUNT_USAGE}")
    request = MountRequest(
        disk=DiskAddress.parse(words.positional[0]),
        directory=words.positional[1],
        fake="f" in words.flags,
        no_mtab="n" in words.flags,
        verbose="v" in words.flags,
        sloppy="s" in words.flags,
        namespace=words.values.get("N"),
    )
    _, _, subtype = words.values.get("t", "").partition(".")
    options = split_options(words.values.get("o", ""))
    if subtype and not any(option.startswith("fstype=") for option in options):
        options.insert(0, f"fstype={subtype}")
    return _apply(request, options)


def parse_umount(arguments: list[str]) -> UmountRequest:
    """Read umount.dysk's arguments (without the program's name)."""
    words = _split_words(arguments, flags="flnrvc", with_value="Nt", usage=UMOUNT_USAGE)
    if len(words.positional) != 1:
        raise UsageError("one directory or device is needed", remedy=f"write {UMOUNT_USAGE}")
    return UmountRequest(
        target=words.positional[0],
        flags=tuple(f"-{flag}" for flag in dict.fromkeys(words.flags)),
        lazy="l" in words.flags,
        namespace=words.values.get("N"),
    )


def split_options(text: str) -> list[str]:
    """Split at commas, but not inside double quotes, as libmount does: `a,mkfs.options="-b 4096,-q"` are two.

    The quotes stay: the kernel's and libmount's own options that take them (SELinux contexts) get them back unchanged.
    """
    options, current, quoted = [], "", False
    for character in text:
        if character == '"':
            quoted = not quoted
        if character == "," and not quoted:
            options.append(current)
            current = ""
        else:
            current += character
    if quoted:
        raise UsageError("the options have a '\"' that is not closed", remedy="write it before and behind the value")
    options.append(current)
    return [option for option in options if option]


def _split_words(arguments: list[str], flags: str, with_value: str, usage: str) -> _Words:
    """A getopt for the few forms that mount(8) produces and people type: -s -fnv -o ro -oro, in any place."""
    positional: list[str] = []
    found = ""
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in with_value:
                if not letters and not rest:
                    raise UsageError(f"option -{letter} has no value", remedy=f"write {usage}")
                value = letters or rest.pop(0)
                values[letter] = f"{values[letter]},{value}" if letter == "o" and letter in values else value
                letters = ""
            elif letter in flags:
                found += letter
            else:
                raise UsageError(f"unknown option {word}", remedy=f"write {usage}")
    return _Words(tuple(positional), found, values)


def _apply(request: MountRequest, options: list[str]) -> MountRequest:
    """Sort the options into their heaps; later ones win, as with mount(8)."""
    ours: dict[str, str] = {}
    passed: list[str] = []
    for option in options:
        name, has_value, value = option.partition("=")
        if name in ("ro", "rw") and not has_value:
            request = replace(request, read_only=name == "ro")
        elif option == "remount":
            request = replace(request, remount=True)
        elif name in DYSK_OPTIONS:
            _check_value(name, bool(has_value), value)
            ours[name] = value.strip('"')
        elif name in _DROPPED or name.startswith(("x-", "X-")):
            request = replace(request, nofail=request.nofail or name == "nofail")
        else:
            near = None if request.sloppy else _nearest(name)
            if near:
                raise UsageError(f"unknown option {name}", remedy=f"did you mean {near}?")
            passed.append(option)
    return _with_ours(replace(request, options=tuple(passed)), ours)


def _check_value(name: str, has_value: bool, value: str) -> None:
    if name in _WITHOUT_VALUE and has_value:
        raise UsageError(f"option {name} takes no value", remedy=f"write {name}")
    if name not in _WITHOUT_VALUE and not value:
        raise UsageError(f"option {name} has no value", remedy=f"write {name}=..., see mount.dysk(8)")


def _with_ours(request: MountRequest, ours: dict[str, str]) -> MountRequest:
    """Read the values of our own options."""
    disk = replace(request.disk, snapshot=ours.get("snapshot", request.disk.snapshot))
    check_snapshot(disk.snapshot)
    read_only = request.read_only or disk.snapshot is not None
    lease = parse_duration(ours["lease"], "lease") if "lease" in ours else _DEFAULTS.lease_s
    io_timeout = parse_duration(ours["io-timeout"], "io-timeout") if "io-timeout" in ours else _DEFAULTS.io_timeout_s
    attach = AttachOptions(
        name=ours.get("name"),
        read_only=read_only,
        break_lease="break-lease" in ours,
        lease_s=lease,
        lease_id=ours.get("lease-id"),
        sector_size=_one_of(ours, "sector-size", {"512": 512, "4096": 4096}, 512),
        partscan="partition" in ours,
        io_timeout_s=io_timeout,
        vhd=_one_of(ours, "vhd", {"auto": "auto", "yes": "yes", "no": "no"}, "auto"),
        cache=_one_of(ours, "cache", {"none": "none", "readonly": "readonly", "readwrite": "readwrite"}, "readwrite"),
        write_cache_size=_read(ours, "write-cache-size", parse_size, _DEFAULTS.write_cache_size),
        read_cache_size=_read(ours, "read-cache-size", parse_size, _DEFAULTS.read_cache_size),
        write_delay_s=_read(ours, "write-delay", _seconds, _DEFAULTS.write_delay_s),
        iops=_read(ours, "iops", int, None),
        mbps=_read(ours, "mbps", float, None),
        checksum=_one_of(ours, "checksum", {"auto": "auto", "md5": "md5", "none": "none"}, "auto"),
        endpoint=ours.get("endpoint"),
        realm=ours.get("realm"),
        credentials=ours.get("credentials"),
        allow_http="allow-http" in ours,
        autoclear=True,
    )
    return replace(
        request,
        disk=disk,
        read_only=read_only,
        attach=attach,
        fstype=_one_of(ours, "fstype", {word: word for word in FILE_SYSTEMS}, "auto"),
        make_blank=_one_of(ours, "mkfs", {"blank": True, "never": False}, True),
        mkfs_options=_words_of(ours.get("mkfs.options", "")),
        partition=_partition(ours.get("partition")),
    )


def _one_of(ours: dict[str, str], name: str, allowed: dict[str, _Value], default: _Value) -> _Value:
    if name not in ours:
        return default
    if ours[name] not in allowed:
        raise UsageError(f"{name}={ours[name]} is not known", remedy=f"use {name}={'|'.join(allowed)}")
    return allowed[ours[name]]


def _read(ours: dict[str, str], name: str, read: Callable[[str], _Value], default: _Value) -> _Value:
    """The value of an option that has its own notation."""
    if name not in ours:
        return default
    try:
        return read(ours[name])
    except ValueError:
        raise UsageError(f"{name}={ours[name]} is not a number", remedy=f"write {name}=N") from None


def _seconds(text: str) -> float:
    seconds = parse_duration(text, "write-delay")
    return math.inf if seconds is None else seconds


def _words_of(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"mkfs.options: {error}", remedy="quote it as a shell wants it") from None


def _partition(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 255:
        raise UsageError(f"partition={text} is not a partition's number", remedy="use a number from 1 on")
    return int(text)


def _nearest(name: str) -> str | None:
    """The option of ours that this word was probably meant to be."""
    import difflib  # only for words that are not ours; the helper starts faster without it

    word = name.lower().replace("_", "-")
    if word in DYSK_OPTIONS:
        return word
    if word in _READ_ONLY:
        return "ro"
    if word.startswith(("mkfs", "dysk")):
        near = difflib.get_close_matches(word, DYSK_OPTIONS, n=1, cutoff=0)
    else:
        near = difflib.get_close_matches(word, DYSK_OPTIONS, n=1, cutoff=_NEAR)
    return near[0] if near else None
