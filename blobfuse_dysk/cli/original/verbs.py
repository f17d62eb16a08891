"""The original dysk's verbs for devices: mount, mount auto-create, mount-file, unmount."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from blobfuse_dysk import attachment
from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.original.disks import DEFAULT_SIZE_GIB, blob_name
from blobfuse_dysk.cli.original.style import (
    Account,
    account_options,
    flag,
    of_attachment,
    print_dysk,
    print_status,
    random_name,
    read_dysk,
    read_text,
    realm_option,
)
from blobfuse_dysk.cli.types import complete_attachment
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.create import create_within
from blobfuse_dysk.environment import dev_dir
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import AttachOptions

__all__ = ["mount", "mount_file", "unmount"]


_Function = TypeVar("_Function", bound=Callable[..., Any])


def _device_options(function: _Function) -> _Function:
    for option in reversed(
        [
            click.option("-d", "--device-name", help="Device name. Default: dysk and 8 random characters."),
            click.option("-i", "--lease-id", help="Lease id that you hold already."),
            flag("-v", "--vhd", default=None, help_text="The blob ends in a VHD footer. Default: look."),
            flag("-r", "--read-only", default=False, help_text="Attach read-only."),
            flag("-l", "--auto-lease", default=True, help_text="Take a lease if no id is given."),
            flag("-b", "--break-lease", default=False, help_text="Break a lease that another holds."),
        ]
    ):
        function = option(function)
    return function


@click.command(cls=Verb)
@click.argument("variant", metavar="[auto-create]", required=False, type=click.Choice(["auto-create"]))
@account_options
@_device_options
@click.option("-n", "--size", type=click.IntRange(1, 8192), help="With auto-create: size in GiB. Default: 2.")
@click.pass_context
def mount(
    context: click.Context,
    variant: str | None,
    at: Account,
    device_name: str | None,
    lease_id: str | None,
    vhd: bool | None,
    read_only: bool,
    auto_lease: bool,
    break_lease: bool,
    size: int | None,
) -> None:
    """Attach a page blob as /dev/NAME and /dev/dysk/NAME, in the original dysk's words. See attach for today's.

    `mount auto-create` makes the blob first: -n GiB, the VHD footer (unless -v=false) its last 512 bytes.

    \b
    Examples:
      dyskctl mount -a mystore -k - -c dysks -p data.vhd -d dysk01 < key
      dyskctl mount auto-create -a mystore -d dysk02 -n 4
    """
    name = random_name() if device_name is None else device_name
    if variant is None and not at.pageblob_name:
        raise UsageError(
            "mounting an existing page blob needs its name", remedy="add -p NAME, or use mount auto-create"
        )
    if variant is None and size is not None:
        raise UsageError("-n goes with mount auto-create", remedy="leave it out")
    if variant is None and not (auto_lease or lease_id or read_only):
        raise UsageError("-l=false needs a lease id", remedy="add -i LEASE-ID, or leave -l out")
    options = AttachOptions(
        name=name,
        read_only=read_only,
        break_lease=break_lease,
        lease_id=lease_id,
        vhd="auto" if vhd is None else "yes" if vhd else "no",
        realm=realm_option(at.realm),
    )
    if variant:
        with_footer = vhd is not False
        disk = at.disk(blob_name(at.pageblob_name or name, with_footer))
        create_within(disk, (size or DEFAULT_SIZE_GIB) << 30, options, vhd=with_footer)
    else:
        disk = at.disk(at.pageblob_name or "")
    _attach(context, disk, options, at.realm)


@click.command(cls=Verb)
@click.option("-f", "--file", "path", required=True, type=click.Path(), help="File with the JSON; '-': standard input.")
@click.pass_context
def mount_file(context: click.Context, path: str) -> None:
    """Attach from the JSON that `mount -o json` printed. The key Sas in it, if any, may hold a SAS or an account key.

    \b
    Example:
      dyskctl mount-file -f dysk01.json
    """
    dysk = read_dysk(read_text(path))
    options = AttachOptions(
        name=dysk.Name,
        read_only=dysk.Type == "R",
        lease_id=dysk.LeaseId or None,
        realm=realm_option(dysk.AccountRealm),
    )
    _attach(context, dysk.address, options, dysk.AccountRealm)


@click.command(cls=Verb)
@click.option("-d", "--device-name", required=True, shell_complete=complete_attachment, help="Device name.")
@flag("-b", "--break-lease", default=False, help_text="Nothing more: the lease is released in any case.")
@click.pass_context
def unmount(context: click.Context, device_name: str, break_lease: bool) -> None:
    """Detach, in the original dysk's words. See detach for today's.

    \b
    Example:
      dyskctl unmount -d dysk01
    """
    attachment.detach(device_name)
    print_status(f"Device:{device_name} unmounted")


def _attach(context: click.Context, disk: DiskAddress, options: AttachOptions, realm: str) -> None:
    """Scripts written for the original use /dev/NAME."""
    attached = attachment.attach(disk, replace(options, original_link=True))
    print_dysk(of_attachment(attached, disk, realm), as_json=settings(context).json)
    print_status(f"Device:{attached.name} is {dev_dir() / attached.name}")
