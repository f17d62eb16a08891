"""dyskctl attach and detach."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from typing import Any

import click

from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import attachment_json, print_error, print_json
from blobfuse_dysk.cli.types import DISK, SIZE, attach_options, complete_attachment
from blobfuse_dysk.disk import DiskAddress, check_snapshot
from blobfuse_dysk.errors import DyskError, UsageError
from blobfuse_dysk.options import AttachOptions

__all__ = ["attach", "attach_disk", "detach"]

_log = logging.getLogger(__name__)


@click.command(cls=Verb)
@click.argument("disk", type=DISK)
@attach_options
@click.option("--snapshot", metavar="TIME", help="Attach this snapshot of the disk, as ?snapshot=TIME does.")
@click.option("--create", is_flag=True, help="Create the disk first if it does not exist; needs --size.")
@click.option("--size", type=SIZE, help="Size for --create, for example 32GiB.")
@click.pass_context
def attach(
    context: click.Context,
    /,
    disk: DiskAddress,
    snapshot: str | None,
    create: bool,
    size: int | None,
    **given: Any,
) -> None:
    """Attach a disk to this machine and print its device.

    /dev/dysk/by-blob/ACCOUNT/CONTAINER/BLOB and /dev/dysk/NAME point to the device; the first is the same wherever,
    and after whatever, the disk is attached.

    A disk is written to by one machine at a time: attaching takes a lease. Any number may attach it with --read-only.

    \b
    Examples:
      dyskctl attach mystore/disks/data
      dyskctl attach mystore/disks/data --name db --io-timeout never
      dyskctl attach mystore/disks/new --create --size 100GiB
      dyskctl attach mystore/disks/data --snapshot 2026-01-31T12:00:00.0000000Z
      dyskctl -o json attach mystore/vhds/vm.vhd --partscan --read-only
    """
    options = AttachOptions(**given)
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
    attach_disk(context, disk, options, size)


def attach_disk(context: click.Context, disk: DiskAddress, options: AttachOptions, size: int | None = None) -> None:
    """Attach it, and print its device or what `get` shows. size: of the disk to create if it does not exist.

    A lease that this machine left behind is waited for.
    """
    from blobfuse_dysk import attachment, ownlease
    from blobfuse_dysk.disks.create import attach_or_create

    options = replace(options, read_only=options.read_only or disk.snapshot is not None)
    attached = ownlease.wait_for_own_lease(
        lambda: attachment.attach(disk, options) if size is None else attach_or_create(disk, size, options)
    )
    try:
        if settings(context).json:
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


@click.command(cls=Verb)
@click.argument("targets", metavar="[NAME|DEVICE|DISK]...", nargs=-1, shell_complete=complete_attachment)
@click.option("--all", "everything", is_flag=True, help="All attachments of this machine.")
@click.option(
    "--force", is_flag=True, help="Let go even if the service does not answer. Loses what it does not take any more."
)
@click.option("--lose-data", is_flag=True, help="With --force: also if that is a loss, of a mounted device as well.")
@click.pass_context
def detach(context: click.Context, targets: tuple[str, ...], everything: bool, force: bool, lose_data: bool) -> int:
    """Write everything out, let the disk go, remove its device. Returns when all of that is done.

    A device that is mounted or open is not detached: unmount it first. --force writes what the service still takes,
    then ends it, and says how much was lost; it refuses a device that is mounted, unless --lose-data says that this
    may cost what its file system has not written. Of several, one that cannot be detached does not keep the others
    from it.

    \b
    Examples:
      dyskctl detach data
      dyskctl detach /dev/loop0
      dyskctl detach mystore/disks/data
      dyskctl detach data db
      dyskctl detach --all
    """
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
            print_error(f"{whose}{error}", error.remedy, as_json=settings(context).json)
        else:
            rows.append({"target": target, "detached": True})
    if settings(context).json:
        print_json(rows[0] if len(names) == 1 and not everything else rows)
    return 0 if len(rows) == len(names) else 1
