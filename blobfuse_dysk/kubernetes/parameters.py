"""The parameters of a StorageClass, which are also the attributes of a volume, in one table.

Names are ours or those of the Azure Disk driver, in any capitals; values that options.py knows are read by its rows, so
they are taken and refused as everywhere else. Those that may change later are a VolumeAttributesClass's, too; they are
kept in the blob's metadata, since a volume's attributes never change. What Kubernetes adds by itself is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, Literal, cast, get_args

from blobfuse_dysk.azure.tiers import TIERS
from blobfuse_dysk.disk import DiskAddress, Endpoint
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.keyvalue import suggest
from blobfuse_dysk.options import ATTACH_OPTIONS, MOUNT_OPTIONS, AttachOptions, Cache, FileSystem, MountOptions

__all__ = ["METADATA_PREFIX", "Parameters", "check_snapshot_parameters"]

METADATA_PREFIX = "dysk_set_"  # of what a VolumeAttributesClass has set, in the blob's metadata
_FILE_SYSTEMS = tuple(name for name in get_args(FileSystem) if name != "auto")
_CACHING: dict[str, Cache] = {"None": "none", "ReadOnly": "readonly", "ReadWrite": "readwrite"}
# csi.storage.k8s.io/... and storage.kubernetes.io/... are Kubernetes' own; the names of secrets without a prefix are
# what it used before 1.12, as in the original's examples, and what external-provisioner still hands on.
_KUBERNETES = re.compile(r"(?:csi\.storage|storage)\.k(?:8s|ubernetes)\.io/.*|csi[A-Za-z]+Secret(?:Name|Namespace)")
_SWITCH = {"true": True, "yes": True, "false": False, "no": False}


@dataclass(frozen=True, slots=True)
class _Row:
    """key: as documented. read: text -> value, raises UsageError. mutable: a VolumeAttributesClass may have it.

    at_node: whether the node needs it, so that it stands in the volume's attributes.
    """

    key: str
    read: Callable[[str], Any]
    mutable: bool = False
    at_node: bool = False

    @property
    def is_setting(self) -> bool:
        """Whether it can change after the volume was made, and the node has to be told; the tier is the blob's own."""
        return self.mutable and self.at_node


def _row(
    key: str, read: Callable[[str], Any] = str, default: Any = "", *, mutable: bool = False, at_node: bool = False
) -> Any:
    """A field with its row; what it returns stands for the default value, hence Any."""
    return field(default=default, metadata={_Row: _Row(key, read, mutable, at_node)})


def _name(key: Literal["account", "container"], address: str, rule: str) -> Callable[[str], str]:
    """One piece of a disk's address, which is to be all of the text: what stands behind a slash is not dropped."""

    def read(text: str) -> str:
        try:
            found = getattr(DiskAddress.parse(address.format(text)), key)
        except UsageError:
            found = None
        if found != text:
            raise UsageError(f"{key} {text!r} is not {rule}", remedy=f"write the name of the {key} alone")
        return text

    return read


def _endpoint(text: str) -> str:
    return text if Endpoint.parse(text) else ""


def _prefix(text: str) -> str:
    if "?" in text or "://" in text:  # would be read as what a disk's URL has
        raise UsageError(f"blobPrefix {text!r} has a '?' or '://' in it", remedy="write for example prod/")
    DiskAddress.parse(f"account/container/{text}x")
    return text


def _word(key: str, words: Mapping[str, Any]) -> Callable[[str], Any]:
    """words: as documented; any capitals are taken."""
    lowered = {word.lower(): value for word, value in words.items()}

    def read(text: str) -> Any:
        if text.lower() not in lowered:
            raise UsageError(f"{key} {text!r} is not known", remedy=f"use one of {', '.join(words)}")
        return lowered[text.lower()]

    return read


def _tags(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [piece.partition("=") for piece in text.split(",")]
    if not all(name.strip() and mark for name, mark, _ in pairs):
        raise UsageError(f"tags {text!r} are not pairs", remedy="write name=value,name=value")
    return tuple((name.strip(), value.strip()) for name, _, value in pairs)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a class, or a volume's attributes, say. Fields that they do not have are empty, or None, or the default."""

    account: str = _row("account", _name("account", "{}/container/blob", "3 to 24 lower-case letters and digits"))
    container: str = _row(
        "container", _name("container", "account/{}/blob", "3 to 63 lower-case letters, digits and single dashes")
    )
    endpoint: str = _row("endpoint", _endpoint)
    blob_prefix: str = _row("blobPrefix", _prefix)
    tier: str = _row("tier", _word("tier", {tier: tier for tier in TIERS}), mutable=True)
    cache: Cache | None = _row(  # noqa: RUF009 - it returns a field
        "cachingMode", _word("cachingMode", _CACHING), None, mutable=True, at_node=True
    )
    fstype: FileSystem | None = _row(  # noqa: RUF009 - as above
        "fsType", _word("fsType", {name: name for name in _FILE_SYSTEMS}), None, at_node=True
    )
    mkfs_options: str = _row("mkfsOptions", at_node=True)
    io_timeout: str = _row("ioTimeout", mutable=True, at_node=True)
    iops: str = _row("iops", mutable=True, at_node=True)
    mbps: str = _row("mbps", mutable=True, at_node=True)
    vhd: bool = _row("vhd", _word("vhd", _SWITCH), False, at_node=True)
    tags: tuple[tuple[str, str], ...] = _row("tags", _tags, ())
    blob: str = _row("blob")  # of static volumes, as the original has them; the id says the same

    def __post_init__(self) -> None:
        self.options()
        if self.mkfs_options:
            MOUNT_OPTIONS["mkfs.options"].read(self.mkfs_options)

    @classmethod
    def read(cls, given: Mapping[str, str], *, mutable: bool = False) -> Parameters:
        """Check the parameters of a class, or the attributes of a volume. Raises UsageError.

        mutable: they are a VolumeAttributesClass's, which may have less. An unknown one is named with the nearest one.
        """
        values: dict[str, Any] = {}
        for key, text in given.items():
            if _KUBERNETES.fullmatch(key):
                continue
            found = _BY_KEY.get(key.lower())
            kind = "VolumeAttributesClass" if mutable else "StorageClass"
            if found is None:
                near = suggest(key.lower(), _BY_KEY, most=1)
                near = near and near.replace(*_spelled(near))
                known = f"there are {', '.join(row.key for _, row in _BY_KEY.values() if row.mutable or not mutable)}"
                raise UsageError(f"parameter {key!r} is not known", remedy=near or known)
            name, row = found
            if mutable and not row.mutable:
                raise UsageError(f"parameter {row.key} cannot be changed", remedy=f"leave it out of the {kind}")
            if name in values:
                raise UsageError(f"parameter {row.key} is given twice", remedy="leave one out")
            if not text:
                raise UsageError(f"parameter {row.key} has no value", remedy="give one, or leave it out")
            values[name] = row.read(text)
        return cls(**values)

    def changed_by(self, later: Parameters) -> Parameters:
        """These, with all that `later` has in the place of what is here."""
        return replace(
            self, **{each.name: v for each in fields(self) if (v := getattr(later, each.name)) != each.default}
        )

    def options(self) -> AttachOptions:
        """The options of an attachment that they stand for. Raises UsageError."""
        given: dict[str, Any] = {}
        for key, text in (("io-timeout", self.io_timeout), ("iops", self.iops), ("mbps", self.mbps)):
            if text:
                given[ATTACH_OPTIONS[key].field] = ATTACH_OPTIONS[key].read(text)
        if self.cache:
            given["cache"] = self.cache
        return AttachOptions(**given, vhd="yes" if self.vhd else "auto")

    def mount_options(self, fstype: str = "") -> MountOptions:
        """The options of a mount. fstype: what the volume's capability says, which counts before the class's."""
        kind = cast(FileSystem, _BY_KEY["fstype"][1].read(fstype)) if fstype else self.fstype or "ext4"
        words = MOUNT_OPTIONS["mkfs.options"].read(self.mkfs_options) if self.mkfs_options else None
        return MountOptions(fstype=kind, mkfs="blank", mkfs_options=words)

    def attributes(self) -> dict[str, str]:
        """What the node needs of it, as a volume's attributes; `read` takes them."""
        return {row.key: _text(value) for row, value in _given(self) if row.at_node}

    def settings(self) -> dict[str, str]:
        """What may change later, as it stands in a blob's metadata; `with_settings` takes it."""
        return {f"{METADATA_PREFIX}{row.key.lower()}": _text(value) for row, value in _given(self) if row.is_setting}

    def with_settings(self, metadata: Mapping[str, str]) -> Parameters:
        """These, and what a blob's metadata says over them; what cannot be read there (of a later version) is left out.

        Names of metadata come in any capitals.
        """
        changes: dict[str, Any] = {}
        for name, text in metadata.items():
            found = _BY_KEY.get(name.lower().removeprefix(METADATA_PREFIX))
            if not name.lower().startswith(METADATA_PREFIX) or found is None or not found[1].is_setting:
                continue
            try:
                value = found[1].read(text)
                changes[found[0]] = getattr(replace(self, **{found[0]: value}), found[0])
            except UsageError:
                continue
        return replace(self, **changes)


def check_snapshot_parameters(given: Mapping[str, str]) -> None:
    """Raise UsageError for a VolumeSnapshotClass with parameters: there is none of ours."""
    unknown = [key for key in given if not _KUBERNETES.fullmatch(key)]
    if unknown:
        raise UsageError(f"parameter {unknown[0]!r} is not known", remedy="a VolumeSnapshotClass takes none")


def _given(parameters: Parameters) -> list[tuple[_Row, Any]]:
    """The rows that have another value than their default."""
    pairs = ((each, getattr(parameters, each.name)) for each in fields(parameters))
    return [(_row_of(each), value) for each, value in pairs if value != each.default]


def _text(value: Any) -> str:
    return "true" if value is True else str(value)


def _row_of(each: Field[Any]) -> _Row:
    row = each.metadata[_Row]
    assert isinstance(row, _Row)
    return row


_BY_KEY = {_row_of(each).key.lower(): (each.name, _row_of(each)) for each in fields(Parameters)}


def _spelled(sentence: str) -> tuple[str, str]:
    """What to replace in a suggestion, so that a parameter is spelled as it is documented."""
    word = sentence.removeprefix("did you mean ").removesuffix("?")
    return word, _BY_KEY[word][1].key
