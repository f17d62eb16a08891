"""dyskctl snapshot create, list and delete. What they do is in disks/snapshot.py."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from blobfuse_dysk.cli.attaching import parse_disk
from blobfuse_dysk.cli.frame import Verb, Verbs, settings
from blobfuse_dysk.cli.output import print_json, print_table, size_text, warn
from blobfuse_dysk.cli.types import TARGET, complete_attachment, connection_options
from blobfuse_dysk.disk import DiskAddress, names_disk, parse_duration
from blobfuse_dysk.errors import DyskError, UsageError
from blobfuse_dysk.options import AttachOptions

if TYPE_CHECKING:
    from blobfuse_dysk.disks.snapshot import Snapshot

__all__ = ["snapshot"]

_MOST_FREEZE_S = 300.0


@click.group(cls=Verbs)
def snapshot() -> None:
    """Make, list or delete snapshots of a disk.

    A snapshot is the disk as it was at one moment, and never changes. It costs what is written to the disk after it.

    \b
    Examples:
      dyskctl snapshot create data
      dyskctl snapshot list mystore/disks/data
      dyskctl attach 'mystore/disks/data?snapshot=2026-01-31T12:00:00.0000000Z'
      dyskctl snapshot delete 'mystore/disks/data?snapshot=2026-01-31T12:00:00.0000000Z'
    """


class _Freeze(click.ParamType[float]):
    name = "seconds"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        seconds = parse_duration(str(value), "freeze-timeout")
        if seconds is None or not 0 < seconds <= _MOST_FREEZE_S:
            raise UsageError(
                f"freeze-timeout {str(value)[:40]!r} is not between 0 and {_MOST_FREEZE_S:g} s",
                remedy="programs that write wait that long; --no-freeze freezes nothing",
            )
        return seconds


@snapshot.command(cls=Verb)
@click.argument("target", metavar="DISK|NAME|DEVICE", shell_complete=complete_attachment)
@click.option("--name", help="What to call it; kept with it.")
@click.option(
    "--freeze-timeout",
    type=_Freeze(),
    metavar="TIME",
    default="10s",
    show_default=True,
    help="How long a file system that is mounted on the disk may be kept from writing.",
)
@click.option("--no-freeze", is_flag=True, help="Do not freeze it: the snapshot is as after a power cut.")
@connection_options
@click.pass_context
def create(
    context: click.Context,
    target: str,
    name: str | None,
    freeze_timeout: float,
    no_freeze: bool,
    connection: AttachOptions,
) -> None:
    """Make a snapshot of a disk, attached or not, and print its address.

    What is mounted on it here is frozen for that moment, so that its file systems are clean in the snapshot
    (consistent: file-system). Where that cannot be, the snapshot is as after a power cut (consistent: crash), and says
    why; file systems with a journal survive that.

    \b
    Examples:
      dyskctl snapshot create data
      dyskctl snapshot create mystore/disks/data --name before-upgrade
      dyskctl snapshot create data --freeze-timeout 3s
    """
    from blobfuse_dysk.disks.snapshot import NAME, create_snapshot

    made = create_snapshot(
        parse_disk(target) if names_disk(target) else target,
        connection,
        freeze_s=None if no_freeze else freeze_timeout,
        metadata={} if name is None else {NAME: name},
    )
    if settings(context).json:
        print_json(_row(made))
        return
    print(made.disk)
    if made.consistent == "crash" and not no_freeze:
        warn(f"it is as after a power cut: {made.why}")


@snapshot.command("list", cls=Verb)
@click.argument("disk", metavar="DISK|NAME|DEVICE", type=TARGET)
@connection_options
@click.pass_context
def list_(context: click.Context, disk: DiskAddress, connection: AttachOptions) -> None:
    """List the snapshots of a disk, oldest first.

    \b
    Examples:
      dyskctl snapshot list data
      dyskctl snapshot list mystore/disks/data -o json
    """
    from blobfuse_dysk.disks.look import get_disk
    from blobfuse_dysk.disks.snapshot import list_snapshots

    found = list_snapshots(disk, connection)
    if not found:
        get_disk(replace(disk, snapshot=None), connection)  # raises if there is no such disk: its name may be mistyped
    if settings(context).json:
        print_json([_row(each) for each in found])
        return
    rows = [(each.time, size_text(each.size), each.name, each.consistent, each.why) for each in found]
    print_table(("TIME", "SIZE", "NAME", "CONSISTENT", "WHY"), rows)


@snapshot.command(cls=Verb)
@click.argument("disk", metavar="DISK|NAME|DEVICE?snapshot=TIME", type=TARGET)
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
@click.pass_context
def delete(context: click.Context, disk: DiskAddress, yes: bool, connection: AttachOptions) -> None:
    """Delete a snapshot. Its disk, and its other snapshots, stay as they are.

    Asks on a terminal; a script says --yes.

    \b
    Examples:
      dyskctl snapshot delete 'data?snapshot=2026-01-31T12:00:00.0000000Z'
      dyskctl snapshot delete 'mystore/disks/data?snapshot=2026-01-31T12:00:00.0000000Z' --yes
    """
    from blobfuse_dysk.disks.snapshot import check_deletable, delete_snapshot

    check_deletable(disk)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("delete asks on a terminal, and there is none", remedy="add --yes if you mean it")
        if not click.confirm(f"Delete {disk}?", err=True):
            raise DyskError("nothing was deleted")
    delete_snapshot(disk, connection)
    if settings(context).json:
        print_json({"disk": str(disk), "deleted": True})
    else:
        print(f"deleted {disk}")


def _row(made: Snapshot) -> dict[str, object]:
    return {
        "disk": str(made.disk),
        "time": made.time,
        "size": made.size,
        "name": made.name,
        "consistent": made.consistent,
        "why": made.why,
        "metadata": made.metadata,
    }
