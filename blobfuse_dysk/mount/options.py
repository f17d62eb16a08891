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

from dataclasses import dataclass, field, fields, replace
from typing import Any

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.keyvalue import suggest
from blobfuse_dysk.options import MOUNT_OPTIONS, AttachOptions, FileSystem, MountOptions

__all__ = [
    "MOUNT_USAGE",
    "UMOUNT_USAGE",
    "MountRequest",
    "UmountRequest",
    "parse_mount",
    "parse_umount",
    "split_options",
]

_DEFAULTS = MountOptions()

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
    fstype: FileSystem = _DEFAULTS.fstype
    make_blank: bool | None = None  # mkfs=blank, mkfs=never, or neither of them
    mkfs_options: tuple[str, ...] = ()
    partition: int | None = None
    grow: bool = False
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
    """A getopt for the few forms that mount(8) produces and people type: -s -fnv -o ro -oro, in any place.

    Not gnu_getopt: where POSIXLY_CORRECT is set, that stops at the first word that is no option, and mount(8) writes
    `-o` behind the directory.
    """
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
        elif name in MOUNT_OPTIONS:
            ours[name] = _value(name, bool(has_value), value)
        elif name in _DROPPED or name.startswith(("x-", "X-")):
            request = replace(request, nofail=request.nofail or name == "nofail")
        else:
            near = None if request.sloppy else _nearest(name, with_value=bool(has_value))
            if near:
                raise UsageError(f"unknown option {name}", remedy=near)
            passed.append(option)
    return _with_ours(replace(request, options=tuple(passed)), ours)


def _value(name: str, has_value: bool, text: str) -> str:
    """The text of an option's value without its quotes; '' for a switch."""
    if MOUNT_OPTIONS[name].is_switch:
        if has_value:
            raise UsageError(f"option {name} takes no value", remedy=f"write {name}")
    elif not text:
        raise MOUNT_OPTIONS[name].without_value()
    return text.strip('"')


def _with_ours(request: MountRequest, ours: dict[str, str]) -> MountRequest:
    """Read the values of our own options."""
    rows = [MOUNT_OPTIONS[name] for name in ours]
    values: dict[str, Any] = {row.field: row.is_switch or row.read(ours[row.key]) for row in rows}
    of_mount = {each.name: values.pop(each.name) for each in fields(MountOptions) if each.name in values}
    mount = MountOptions(**of_mount)
    disk = replace(request.disk, snapshot=mount.snapshot or request.disk.snapshot)
    read_only = request.read_only or disk.snapshot is not None
    if mount.grow and (read_only or request.namespace or mount.partition is not None):
        what = "a partition, which keeps its size" if mount.partition is not None else "what is mounted read-only"
        what = "a mount in another namespace" if request.namespace else what
        raise UsageError(f"grow is not for {what}", remedy="leave grow out")
    return replace(
        request,
        disk=disk,
        read_only=read_only,
        attach=AttachOptions(**values, read_only=read_only, partscan=mount.partition is not None, autoclear=True),
        fstype=mount.fstype,
        make_blank=None if mount.mkfs is None else mount.mkfs == "blank",
        mkfs_options=mount.mkfs_options or (),
        partition=mount.partition,
        grow=mount.grow,
    )


def _nearest(name: str, *, with_value: bool) -> str | None:
    """`did you mean ...?` for a word that probably was to be an option of ours. with_value: `=` stands behind it."""
    word = name.lower().replace("_", "-")
    if word in _READ_ONLY:
        return "did you mean ro?"
    rows = [key for key, row in MOUNT_OPTIONS.items() if not (with_value and row.is_switch)]
    return suggest(word, rows, most=1, cutoff=0 if word.startswith(("mkfs", "dysk")) else _NEAR)
