"""dyskctl attach and detach."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import click

from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import attachment_json, print_json
from blobfuse_dysk.cli.types import (
    DISK,
    DURATION,
    SIZE,
    cache_options,
    complete_attachment,
    connection_options,
    connection_settings,
)
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import NotFoundError, UsageError
from blobfuse_dysk.options import AttachOptions, Cache

if TYPE_CHECKING:
    from blobfuse_dysk.attachment import Attachment

__all__ = ["attach", "detach"]


@click.command(cls=Verb)
@click.argument("disk", type=DISK)
@click.option(
    "--name", metavar="NAME", help="Name of the attachment and of /dev/dysk/NAME. Default: made of the blob's name."
)
@click.option("--read-only", is_flag=True, help="Attach without write access, and without a lease.")
@click.option("--break-lease", is_flag=True, help="Take the disk from the node that has it. That node gets I/O errors.")
@click.option("--lease", type=DURATION, default="60", show_default=True, help="Lease: 15 to 60 seconds, or infinite.")
@click.option("--lease-id", metavar="UUID", help="Use this lease, which you hold already.")
@click.option(
    "--sector-size", type=click.Choice(["512", "4096"]), default="512", show_default=True, help="Of the device."
)
@click.option("--partscan", is_flag=True, help="Make devices for the partitions on the disk.")
@click.option(
    "--io-timeout",
    type=DURATION,
    default="5m",
    show_default=True,
    help="How long I/O waits for a service that does not answer: a time, or never.",
)
@click.option("--create", is_flag=True, help="Create the disk first if it does not exist; needs --size.")
@click.option("--size", type=SIZE, help="Size for --create, for example 32GiB.")
@click.option(
    "--vhd",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    help="Hide a VHD footer at the blob's end. With --create, yes writes one.",
)
@click.option(
    "--checksum",
    type=click.Choice(["auto", "md5", "none"]),
    default="auto",
    show_default=True,
    help="Check content on its way: auto does so where there is no TLS.",
)
@cache_options
@connection_options
@click.pass_context
def attach(
    context: click.Context,
    disk: DiskAddress,
    name: str | None,
    read_only: bool,
    break_lease: bool,
    lease: float,
    lease_id: str | None,
    sector_size: str,
    partscan: bool,
    io_timeout: float,
    create: bool,
    size: int | None,
    vhd: Literal["auto", "yes", "no"],
    checksum: Literal["auto", "md5", "none"],
    cache: Cache,
    write_cache_size: int,
    read_cache_size: int,
    write_delay: float,
    iops: int | None,
    mbps: float | None,
    credentials: str | None,
    endpoint: str | None,
    realm: str | None,
    allow_http: bool,
) -> None:
    """Attach a disk to this machine and print its device. /dev/dysk/NAME points to the device.

    A disk is written to by one machine at a time: attaching takes a lease. Any number may attach it with --read-only.

    \b
    Examples:
      dyskctl attach mystore/disks/data
      dyskctl attach mystore/disks/data --name db --io-timeout never
      dyskctl attach mystore/disks/new --create --size 100GiB
      dyskctl attach 'mystore/disks/data?snapshot=2026-01-31T12:00:00.0000000Z'
      dyskctl -o json attach mystore/vhds/vm.vhd --partscan --read-only
    """
    from blobfuse_dysk import attachment

    if create and size is None:
        raise UsageError("--create needs a size", remedy="add for example --size 32GiB")
    if size is not None and not create:
        raise UsageError("--size goes with --create", remedy="add --create, or leave --size out")
    if create and (read_only or disk.snapshot):
        raise UsageError("a new disk cannot be attached read-only", remedy="leave --create out")
    options = replace(
        connection_settings(credentials, endpoint, realm, allow_http),
        name=name,
        read_only=read_only or disk.snapshot is not None,
        break_lease=break_lease,
        lease_s=None if math.isinf(lease) else lease,
        lease_id=lease_id,
        sector_size=4096 if sector_size == "4096" else 512,
        partscan=partscan,
        io_timeout_s=None if math.isinf(io_timeout) else io_timeout,
        vhd=vhd,
        checksum=checksum,
        cache=cache,
        write_cache_size=write_cache_size,
        read_cache_size=read_cache_size,
        write_delay_s=write_delay,
        iops=iops,
        mbps=mbps,
    )
    attached = attachment.attach(disk, options) if size is None else _attach_or_create(disk, size, options)
    if settings(context).json:
        print_json(attachment_json(attached))
    else:
        print(attached.device)


def _attach_or_create(disk: DiskAddress, size: int, options: AttachOptions) -> Attachment:
    """An existing disk is attached as it is, whatever its size."""
    from blobfuse_dysk import attachment
    from blobfuse_dysk.cli.disks import create_disk

    try:
        return attachment.attach(disk, options)
    except NotFoundError:
        create_disk(disk, size, options.vhd == "yes", options)
    return attachment.attach(disk, options)


@click.command(cls=Verb)
@click.argument("target", metavar="NAME|DEVICE|DISK", shell_complete=complete_attachment)
@click.option(
    "--force", is_flag=True, help="Let go even if the service does not answer. Loses what is not written yet."
)
@click.pass_context
def detach(context: click.Context, target: str, force: bool) -> None:
    """Write everything out, let the disk go, remove its device. Returns when all of that is done.

    A device that is mounted or open is not detached: unmount it first.

    \b
    Examples:
      dyskctl detach data
      dyskctl detach /dev/loop0
      dyskctl detach mystore/disks/data
    """
    from blobfuse_dysk import attachment

    attachment.detach(target, force=force)
    if settings(context).json:
        print_json({"target": target, "detached": True})
