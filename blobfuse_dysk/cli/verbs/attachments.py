"""dyskctl attach and detach."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import attachment_json, print_json
from blobfuse_dysk.cli.types import DISK, SIZE, attach_options, complete_attachment
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import AttachOptions

if TYPE_CHECKING:
    pass

__all__ = ["attach", "attach_disk", "detach"]


@click.command(cls=Verb)
@click.argument("disk", type=DISK)
@attach_options
@click.option("--create", is_flag=True, help="Create the disk first if it does not exist; needs --size.")
@click.option("--size", type=SIZE, help="Size for --create, for example 32GiB.")
@click.pass_context
def attach(context: click.Context, /, disk: DiskAddress, create: bool, size: int | None, **given: Any) -> None:
    """Attach a disk to this machine and print its device.

    /dev/dysk/by-blob/ACCOUNT/CONTAINER/BLOB and /dev/dysk/NAME point to the device; the first is the same wherever,
    and after whatever, the disk is attached.

    A disk is written to by one machine at a time: attaching takes a lease. Any number may attach it with --read-only.

    \b
    Examples:
      dyskctl attach mystore/disks/data
      dyskctl attach mystore/disks/data --name db --io-timeout never
      dyskctl attach mystore/disks/new --create --size 100GiB
      dyskctl attach 'mystore/disks/data?snapshot=2026-01-31T12:00:00.0000000Z'
      dyskctl -o json attach mystore/vhds/vm.vhd --partscan --read-only
    """
    options = AttachOptions(**given)
    if create and size is None:
        raise UsageError("--create needs a size", remedy="add for example --size 32GiB")
    if size is not None and not create:
        raise UsageError("--size goes with --create", remedy="add --create, or leave --size out")
    if create and (options.read_only or disk.snapshot):
        raise UsageError("a new disk cannot be attached read-only", remedy="leave --create out")
    attach_disk(context, disk, options, size)


def attach_disk(context: click.Context, disk: DiskAddress, options: AttachOptions, size: int | None = None) -> None:
    """Attach it, and print its device or what `get` shows. size: of the disk to create if it does not exist."""
    from blobfuse_dysk import attachment
    from blobfuse_dysk.disks.create import attach_or_create

    options = replace(options, read_only=options.read_only or disk.snapshot is not None)
    attached = attachment.attach(disk, options) if size is None else attach_or_create(disk, size, options)
    if settings(context).json:
        print_json(attachment_json(attached))
    else:
        print(attached.device)


@click.command(cls=Verb)
@click.argument("target", metavar="NAME|DEVICE|DISK", shell_complete=complete_attachment)
@click.option(
    "--force", is_flag=True, help="Let go even if the service does not answer. Loses what it does not take any more."
)
@click.option("--lose-data", is_flag=True, help="With --force: also if that is a loss, of a mounted device as well.")
@click.pass_context
def detach(context: click.Context, target: str, force: bool, lose_data: bool) -> None:
    """Write everything out, let the disk go, remove its device. Returns when all of that is done.

    A device that is mounted or open is not detached: unmount it first. --force writes what the service still takes,
    then ends it, and says how much was lost; it refuses a device that is mounted, unless --lose-data says that this
    may cost what its file system has not written.

    \b
    Examples:
      dyskctl detach data
      dyskctl detach /dev/loop0
      dyskctl detach mystore/disks/data
    """
    from blobfuse_dysk import attachment

    if lose_data and not force:
        raise UsageError("--lose-data goes with --force", remedy="add --force, or leave --lose-data out")
    attachment.detach(target, force=force, lose_data=lose_data)
    if settings(context).json:
        print_json({"target": target, "detached": True})
