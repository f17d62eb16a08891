"""Links to the device of an attachment. Standard library only: the holder makes and takes away the later ones.

    /dev/dysk/NAME                            the name of the attachment: which disk that is, who attached it decided
    /dev/dysk/by-blob/ACCOUNT/CONTAINER/BLOB  the disk, whatever it was attached as, and after what
    ...-partN                                 behind either of them: the partition N
    /dev/NAME                                 a link to the first, where the original dysk had its devices

They are made here and not by udev's rules, so containers and machines without udev have them, too; with udev they are
the same, since udev leaves alone what it did not make. What the kernel makes of a partition table later (BLKPG,
BLKRRPART) comes to the holder from the kernel itself, not from udev (device/holder/partitions.py).

A loop device that let its file go may be another disk's a moment later. So links go as soon as that happens, whoever
puts a disk on a device takes away all links to it that others left, and no link that leads to a disk that somebody has
now is ever put elsewhere.

A blob is one path component: what is not a letter, digit or one of `._+=,:-` is %XX of its UTF-8, the hyphen of a
`-partN` at its end, too, and a snapshot's time stands behind `@`. What gets too long is cut off and has `~` and a hash
behind it. So no two disks share a link.
"""

from __future__ import annotations

import contextlib
import os
import re

from blobfuse_dysk.device.kernel import loop
from blobfuse_dysk.errors import AttachedError, DeviceError

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BY_BLOB", "Links", "of_others", "stable_path"]

BY_BLOB = "by-blob"
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+=,:-")
_SNAPSHOT = re.compile(r"(.*)\?snapshot=([^?/]*)\Z", re.DOTALL)
_LIKE_PARTITION = re.compile(r"-(part[0-9]+)\Z")
_PARTITION = re.compile(r"(.+)-part([0-9]+)\Z", re.DOTALL)
_LOOP = re.compile(r"/dev/(loop[0-9]+)(?:p([0-9]+))?\Z")
_LONGEST = 200  # characters; a file's name has 255, and `-part128` and the name while it is made come on top
_TRIES = 10  # of making a link in directories that others take away as they become empty


def stable_path(directory: str, disk: str) -> str:
    """The link of a disk, given as state.json has it: ACCOUNT/CONTAINER/BLOB[?snapshot=TIME]."""
    account, container, blob = [*disk.split("/", 2), "", ""][:3]
    snapshot = _SNAPSHOT.match(blob)
    leaf = _escaped(snapshot[1]) + f"@{_escaped(snapshot[2])}" if snapshot else _escaped(blob)
    if len(leaf) > _LONGEST:
        import hashlib  # loads OpenSSL, which a holder would keep

        leaf = f"{leaf[:_LONGEST]}~{hashlib.sha256(blob.encode()).hexdigest()[:32]}"
    place = os.path.join(directory, BY_BLOB, _escaped(account), _escaped(container))
    return os.path.join(place, _LIKE_PARTITION.sub(r"%2D\1", leaf))


class Links:
    """The links of one attachment. directory: /dev/dysk. disk: as for `stable_path`."""

    def __init__(self, directory: str, name: str, disk: str | None) -> None:
        """disk: None if nobody knows it any more; then only the links by name are known."""
        self._directory = directory
        self.name = os.path.join(directory, name)
        self.stable = stable_path(directory, disk) if disk else None
        self.original = os.path.join(os.path.dirname(directory), name)
        self._bases = [path for path in (self.name, self.stable) if path]

    def make(self, device: str, *, original: bool = False) -> list[str]:
        """Link the device, and its partitions; return a warning for what is not linked.

        original: /dev/NAME as well. Raises AttachedError if something else has the name, DeviceError.
        """
        self.take_away(device)
        warnings = []
        for base in self._bases:
            other = _in_use(base, device)
            if other and base == self.stable:  # a second reader of it, or a disk of another service named the same
                warnings.append(f"{base} stays a link to {other}, which was attached before: use {self.name}")
            elif other:
                raise AttachedError(f"{base} leads to {other}, which is in use", remedy="choose another name")
            else:
                _point(base, device)
        if original:
            self._make_original()
        self.follow(device)
        return warnings

    def follow(self, device: str) -> None:
        """Have a link for each partition that the kernel knows now, and none for others. What cannot be stays."""
        known = {path.rpartition("p")[2]: path for path in loop.partitions(device)}
        for base in self._bases:
            if _target(base) != device:
                continue
            for path, number in _partition_links(base):
                if number not in known:
                    _unlink(path)
            for number, partition in known.items():
                with contextlib.suppress(AttachedError, DeviceError):
                    _point(f"{base}-part{number}", partition)

    def remove(self, device: str | None, heir: str | None = None) -> None:
        """Take the links away, and nothing but links; not one to what somebody else has now.

        device: what the attachment had, if that is known. heir: a device that has the same disk, and keeps its link.
        """
        if os.path.islink(self.original) and os.readlink(self.original) == self._original_target:
            _unlink(self.original)
        for base in self._bases:
            if _in_use(base, device):
                continue
            for path in (base, *(path for path, _ in _partition_links(base))):
                _unlink(path)
        if self.stable:
            if heir:
                with contextlib.suppress(AttachedError, DeviceError):
                    _point(self.stable, heir)
            _remove_empty(os.path.dirname(self.stable), self._directory)

    @property
    def _original_target(self) -> str:
        return os.path.join(os.path.basename(self._directory), os.path.basename(self.name))

    def _make_original(self) -> None:
        """Through /dev/dysk/NAME, so that it leads nowhere as soon as that is gone."""
        path = self.original
        ours = os.path.islink(path) and os.readlink(path) == self._original_target
        if os.path.lexists(path) and not ours:
            raise AttachedError(f"{path} exists and is not a link of ours", remedy="choose another name")
        _symlink(self._original_target, path)

    def take_away(self, device: str) -> None:
        """All links to a device: those that attachments before left would lead to our disk under their names."""
        for path in _all_links(self._directory):
            match = _LOOP.match(_target(path) or "")
            if match and f"/dev/{match[1]}" == device:
                _unlink(path)
                _remove_empty(os.path.dirname(path), self._directory)


def of_others(directory: str, names: list[str], disks: list[str]) -> Iterator[tuple[str, str]]:
    """Each link that belongs to no attachment of these names and disks, and leads to no disk: with its target."""
    known = {os.path.join(directory, name) for name in names} | {stable_path(directory, disk) for disk in disks}
    for path in _all_links(directory):
        partition = _PARTITION.match(path)
        if path not in known and (partition is None or partition[1] not in known) and not _in_use(path, None):
            yield path, os.readlink(path)


def _escaped(text: str) -> str:
    dots = text in (".", "..")  # no disk of the service, but nothing is to lead out of the directory
    return "".join(chr(byte) if byte in _PLAIN and not dots else f"%{byte:02X}" for byte in text.encode())


def _all_links(directory: str) -> list[str]:
    found = []
    for where, _, entries in os.walk(directory):
        found += [path for entry in entries if os.path.islink(path := os.path.join(where, entry))]
    return sorted(found)


def _target(path: str) -> str | None:
    """Where a link leads, as an absolute path; None if there is no link."""
    with contextlib.suppress(OSError):
        return os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return None


def _in_use(path: str, device: str | None) -> str | None:
    """The loop device with a disk of ours behind it that a link leads to, if it is not `device`."""
    match = _LOOP.match(_target(path) or "")
    found = f"/dev/{match[1]}" if match else None
    if found is None or found == device:
        return None
    return found if (loop.backing_file(found) or "").endswith("/disk") else None


def _partition_links(base: str) -> list[tuple[str, str]]:
    """The links (path, number) beside a link that are of its partitions."""
    directory, leaf = os.path.split(base)
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(directory):
            match = _PARTITION.match(entry)
            if match and match[1] == leaf:
                found.append((os.path.join(directory, entry), match[2]))
    return found


def _point(path: str, device: str) -> None:
    """Make `path` a link to the device, in one step. Raises AttachedError if something else is there, DeviceError."""
    if os.path.lexists(path) and not os.path.islink(path):
        raise AttachedError(f"{path} exists and is not a link of ours", remedy="remove it, or choose another name")
    directory = os.path.dirname(path)
    for tries_left in reversed(range(_TRIES)):
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            _symlink(os.path.relpath(device, directory), path)
            return
        except FileNotFoundError as error:
            if not tries_left:
                raise DeviceError(f"cannot make {path}: {error.strerror}") from None
        except OSError as error:
            raise DeviceError(f"cannot make {path}: {error.strerror}") from None


def _symlink(target: str, path: str) -> None:
    """In one step, by a name that no attachment and no blob can have."""
    directory, leaf = os.path.split(path)
    new = os.path.join(directory, f".{leaf}~")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    os.symlink(target, new)
    os.rename(new, path)


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        if os.path.islink(path):
            os.unlink(path)


def _remove_empty(path: str, top: str) -> None:
    """A directory, and those above it up to `top`, as long as they are empty."""
    with contextlib.suppress(OSError):
        while path != top:
            os.rmdir(path)
            path = os.path.dirname(path)
