"""mount.dysk and umount.dysk: what `mount -t dysk`, /etc/fstab and `umount` start.

Mounting is four steps: attach the disk; if it is blank, and only then, make a file system; let mount(8) mount the
device; leave. Whatever fails, or if a signal comes, nothing stays attached.

The loop device is set up to detach itself on its last close (AUTOCLEAR), so even a bare umount2(2), and the end of
this process in the middle, take the attachment down. The inner mount(8) is told `helper=dysk`, so libmount calls
umount.dysk for a plain `umount`, which returns when the data is durable, the lease released and both processes gone.

Exit codes are those of mount(8): 1 usage or permissions, 2 system, 4 internal, 8 interrupted, 32 failed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from blobfuse_dysk import attachment, ownlease, patience
from blobfuse_dysk.attached import once_detached
from blobfuse_dysk.device.kernel.usage import mounted_elsewhere, mountpoints
from blobfuse_dysk.errors import AttachedError, BusyError, DeviceError, DyskError, NotFoundError, UsageError
from blobfuse_dysk.mount import filesystem, tools
from blobfuse_dysk.mount.grow import growing_with
from blobfuse_dysk.mount.options import (
    MOUNT_USAGE,
    UMOUNT_USAGE,
    MountRequest,
    UmountRequest,
    parse_mount,
    parse_umount,
)
from blobfuse_dysk.printable import printable

__all__ = ["mount_main", "umount_main"]

EX_USAGE, EX_SYSTEM, EX_INTERNAL, EX_INTERRUPTED, EX_FAILED = 1, 2, 4, 8, 32
_log = logging.getLogger(__name__)
_UNDO_TIMEOUT_S = 20.0  # for what mkfs wrote to reach the service, when the mount failed anyway
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked us to stop. Not an Exception: nothing on the way may take it for a failure of its own."""


def mount_main(arguments: list[str] | None = None) -> int:
    """The mount helper; returns mount(8)'s exit code."""
    return _main("mount.dysk", MOUNT_USAGE, lambda words: mount(parse_mount(words)), arguments)


def umount_main(arguments: list[str] | None = None) -> int:
    """The umount helper; returns umount(8)'s exit code."""
    return _main("umount.dysk", UMOUNT_USAGE, lambda words: umount(parse_umount(words)), arguments)


def mount(request: MountRequest) -> int:
    """Attach and mount as requested. Raises DyskError, or Interrupted; nothing is left attached then."""
    if os.geteuid() != 0:
        raise UsageError("only root can mount", remedy=f"sudo mount {request.directory}")
    if request.remount:
        return _remount(request)
    directory = _directory(request)
    if _is_mounted_already(request, directory):
        return 0
    if request.fake:
        _say(request, f"would attach {request.disk} and mount it on {directory}")
        return 0
    if request.disk.sas:
        _log.warning("others can read the SAS in the disk's URL: put it into /etc/dysk/%s.conf", request.disk.account)
    with _interruptible():
        try:
            attached = ownlease.wait_for_own_lease(lambda: attachment.attach(request.disk, request.attach))
        except NotFoundError as error:
            if not request.nofail:
                raise
            # mount(8): "Do not report errors for this device if it does not exist."
            print(f"mount.dysk: nothing mounted, as nofail allows: {error}", file=sys.stderr)
            return 0
        _say(request, f"attached {attached.disk} as {attached.device}")
        try:
            _mount_attached(request, attached, directory)
            attachment.let_go(attached.name)  # from now on the mount keeps it
        except DyskError as error:
            told = _with_reason(error, attached)
            _take_back(attached, directory)
            raise told from error
        except BaseException:
            _take_back(attached, directory)
            raise
    return 0


def umount(request: UmountRequest) -> int:
    """Unmount; if that was the device's last use, return only when the disk is durable and released."""
    if os.geteuid() != 0:  # umount(8) starts helpers as the user, whatever /etc/fstab says of user and users
        raise UsageError("only root can unmount", remedy=f"sudo umount {request.target}")
    entry = tools.find_mounted(request.target)
    device, name = tools.whole_device(entry.source) if entry else "", None
    if entry and not request.lazy:
        with contextlib.suppress(NotFoundError, UsageError):
            name = attachment.get(device).name
    if entry is None or name is None:
        return _inner_umount(request, entry.directory if entry else request.target)
    with attachment.end_of(name) as wait:
        code = _inner_umount(request, entry.directory, lambda: _progress(name, entry.directory))
        if code:
            return code
        if still := _mounted_still(device):
            print(f"umount.dysk: unmounted here, but {still}, so {name} stays attached", file=sys.stderr)
        else:
            wait()
    return code


def _mounted_still(device: str) -> str | None:
    """Where the device, or a partition of it, is mounted after one mount of it has gone; and how to end that."""
    if points := mountpoints(device):
        # A bind mount knows no helper unless it was given one, and umount(8) alone does not wait for the service.
        return f"it is mounted on {points[0]} (end that with umount.dysk {points[0]})"
    elsewhere = mounted_elsewhere(device)
    return str(elsewhere[0]) if elsewhere else None


def _progress(name: str, directory: str) -> str:
    """While umount(2) is at work, which nothing can interrupt: what it waits for."""
    try:
        return f"unmounting {directory}, {attachment.progress(name)}"
    except DyskError:
        return f"unmounting {directory}"


def _inner_umount(request: UmountRequest, target: str, waiting: Callable[[], str] | None = None) -> int:
    """-i: umount(8) called us for this mount, and must not do so again. waiting: what to tell if it takes long."""
    namespace = ["-N", request.namespace] if request.namespace else []
    result = tools.run_tool([tools.find_tool("umount"), "-i", *request.flags, *namespace, target], waiting)
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return result.returncode


def _main(program: str, usage: str, run: Callable[[list[str]], int], arguments: list[str] | None) -> int:
    """Run a helper and turn what it raises into one line and mount(8)'s exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if "-h" in words or "--help" in words:
        print(f"usage: {usage}\nsee mount.dysk(8)")
        return 0
    logging.addLevelName(logging.WARNING, "warning")  # as in every other line of ours
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine(f"{program}: %(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    patience.tell_on_terminal(program)
    try:
        return run(words)
    except UsageError as error:
        return _complain(program, error.line(), EX_USAGE)
    except DeviceError as error:
        return _complain(program, error.line(), EX_SYSTEM)
    except DyskError as error:
        return _complain(program, error.line(), EX_FAILED)
    except (Interrupted, KeyboardInterrupt):
        what = "nothing was mounted" if program == "mount.dysk" else "what is not written yet is being written"
        return _complain(program, f"interrupted, {what}", EX_INTERRUPTED)
    except Exception as error:
        return _complain(program, f"unexpected {type(error).__name__}: {error}: please report it", EX_INTERNAL)


class _OneLine(logging.Formatter):
    """What the layers below warn of."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _complain(program: str, text: str, code: int) -> int:
    print(f"{program}: {printable(' '.join(text.split()))}", file=sys.stderr)
    return code


def _say(request: MountRequest, text: str) -> None:
    if request.verbose:
        print(f"mount.dysk: {text}")


def _directory(request: MountRequest) -> str:
    """The mount point, with symbolic links resolved, as the kernel will show it."""
    if request.namespace:
        return request.directory  # a path in another namespace: only mount(8) can look there
    directory = os.path.realpath(request.directory)
    if not Path(directory).exists():
        raise NotFoundError(f"{request.directory} does not exist", remedy=f"mkdir -p {request.directory}")
    if not Path(directory).is_dir():
        raise NotFoundError(f"{request.directory} is not a directory", remedy="name a directory to mount on")
    return directory


def _is_mounted_already(request: MountRequest, directory: str) -> bool:
    """Whether this very mount is there already, which `mount -a` must be able to ask for again. Raises if in the way.

    libmount would skip it by itself if /proc named the disk as the source; it names the loop device.
    """
    entry = tools.top_mount(directory)
    everything = [each for each in attachment.attachments() if each.state != "dead"]  # attach clears dead ones away
    same_disk = [each for each in everything if each.disk == request.disk.key]
    for found in same_disk:
        if entry and tools.whole_device(entry.source) == found.device:
            if request.read_only and not found.read_only:
                raise BusyError(
                    f"{found.disk} is mounted on {directory} already, read-write", remedy="use -o remount,ro"
                )
            print(f"mount.dysk: {found.disk} is mounted on {directory} already", file=sys.stderr)
            return True
    for found in same_disk:
        if not (found.read_only and request.read_only):  # several may read
            raise _in_use(found, directory)
    if entry and entry.fstype != "autofs":  # an automounter's own mount point is meant to be covered
        raise BusyError(f"{directory} is busy: {entry.source} is mounted on it", remedy=f"umount {directory}")
    return False


def _in_use(found: attachment.Attachment, directory: str) -> AttachedError:
    """The error for a disk that this machine has attached already, with what helps."""
    if found.mountpoints:
        first = found.mountpoints[0]
        where = f"mounted on {first}"
        # Without helper=dysk there, the last umount would be a plain one, which does not wait for the service.
        remedy = f"to have it in both places: mount -o bind,helper=dysk {first} {directory}"
    else:
        where, remedy = f"attached as {found.device}", f"mount {found.device}, or first: dyskctl detach {found.name}"
    return AttachedError(f"{found.disk} is {where} already", remedy=remedy)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the signals that ask us to end into Interrupted. Once one has come, or we are done, the rest are ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mount_attached(request: MountRequest, attached: attachment.Attachment, directory: str) -> None:
    """The steps between attaching and leaving. Until then attachment.py keeps the device open, so that it stays."""
    wanted = filesystem.Wanted(
        fstype=request.fstype,
        make_blank=request.make_blank,
        mkfs_options=request.mkfs_options,
        partition=request.partition,
        read_only=request.read_only,
    )
    told = _Told(request, attached)
    device, fstype = filesystem.prepare(attached, wanted, told)
    writer = attachment.writer_of(attached.name) if request.read_only else None
    with growing_with(device, directory, fstype) if request.grow and not told.made else contextlib.nullcontext():
        _inner_mount(request, fstype, device, directory, writer)
    if told.made:  # a word whether it was asked for or not: a disk is as it was never before
        print(f"mount.dysk: {told.made}", file=sys.stderr)


class _Told:
    """Hears of a file system that is made."""

    held = ()

    def __init__(self, request: MountRequest, attached: attachment.Attachment) -> None:
        self._request = request
        self._disk = attached.disk
        self.made = ""

    def before_mkfs(self, fstype: str) -> None:
        _say(self._request, f"{self._disk} is blank: making {fstype}")

    def after_mkfs(self, text: str) -> None:
        self.made = text


def _inner_mount(request: MountRequest, fstype: str, device: str, directory: str, writer: str | None) -> None:
    """Let mount(8) mount the device; raises with its words.

    helper=dysk is recorded, for umount, and _netdev, for systemd: it then unmounts before the network stops.
    """
    own = [option for option in request.options if option != "_netdev"]
    options = ",".join(["ro" if request.read_only else "rw", *own, "_netdev", "helper=dysk"])
    _run_mount(request, fstype, options, device, directory, writer)


def _remount(request: MountRequest) -> int:
    """Hand a remount on to the file system. Both ends are named, so that mount(8) does not look into /etc/fstab."""
    directory = _directory(request)
    entry = tools.top_mount(directory)
    disk = None
    if entry:
        with contextlib.suppress(NotFoundError, UsageError):
            disk = attachment.get(tools.whole_device(entry.source)).disk
    if entry is None or disk != request.disk.key:
        raise NotFoundError(f"{request.disk} is not mounted on {directory}", remedy="mount it without remount")
    if not request.fake:
        options = ",".join(["remount", "ro" if request.read_only else "rw", *request.options])
        _run_mount(request, entry.fstype, options, entry.source, directory)
    return 0


def _run_mount(
    request: MountRequest, fstype: str, options: str, device: str, directory: str, writer: str | None = None
) -> None:
    """writer: see attachment.writer_of."""
    flags = [flag for flag, wanted in (("-n", request.no_mtab), ("-s", request.sloppy)) if wanted]
    namespace = ["-N", request.namespace] if request.namespace else []
    command = [tools.find_tool("mount"), *flags, *namespace, "-t", fstype, "-o", options, device, directory]
    _say(request, " ".join(command))
    result = tools.run_tool(command)
    sys.stdout.write(result.stdout)
    if result.returncode:
        words = result.stderr.strip().partition("\n")[0].removeprefix("mount: ") or f"exit code {result.returncode}"
        raise DyskError(
            f"mounting {device} ({fstype}) failed: {words.rstrip('.')}",
            remedy=_mount_remedy(request, fstype, words, writer),
        )
    sys.stderr.write(result.stderr)


def _mount_remedy(request: MountRequest, fstype: str, words: str, writer: str | None) -> str:
    """What most often helps. A snapshot of a mounted file system has a journal that cannot be replayed read-only.

    Without its journal a file system that another node writes to now would be read in pieces that do not fit together.
    """
    if request.remount and "write-protected" in words:
        return f"it was attached read-only: umount {request.directory}, then mount it without ro"
    if writer:
        return f"it is {writer}, and changes while it is read: mount a snapshot of it (-o snapshot=TIME)"
    unclean = {"ext4": "noload", "xfs": "norecovery,nouuid", "btrfs": "rescue=nologreplay"}.get(fstype)
    if request.read_only and unclean:
        return f"if it was mounted elsewhere at that time, add -o {unclean}; dmesg says more"
    twin = "if what it is a copy of is mounted here, add -o nouuid; " if fstype == "xfs" else ""
    return f"{twin}dmesg says more; check it with: dyskctl attach {request.disk}, fsck.{fstype}"


def _with_reason(error: DyskError, attached: attachment.Attachment) -> DyskError:
    """What failed, and why the disk did, if it did: mkfs and mount(8) hear of nothing but I/O errors.

    By the time that it is read nothing is attached any more.
    """
    with contextlib.suppress(DyskError):
        found = attachment.get(attached.name)
        if found.state in ("fenced", "failed") and found.detail:
            kind = DeviceError if isinstance(error, DeviceError) else DyskError
            return kind(f"{error}: {attached.disk} is {found.state}: {once_detached(found.detail)}")
    return error


def _take_back(attached: attachment.Attachment, directory: str) -> None:
    """Undo what was done, whatever state it is in; the first error is the one that is reported."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    entry = tools.top_mount(directory)
    if entry and tools.whole_device(entry.source) == attached.device:  # interrupted just after mount(2)
        tools.run_tool([tools.find_tool("umount"), "-i", directory])
    try:
        try:
            attachment.detach(attached.name, timeout_s=_UNDO_TIMEOUT_S)
        except NotFoundError:
            return
        except DyskError:
            _give_up(attached.name)
    except NotFoundError:
        pass  # it ended meanwhile
    except DyskError as error:
        _log.warning("%s could not be detached again: %s", attached.name, error.line())


def _give_up(name: str) -> None:
    """End an attachment by force. What mkfs wrote is of no use to anybody, so that its loss is no news."""
    try:
        attachment.detach(name, force=True)
    except BusyError:  # it could not be unmounted
        attachment.detach(name, force=True, lose_data=True)
    except DyskError as error:
        _log.info("%s", error)
