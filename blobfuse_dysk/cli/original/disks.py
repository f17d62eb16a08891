"""The original dysk's create, delete and get. They are meant when -a (or, for get, -d) is given."""

from __future__ import annotations

import click

from blobfuse_dysk import attachment
from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.original.style import (
    Account,
    Dysk,
    account_options,
    flag,
    of_attachment,
    print_dysk,
    print_status,
    random_name,
)
from blobfuse_dysk.cli.types import complete_attachment
from blobfuse_dysk.disk import DEFAULT_REALM, DiskAddress
from blobfuse_dysk.disks.create import create_within
from blobfuse_dysk.disks.delete import delete_disk
from blobfuse_dysk.errors import UsageError

__all__ = ["DEFAULT_SIZE_GIB", "blob_name", "create", "delete", "get"]

DEFAULT_SIZE_GIB = 2


def blob_name(name: str, with_footer: bool) -> str:
    """The original appends .vhd to the name of a blob that it gives a footer."""
    return name if not with_footer or name.endswith(".vhd") else f"{name}.vhd"


@click.command(cls=Verb)
@account_options
@click.option("-d", "--device-name", help="Name of the blob, if -p is not given.")
@flag("-v", "--vhd", default=True, help_text="Write a VHD footer.")
@flag("-r", "--read-only", default=False, help_text="Nothing: a blob is not read-only.")
@flag("-l", "--auto-lease", default=False, help_text="Refused: a lease is taken by mount, which keeps it alive.")
@click.option("-n", "--size", type=click.IntRange(1, 8192), default=DEFAULT_SIZE_GIB, show_default=True, help="GiB.")
@click.pass_context
def create(
    context: click.Context,
    at: Account,
    device_name: str | None,
    vhd: bool,
    read_only: bool,
    auto_lease: bool,
    size: int,
) -> None:
    """Create a page blob, in the original dysk's words. See create for today's.

    \b
    Example:
      dyskctl create -a mystore -k - -p data -n 4 < key
    """
    if auto_lease:
        raise UsageError("create takes no lease", remedy="use mount auto-create, which takes one and keeps it")
    name = device_name or random_name()
    disk = at.disk(blob_name(at.pageblob_name or name, vhd))
    create_within(disk, size << 30, at.connection, vhd=vhd)
    dysk = Dysk(
        Type="R" if read_only else "RW",
        Name=name,
        AccountName=at.account,
        Sas="",
        Path=f"/{disk.container}/{disk.blob}",
        LeaseId="",
        Major=0,
        Minor=0,
        Vhd=vhd,
        SizeGB=size,
        AccountRealm=at.realm,
    )
    print_dysk(dysk, as_json=settings(context).json)


@click.command(cls=Verb)
@account_options
@click.option("-i", "--lease-id", help="Lease that you hold on the blob.")
@flag("-b", "--break-lease", default=False, help_text="Break another's lease first.")
@click.pass_context
def delete(
    context: click.Context,
    at: Account,
    lease_id: str | None,
    break_lease: bool,
) -> None:
    """Delete a page blob without asking, in the original dysk's words. See delete for today's.

    \b
    Example:
      dyskctl delete -a mystore -k - -p data.vhd < key
    """
    if not at.pageblob_name:
        raise UsageError("the page blob's name is missing", remedy="add -p NAME")
    disk = at.disk(at.pageblob_name)
    delete_disk(disk, at.connection, break_lease=break_lease, lease_id=lease_id)
    print_status(f"Deleted page blob {disk}")


@click.command(cls=Verb)
@click.option("-d", "--device-name", required=True, shell_complete=complete_attachment, help="Device name.")
@click.pass_context
def get(context: click.Context, device_name: str) -> None:
    """Show an attachment, in the original dysk's words. See get for today's."""
    found = attachment.get(device_name)
    disk = DiskAddress.parse(found.disk)
    print_dysk(of_attachment(found, disk, DEFAULT_REALM), as_json=settings(context).json)
