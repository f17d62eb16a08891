"""dyskctl create and delete: disks in the account. These talk to the service through its SDK."""

from __future__ import annotations

import sys

import click

from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import print_json, size_text
from blobfuse_dysk.cli.types import DISK, SIZE, connection_options, connection_settings
from blobfuse_dysk.disk import MAX_SIZE, DiskAddress
from blobfuse_dysk.errors import AttachedError, DyskError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.vhd import FOOTER_SIZE, footer

__all__ = ["create", "create_disk", "delete", "refuse_if_attached"]

_MIB = 1 << 20


def create_disk(disk: DiskAddress, size: int, vhd: bool, options: AttachOptions) -> int:
    """Create the page blob; returns the blob's size, which with `vhd` is 512 bytes more than the disk's."""
    from blobfuse_dysk.azure import management
    from blobfuse_dysk.azure.credential import resolve

    blob_size = size
    if vhd:
        if size % _MIB:
            up = -(-size // _MIB)
            raise UsageError("a VHD for Azure is a whole number of MiB", remedy=f"use --size {up}MiB")
        blob_size = size + FOOTER_SIZE
        if blob_size > MAX_SIZE:
            raise UsageError("a VHD has a footer of 512 bytes, so 8 TiB is too large", remedy="use --size 8191GiB")
    address, credential = resolve.resolve(disk, options)
    management.create_disk(address, credential, blob_size, footer(size) if vhd else None)
    return blob_size


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
    credentials: str | None,
    endpoint: str | None,
    realm: str | None,
    allow_http: bool,
) -> None:
    """Create a disk: a page blob of the size you ask for. It costs what is written to it, not its size.

    The container is made if it is missing. A blob that exists is never touched.

    \b
    Examples:
      dyskctl create mystore/disks/data --size 32GiB
      dyskctl create mystore/vhds/vm1.vhd --size 30GiB --vhd
    """
    if disk.snapshot:
        raise UsageError("a snapshot cannot be created this way", remedy="leave ?snapshot= out")
    blob_size = create_disk(disk, size, vhd, connection_settings(credentials, endpoint, realm, allow_http))
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
    credentials: str | None,
    endpoint: str | None,
    realm: str | None,
    allow_http: bool,
) -> None:
    """Delete a disk and everything on it. A disk that has snapshots is not deleted: delete them first.

    Asks on a terminal; a script says --yes.

    \b
    Examples:
      dyskctl delete mystore/disks/old
      dyskctl delete mystore/disks/lost --break-lease --yes
    """
    from blobfuse_dysk.azure import management
    from blobfuse_dysk.azure.credential import resolve as azure_credentials

    if disk.snapshot:
        raise UsageError("a snapshot cannot be deleted this way", remedy="name the disk without ?snapshot=")
    refuse_if_attached(disk)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("delete asks on a terminal, and there is none", remedy="add --yes if you mean it")
        if not click.confirm(f"Delete {disk} and everything on it?", err=True):
            raise DyskError("nothing was deleted")
    options = connection_settings(credentials, endpoint, realm, allow_http)
    address, credential = azure_credentials.resolve(disk, options)
    management.delete_disk(address, credential, break_lease=break_lease)
    if settings(context).json:
        print_json({"disk": str(disk), "deleted": True})
    else:
        print(f"deleted {disk}")


def refuse_if_attached(disk: DiskAddress) -> None:
    """Raise AttachedError if the disk is attached on this machine: deleting it would break what is mounted on it."""
    from blobfuse_dysk.attachment import attachments

    for attachment in attachments():
        if attachment.disk == disk.key:
            raise AttachedError(
                f"{disk} is attached here as {attachment.device}",
                remedy=f"first run: dyskctl detach {attachment.name}",
            )
