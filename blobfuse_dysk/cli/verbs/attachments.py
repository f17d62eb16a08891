"""dyskctl attach and detach, as click reads them; cli/quick.py reads the plain ones. What they do: cli/attaching.py."""

from __future__ import annotations

from typing import Any

import click

from blobfuse_dysk.cli import attaching
from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.types import DISK, SIZE, attach_options, complete_attachment
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.options import AttachOptions

__all__ = ["attach", "detach"]


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
    attaching.attach(settings(context), disk, AttachOptions(**given), snapshot=snapshot, create=create, size=size)


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
    return attaching.detach(settings(context), targets, everything=everything, force=force, lose_data=lose_data)
