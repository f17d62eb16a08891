"""dyskctl create, delete, resize, tier: disks in the account. What they do is in disks/."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

import click

from blobfuse_dysk.cli.attaching import parse_disk
from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import print_json, size_text
from blobfuse_dysk.cli.types import DISK, SIZE, TARGET, complete_attachment, connection_options
from blobfuse_dysk.disk import DiskAddress, names_disk, parse_size
from blobfuse_dysk.errors import DyskError, HasSnapshotsError, UsageError
from blobfuse_dysk.options import AttachOptions

if TYPE_CHECKING:
    from blobfuse_dysk.disks.resize import Resized

__all__ = ["create", "delete", "resize", "tier"]

_OTHER_WORDS = "With -a ACCOUNT it takes the original dysk's words instead; -a ACCOUNT --help shows them."


@click.command(cls=Verb, epilog=_OTHER_WORDS)
@click.argument("disk", type=DISK)
@click.option("--size", type=SIZE, required=True, help="Size of the device: 512MiB, 32GiB, 2TiB; at most 8TiB.")
@click.option("--vhd", is_flag=True, help="Add a VHD footer behind the disk, so that Azure VMs take it as a disk.")
@click.option("--tier", metavar="TIER", help="Tier in a Premium account, P4 to P80. Default: what the size gives.")
@click.option("--metadata", metavar="NAME=VALUE", multiple=True, help="Write this onto the blob; can be repeated.")
@click.option("--tags", metavar="NAME=VALUE", multiple=True, help="A tag by which it can be found; can be repeated.")
@connection_options
@click.pass_context
def create(
    context: click.Context,
    disk: DiskAddress,
    size: int,
    vhd: bool,
    tier: str | None,
    metadata: tuple[str, ...],
    tags: tuple[str, ...],
    connection: AttachOptions,
) -> None:
    """Create a disk: a page blob of the size you ask for. It costs what is written to it, not its size.

    The container is made if it is missing. A blob that exists is never touched.

    \b
    Examples:
      dyskctl create mystore/disks/data --size 32GiB
      dyskctl create mystore/vhds/vm1.vhd --size 30GiB --vhd
      dyskctl create fast/disks/db --size 64GiB --tier P30 --tags team=web --metadata owner=anna
    """
    from blobfuse_dysk.disks.create import create_disk
    from blobfuse_dysk.disks.labels import parse_pairs

    onto, found_by = parse_pairs(metadata, "metadata"), parse_pairs(tags, "tags")
    blob_size = create_disk(disk, size, connection, vhd=vhd, tier=tier, metadata=onto, tags=found_by)
    if settings(context).json:
        print_json({"disk": str(disk), "size": size, "blob_size": blob_size, "vhd": vhd})
    else:
        print(f"created {disk}, {size_text(size)}" + (" and a VHD footer" if vhd else ""))


@click.command(cls=Verb, epilog=_OTHER_WORDS)
@click.argument("disk", type=DISK)
@click.option("--break-lease", is_flag=True, help="Delete it even if another node has it attached.")
@click.option("--snapshots", is_flag=True, help="Delete its snapshots as well.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
@click.pass_context
def delete(
    context: click.Context,
    disk: DiskAddress,
    break_lease: bool,
    snapshots: bool,
    yes: bool,
    connection: AttachOptions,
) -> None:
    """Delete a disk and everything on it. A disk that has snapshots is deleted only with them.

    Asks on a terminal, about the snapshots, too; a script says --yes, and --snapshots.

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
        what = "everything on it" + (", and all its snapshots" if snapshots else "")
        if not click.confirm(f"Delete {disk} and {what}?", err=True):
            raise DyskError("nothing was deleted")
    try:
        delete_disk(disk, connection, break_lease=break_lease, snapshots=snapshots)
    except HasSnapshotsError:
        if yes or not click.confirm(f"{disk} has snapshots. Delete them, too?", err=True):
            raise
        delete_disk(disk, connection, break_lease=break_lease, snapshots=True)
    if settings(context).json:
        print_json({"disk": str(disk), "deleted": True})
    else:
        print(f"deleted {disk}")


@click.command(cls=Verb)
@click.argument("target", metavar="NAME|DEVICE|DISK", shell_complete=complete_attachment)
@click.argument("size", metavar="[+]SIZE")
@click.option("--force", is_flag=True, help="Make it smaller: only what is empty is cut off.")
@connection_options
@click.pass_context
def resize(context: click.Context, target: str, size: str, force: bool, connection: AttachOptions) -> None:
    """Make a disk larger: in use on this machine, with the file system that is mounted on it, or attached nowhere.

    With + before the size it grows by that. Partitions stay as they are. A file system that is not mounted now grows
    at its next mount with -o grow. Safe to repeat when it was interrupted.

    \b
    Examples:
      dyskctl resize data 64GiB
      dyskctl resize mystore/disks/data +32GiB
    """
    from blobfuse_dysk.disks.resize import resize

    by = size.startswith("+")
    wanted = parse_size(size.removeprefix("+"))
    meant = parse_disk(target) if names_disk(target) else target
    done = resize(meant, wanted, connection, by=by, force=force)
    if settings(context).json:
        print_json(dataclasses.asdict(done))
        return
    was = f"{done.name or done.disk}: {size_text(done.size)}, was {size_text(done.before)}"
    print(f"{was}{_what_became_of_it(done)}")


def _what_became_of_it(done: Resized) -> str:
    """Of what is on the disk."""
    if done.partitions:
        return "; its partitions are as they were"
    if done.grown:
        return f"; its {done.file_system} grew with it"
    if done.file_system:
        return f"; its {done.file_system} is as it was"
    return "; a file system on it grows at the next mount with -o grow" if done.size > done.before else ""


@click.command(cls=Verb)
@click.argument("disk", metavar="DISK|NAME|DEVICE", type=TARGET)
@click.argument("tier", metavar="TIER")
@connection_options
@click.pass_context
def tier(context: click.Context, disk: DiskAddress, tier: str, connection: AttachOptions) -> None:
    """Raise the tier of a disk in a Premium account, which decides how fast it may be. It may be in use.

    P4, P6, P10, P15, P20, P30, P40, P50, P60, P70, P80. A tier cannot be lowered, and costs what it is, from now on.

    \b
    Example:
      dyskctl tier fast/disks/db P30
    """
    from blobfuse_dysk.disks.tier import set_tier

    name = set_tier(disk, connection, tier)
    if settings(context).json:
        print_json({"disk": str(disk), "tier": name})
    else:
        print(f"{disk} has tier {name}")
