"""A volume on this node: attached, with a file system, mounted once (stage), and all of that taken back (unstage).

Every step is found done, or not, by looking at the machine: state.json says what is attached, the kernel what is
mounted. So a call may be repeated, also after the driver was killed anywhere in it, and goes on where that one ended:

    attach      takes itself back if its process dies before it returns (attachment.py)
    mkfs        only on a blank disk; begun again only where formatting.py knows that it was cut off
    mount       mount(8); what is there already is looked at, not mounted over
    umount      then detach, which returns when everything is durable

An attachment that can never be written to again (fenced, failed, dead) is ended, whatever still uses it, as soon as
the volume is wanted again: what has it mounted gets I/O errors already. A mount of it in a pod stays where it is until
another one is put over it, so that nobody writes into the host's directory below.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from blobfuse_dysk import attachment, environment
from blobfuse_dysk.attached import Attachment, once_detached
from blobfuse_dysk.azure.credential.resolve import resolve
from blobfuse_dysk.device.kernel.usage import users
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import (
    AttachedError,
    BusyError,
    CredentialError,
    DyskError,
    LaterError,
    LeasedError,
    LossError,
    NotFoundError,
)
from blobfuse_dysk.kubernetes import formatting, mounting
from blobfuse_dysk.kubernetes.own import Own, find, is_left_over, name_of
from blobfuse_dysk.kubernetes.refusals import ConflictError, UnsuitableError
from blobfuse_dysk.kubernetes.secrets import Secrets
from blobfuse_dysk.mount import filesystem
from blobfuse_dysk.mount.grow import GROWING, growing_with
from blobfuse_dysk.mount.tools import top_mount
from blobfuse_dysk.options import AttachOptions, FileSystem
from blobfuse_dysk.ownlease import wait_for_own_lease

__all__ = ["Attach", "Staging", "Wanted", "reachable"]

Attach = Callable[[DiskAddress, AttachOptions], Attachment]
_log = logging.getLogger(__name__)
_DETACH_S = (
    100.0  # less than the two minutes that the kubelet gives a call; it goes on by itself, and the next call waits
)
_UNDO_S = 20.0  # for what mkfs wrote to reach the service, when the mount failed anyway


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How a volume is to be on this node. address: with the credential of the request, if it brought one.

    path: where it is mounted; for block nothing is. flags: for the file system's mount. unwritten: refuse a disk that
    another node writes to (for reading). may_read: if another node has the lease, take it for reading.
    any_fstype: fstype is for a blank disk only; another file system that is there is mounted as it is.
    """

    address: DiskAddress
    options: AttachOptions
    path: str
    block: bool = False
    read_only: bool = False
    unwritten: bool = False
    may_read: bool = False
    fstype: FileSystem = "ext4"
    any_fstype: bool = False
    mkfs_options: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def disk(self) -> str:
        return self.address.key


def reachable(address: DiskAddress, options: AttachOptions) -> bool:
    """Whether there is a credential for the disk, in the request or on this machine."""
    try:
        resolve(address, options)
    except CredentialError:
        return False
    return True


class Staging:
    """prefix: of the attachments' names. attach: how a disk is attached. There may be one call a volume at a time."""

    def __init__(self, prefix: str, attach: Attach = attachment.attach) -> None:
        self._prefix = prefix
        self._attach = attach
        self._secrets = Secrets()

    def find(self, disk: str, endpoint: str | None = None) -> Own | None:
        """The volume's attachment; see own.find."""
        return find(name_of(disk, self._prefix), disk, endpoint)

    def stage(self, wanted: Wanted) -> Own:
        """Have the volume on this node as it is wanted, if it is not. After a DyskError nothing new stays."""
        if not wanted.block:
            _check_directory(wanted.path)
        own = self.find(wanted.disk, _endpoint(wanted))
        if own and own.attachment.is_lost:
            self._end_lost(own, wanted.path)
            own = None
        if own:
            _refuse_letting_go(own)
            self._refuse_other_use(own, wanted)
            self._secrets.renew(own.attachment, wanted.address, wanted.options)
            if not wanted.block:
                self._mount(own, wanted)
            return own
        attached = self._attached(wanted)
        try:
            own = self._found(wanted)
            if not wanted.block:
                self._mount(own, wanted)
        except BaseException:
            _take_back(attached.name, wanted.path, own)
            raise
        self._secrets.remember(attached.name, wanted.address)
        return own

    def unstage(self, disk: str, path: str) -> None:
        """Take it back; returns when everything is durable and the lease released, at once if there is nothing.

        Raises BusyError while it is used elsewhere on this node, or if the service takes longer than 100 s: repeat it.
        LossError says once what was never written: the disk is off this node by then, and a repeated call succeeds.
        """
        own = self.find(disk)
        elsewhere = [place.directory for place in own.places() if place.directory != path] if own else []
        if elsewhere:
            raise BusyError(f"{disk} is still mounted on {', '.join(elsewhere)}", remedy="unpublish it there first")
        while top := top_mount(path):
            _refuse_foreign(own, top.directory, is_ours=bool(own and own.shows(top)) or is_left_over(top))
            mounting.unmount(path)
        if own is None:
            return
        attached = own.attachment
        self._secrets.forget(attached.name)
        try:
            if attached.is_lost:
                attachment.detach(attached.name, force=True)
                return
            if own.device and not attached.read_only:
                formatting.finish(attached)
            attachment.detach(attached.name, timeout_s=_DETACH_S)
        except NotFoundError:
            return
        except LossError as error:
            told = f"{disk} is off this node: {error}"
            if not attached.detail:
                raise LossError(told, remedy=error.remedy) from None
            raise LossError(f"{told}; {attached.state} because {once_detached(attached.detail)}") from None

    def _attached(self, wanted: Wanted) -> Attachment:
        """Attach the disk, for reading where that is allowed and another node has it."""
        name = name_of(wanted.disk, self._prefix)
        _refuse_other_attachments(wanted, name)
        options = replace(wanted.options, name=name, read_only=wanted.read_only, autoclear=False)
        try:
            attached = wait_for_own_lease(lambda: self._attach(wanted.address, options))
        except LeasedError as error:
            if not wanted.may_read or error.holder == environment.node_name():
                raise
            attached = self._attach(wanted.address, replace(options, read_only=True))
        if wanted.unwritten and wanted.address.snapshot is None and (writer := attachment.writer_of(name)):
            _take_back(name, wanted.path, None)
            raise UnsuitableError(
                f"{wanted.disk} is {writer}, which writes to it",
                remedy="to read it on several nodes take a snapshot of it, or end its use there",
            )
        return attached

    def _found(self, wanted: Wanted) -> Own:
        own = self.find(wanted.disk)
        if own is None or own.device is None:
            raise LaterError(f"{wanted.disk} was detached while it was staged", remedy="try again")
        return own

    def _refuse_other_use(self, own: Own, wanted: Wanted) -> None:
        attached = own.attachment
        if attached.read_only and not wanted.read_only and not wanted.may_read:
            raise ConflictError(
                f"{wanted.disk} is attached read-only on this node", remedy="unpublish it here where it is read, first"
            )
        if wanted.read_only and not attached.read_only:
            raise ConflictError(
                f"{wanted.disk} is attached on this node to be written", remedy="use it here in one way at a time"
            )

    def _mount(self, own: Own, wanted: Wanted) -> None:
        """Mount the volume's file system on its path; made first if the disk is blank."""
        attached, path = own.attachment, wanted.path
        read_only = attached.read_only
        top = top_mount(path)
        if top and own.shows(top):
            return
        if top:
            _refuse_foreign(own, path, is_ours=is_left_over(top))
            mounting.unmount(path, lazy=True)
        if not read_only:
            formatting.finish(attached)
        as_it_is = wanted.any_fstype and not attachment.is_blank(attached.name)
        what = filesystem.Wanted(
            fstype="auto" if as_it_is else wanted.fstype,
            make_blank=True,
            mkfs_options=wanted.mkfs_options,
            partition=None,
            read_only=read_only,
        )
        try:
            with formatting.Making(attached, wanted.mkfs_options) as making:
                device, fstype = filesystem.prepare(attached, what, making)
            # A clone or a restored snapshot may be larger than its source was.
            grows = fstype in GROWING and not read_only
            with growing_with(device, path, fstype) if grows else contextlib.nullcontext():
                mounting.mount(device, fstype, path, wanted.flags, read_only=read_only)
        except DyskError as error:
            raise _with_reason(error, attached) from error

    def _end_lost(self, own: Own, path: str) -> None:
        """End an attachment that nothing can be written to any more. What has it mounted keeps a mount of nothing."""
        attached = own.attachment
        _log.warning("%s: it is ended, and staged again", attached.trouble)
        while (top := top_mount(path)) and own.shows(top):
            mounting.unmount(path, lazy=True)
        self._secrets.forget(attached.name)
        if attached.state == "dead" and not (own.device and users(own.device)):
            return  # attaching clears it away, and takes its lease up, which would have to be waited for otherwise
        with contextlib.suppress(NotFoundError):
            attachment.detach(attached.name, force=True, lose_data=True)


def _refuse_letting_go(own: Own) -> None:
    """Raise LaterError if its device has let go of it: that one may have another disk by now."""
    attached = own.attachment
    if own.device is None or own.device != attached.device:
        raise LaterError(f"{attached.disk} is being detached right now", remedy="it is tried again")


def _endpoint(wanted: Wanted) -> str | None:
    """Where the request has the disk; None if it brings no credential, and this machine has none."""
    try:
        return str(resolve(wanted.address, wanted.options)[0].endpoint)
    except CredentialError:
        if wanted.address.account_key or wanted.address.sas:
            raise
        return None


def _check_directory(path: str) -> None:
    """Raise UnsuitableError unless a file system can be mounted there; the directory is made if it is not there."""
    try:
        with contextlib.suppress(FileExistsError):
            Path(path).mkdir(0o750)
        mode = os.lstat(path).st_mode
    except OSError as error:
        raise UnsuitableError(f"{path} cannot be made: {error.strerror}", remedy="see that directory's disk") from None
    if not stat.S_ISDIR(mode):
        raise UnsuitableError(f"{path} is not a directory", remedy="remove what is there")


def _refuse_other_attachments(wanted: Wanted, name: str) -> None:
    """Somebody on this machine has it under another name: waiting for the lease would be in vain."""
    for other in attachment.attachments():
        if other.disk != wanted.disk or other.name == name or other.is_lost or (other.read_only and wanted.read_only):
            continue
        where = f", mounted on {other.mountpoints[0]}" if other.mountpoints else ""
        raise AttachedError(
            f"{wanted.disk} is attached on this node already, as {other.name}{where}, by no volume",
            remedy=f"on the node: dyskctl detach {other.name}",
        )


def _refuse_foreign(own: Own | None, path: str, *, is_ours: bool) -> None:
    if not is_ours:
        what = own.attachment.disk if own else "the volume"
        raise UnsuitableError(
            f"another file system than that of {what} is mounted on {path}", remedy=f"see what: findmnt {path}"
        )


def _with_reason(error: DyskError, attached: Attachment) -> DyskError:
    """What failed, and why the disk did, if it did: mkfs and mount(8) hear of nothing but I/O errors."""
    with contextlib.suppress(DyskError):
        found = attachment.get(attached.name)
        if found.state in ("fenced", "failed") and found.detail:
            return DyskError(f"{error}: {attached.disk} is {found.state}: {found.detail}")
    return UnsuitableError(str(error), remedy=error.remedy) if type(error) is DyskError else error


def _take_back(name: str, path: str, own: Own | None) -> None:
    """Undo an attach, whatever state it is in; the error that led to it is the one that is reported."""
    if own and (top := top_mount(path)) and own.shows(top):
        with contextlib.suppress(DyskError):
            mounting.unmount(path)
    try:
        try:
            attachment.detach(name, timeout_s=_UNDO_S)
        except NotFoundError:
            return
        except DyskError:
            attachment.detach(name, force=True)  # what mkfs wrote is of no use to anybody
    except DyskError as error:
        _log.warning("%s could not be detached again: %s", name, error.line())
