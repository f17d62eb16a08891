"""dyskctl list and get."""

from __future__ import annotations

import dataclasses

import click

from blobfuse_dysk.cli.attaching import parse_disk
from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import attachment_json, print_json, print_pairs, print_table, size_text, warn
from blobfuse_dysk.cli.types import complete_attachment, connection_options
from blobfuse_dysk.disk import DiskAddress, format_size, names_disk
from blobfuse_dysk.errors import NotFoundError, UsageError
from blobfuse_dysk.options import AttachOptions

__all__ = ["get", "list_"]

_SIZES = ("size", "blob_size", "allocated")


@click.command("list", cls=Verb)
@click.argument("targets", metavar="[NAME|DEVICE|DISK]...", nargs=-1, shell_complete=complete_attachment)
@click.option("--remote", metavar="ACCOUNT/CONTAINER", help="List the page blobs of a container instead.")
@click.option("--allocated", is_flag=True, help="With --remote: also what is allocated, which takes a request a disk.")
@connection_options
@click.pass_context
def list_(
    context: click.Context,
    targets: tuple[str, ...],
    remote: str | None,
    allocated: bool,
    connection: AttachOptions,
) -> int:
    """List this machine's attachments, or those named, or with --remote the disks of a container and who has them.

    Says of each that is not well why, since when, and what to do. Exits with 1 if one can never be written to again.

    \b
    Examples:
      dyskctl list
      dyskctl list data db
      dyskctl list --remote mystore/disks
      dyskctl -o json list
    """
    if remote is None:
        if connection != AttachOptions() or allocated:
            raise UsageError("an account's options go with --remote", remedy="add --remote ACCOUNT/CONTAINER")
        return _list_local(targets, settings(context).json)
    if targets:
        raise UsageError(f"{targets[0]!r} is one too many", remedy="leave out --remote, or what follows the container")
    _list_remote(remote, connection, settings(context).json, allocated)
    return 0


def _list_local(targets: tuple[str, ...], as_json: bool) -> int:
    from blobfuse_dysk import attachment

    found = [attachment.get(target) for target in targets] if targets else attachment.attachments()
    status = 1 if any(each.is_lost for each in found) else 0
    if as_json:
        print_json([attachment_json(each) for each in found])
        return status
    print_table(
        ["NAME", "DEVICE", "SIZE", "MODE", "STATE", "MOUNTPOINT", "DISK"],
        [
            [
                each.name,
                each.device,
                format_size(each.size),
                "ro" if each.read_only else "rw",
                each.state,
                ",".join(each.mountpoints) or None,
                each.disk,
            ]
            for each in found
        ],
    )
    for each in found:
        if each.trouble:
            warn(each.trouble)
    return status


def _list_remote(remote: str, options: AttachOptions, as_json: bool, allocated: bool) -> None:
    from blobfuse_dysk.disks.look import list_disks

    rows = list_disks(container_address(remote), options, allocated=allocated)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    extra = ["ALLOCATED"] if allocated else []
    print_table(
        ["SIZE", *extra, "LEASE", "HOLDER", "DISK"],
        [
            [
                format_size(row.size),
                *([format_size(row.allocated or 0)] if allocated else []),
                row.lease_state,
                row.holder,
                f"{row.disk} (unfinished clone)" if row.incomplete else row.disk,
            ]
            for row in rows
        ],
    )


def container_address(text: str) -> DiskAddress:
    """Read ACCOUNT/CONTAINER or the container's URL. The blob of the address stands for all and is not used."""
    base, mark, query = text.partition("?")
    base = base.rstrip("/")
    remedy = "write --remote ACCOUNT/CONTAINER"
    try:
        address = DiskAddress.parse(f"{base}/any{mark}{query}", what=f"container {base!r}")
    except UsageError as error:
        raise UsageError(str(error), remedy=remedy) from None
    if address.blob != "any":
        raise UsageError(f"{base} is a disk, not a container", remedy=remedy)
    return address


@click.command(cls=Verb)
@click.argument("target", metavar="NAME|DEVICE|DISK", shell_complete=complete_attachment)
@click.option("--in-account", is_flag=True, help="What the service says of the DISK, though it is attached here.")
@click.option("--allocated", is_flag=True, help="Of a disk of the account: also what is allocated of it.")
@connection_options
@click.pass_context
def get(context: click.Context, target: str, in_account: bool, allocated: bool, connection: AttachOptions) -> None:
    """Show one attachment. A DISK that is not attached here is looked up in the account: size, tier, who has it.

    \b
    Examples:
      dyskctl get data
      dyskctl -o json get /dev/loop0
      dyskctl get mystore/disks/data --in-account
    """
    from blobfuse_dysk import attachment

    found = None
    if not in_account:
        try:
            found = attachment.get(target)
        except NotFoundError:
            if not names_disk(target):
                raise
    shown = attachment_json(found) if found else _remote_disk(target, connection, allocated=allocated)
    if settings(context).json:
        print_json(shown)
    else:
        print_pairs(_readable(shown))


def _remote_disk(target: str, options: AttachOptions, *, allocated: bool) -> dict[str, object]:
    from blobfuse_dysk.disks.look import get_disk

    found = get_disk(parse_disk(target), options, allocated=allocated)
    return {**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)}, "disk": str(found.disk)}


def _readable(found: dict[str, object]) -> dict[str, object]:
    sizes = {name: size_text(size) for name in _SIZES if isinstance(size := found.get(name), int)}
    shown = {**found, **sizes}
    lease = found.get("lease")
    if isinstance(lease, dict) and lease and lease.get("seconds", 0) is None:
        shown["lease"] = {**lease, "seconds": "infinite"}
    return shown
