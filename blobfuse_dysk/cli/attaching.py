"""What dyskctl attach and detach do, whoever read the command line. Loads nothing that is not needed for it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

from blobfuse_dysk.cli.output import attachment_json, print_error, print_json, warn
from blobfuse_dysk.cli.session import Settings
from blobfuse_dysk.disk import DiskAddress, Endpoint, check_snapshot, names_disk
from blobfuse_dysk.errors import DyskError, UsageError
from blobfuse_dysk.options import AttachOptions

__all__ = ["attach", "attach_disk", "detach", "parse_disk", "parse_target", "warn_of_secret"]

_log = logging.getLogger(__name__)


def parse_disk(text: str) -> DiskAddress:
    """Read a DISK from the command line; warns of a SAS in it, because others can read command lines."""
    disk = DiskAddress.parse(text)
    warn_of_secret(disk)
    return disk


def parse_target(text: str) -> DiskAddress:
    """Read a DISK, or the NAME or DEVICE of an attachment of this machine, whose disk is meant, where that is.

    Each may have `?snapshot=TIME` behind it. Raises UsageError, NotFoundError.
    """
    name, mark, time = text.partition("?snapshot=")
    if names_disk(name):
        return parse_disk(text)
    from blobfuse_dysk import attachment

    found = attachment.get(name)
    disk = replace(DiskAddress.parse(found.disk), endpoint=Endpoint.parse(found.endpoint))
    if not mark:
        return disk
    check_snapshot(time)
    return replace(disk, snapshot=time)


def warn_of_secret(disk: DiskAddress) -> None:
    """If there is one in the disk's name."""
    if disk.sas:
        warn(
            "other users of this machine can read the SAS in the disk's URL from the process list: "
            f"put it into /etc/dysk/{disk.account}.conf instead"
        )


def attach(
    settings: Settings,
    disk: DiskAddress,
    options: AttachOptions,
    *,
    snapshot: str | None = None,
    create: bool = False,
    size: int | None = None,
) -> None:
    """Raises UsageError where the options do not fit together; else see attach_disk."""
    if snapshot is not None:
        check_snapshot(snapshot)
        if disk.snapshot not in (None, snapshot):
            raise UsageError("--snapshot and ?snapshot= name two snapshots", remedy="leave one out")
        disk = replace(disk, snapshot=snapshot)
    if create and size is None:
        raise UsageError("--create needs a size", remedy="add for example --size 32GiB")
    if size is not None and not create:
        raise UsageError("--size goes with --create", remedy="add --create, or leave --size out")
    if create and (options.read_only or disk.snapshot):
        raise UsageError("a new disk cannot be attached read-only", remedy="leave --create out")
    attach_disk(settings, disk, options, size)


def attach_disk(settings: Settings, disk: DiskAddress, options: AttachOptions, size: int | None = None) -> None:
    """Attach it, and print its device or what `get` shows. size: of the disk to create if it does not exist.

    A lease that this machine left behind is waited for.
    """
    from blobfuse_dysk import attachment, ownlease

    options = replace(options, read_only=options.read_only or disk.snapshot is not None)

    def attach_it() -> attachment.Attachment:
        if size is None:
            return attachment.attach(disk, options)
        from blobfuse_dysk.disks.create import attach_or_create

        return attach_or_create(disk, size, options)

    attached = ownlease.wait_for_own_lease(attach_it)
    try:
        if settings.json:
            print_json(attachment_json(attached))
        else:
            print(attached.device)
        if sys.stdout:  # None if it was closed
            sys.stdout.flush()
    except OSError:  # whoever asked for the disk does not learn of it
        try:
            attachment.detach(attached.name)
        except DyskError as error:
            _log.warning("%s could not be detached again: %s", attached.name, error.line())
        else:
            _log.warning("%s is detached again, since its device could not be printed", attached.name)
        raise


def detach(
    settings: Settings,
    targets: Sequence[str],
    *,
    everything: bool = False,
    force: bool = False,
    lose_data: bool = False,
) -> int:
    """Detach these, or everything; return the exit code."""
    from blobfuse_dysk import attachment

    if lose_data and not force:
        raise UsageError("--lose-data goes with --force", remedy="add --force, or leave --lose-data out")
    if bool(targets) == everything:
        raise UsageError("give attachments by name, device or disk, or --all", remedy="dyskctl list shows them")
    names = [found.name for found in attachment.attachments()] if everything else targets
    rows: list[dict[str, object]] = []
    for target in names:
        try:
            attachment.detach(target, force=force, lose_data=lose_data)
        except DyskError as error:
            if len(names) == 1 and not everything:
                raise
            whose = "" if target in str(error) else f"{target}: "
            print_error(f"{whose}{error}", error.remedy, as_json=settings.json)
        else:
            rows.append({"target": target, "detached": True})
    if settings.json:
        print_json(rows[0] if len(names) == 1 and not everything else rows)
    return 0 if len(rows) == len(names) else 1
