"""dyskctl create and delete: disks in the account. What they do is in disks/."""

from __future__ import annotations

import sys

import click

from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import print_json, size_text
from blobfuse_dysk.cli.types import DISK, SIZE, connection_options
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError, UsageError
from blobfuse_dysk.options import AttachOptions

__all__ = ["create", "delete"]

_OTHER_WORDS = "With -a ACCOUNT it takes the original dysk's words instead; -a ACCOUNT --help shows them."


@click.command(cls=Verb, epilog=_OTHER_WORDS)
@click.argument("disk", type=DISK)
@click.option("--size", type=SIZE, required=True, help="Size of the device: 512MiB, 32GiB, 2TiB; at most 8TiB.")
@click.option("--vhd", is_flag=True, help="Add a VHD footer behind the disk, so that Azure VMs take it as a disk.")
@connection_options
@click.pass_context
def create(
    context: click.Context,
    disk: DiskAddress,
    size: int,
    vhd: bool,
    connection: AttachOptions,
) -> None:
    """Create a disk: a page blob of the size you ask for. It costs what is written to it, not its size.

    The container is made if it is missing. A blob that exists is never touched.

    \b
    Examples:
      dyskctl create mystore/disks/data --size 32GiB
      dyskctl create mystore/vhds/vm1.vhd --size 30GiB --vhd
    """
    from blobfuse_dysk.disks.create import create_disk

    blob_size = create_disk(disk, size, connection, vhd=vhd)
    if settings(context).json:
        print_json({"disk": str(disk), "size": size, "blob_size": blob_size, "vhd": vhd})
    else:
        print(f"created {disk}, {size_text(size)}" + (" and a VHD footer" if vhd else ""))


@click.command(cls=Verb, epilog=_OTHER_WORDS)
@click.argument("disk", type=DISK)
@click.option("--break-lease", is_flag=True, help="Delete it even if another node has it attached.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
@click.pass_context
def delete(
    context: click.Context,
    disk: DiskAddress,
    break_lease: bool,
    yes: bool,
    connection: AttachOptions,
) -> None:
    """Delete a disk and everything on it. A disk that has snapshots is not deleted: delete them first.

    Asks on a terminal; a script says --yes.

    \b
    Examples:
      dyskctl delete mystore/disks/old
      dyskctl delete mystore/disks/lost --break-lease --yes
    """
    from blobfuse_dysk.disks.delete import check_deletable, delete_disk

    check_deletable(disk)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("delete asks on a terminal, and there is none", remedy="add --yes if you mean it")
        if not click.confirm(f"Delete {disk} and everything on it?", err=True):
            raise DyskError("nothing was deleted")
    delete_disk(disk, connection, break_lease=break_lease)
    if settings(context).json:
        print_json({"disk": str(disk), "deleted": True})
    else:
        print(f"deleted {disk}")
