"""dyskctl clone and diff: a disk copied to a new one, and what changed in it. What they do is in disks/."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import click

from blobfuse_dysk.cli.attaching import parse_target
from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import print_json, size_text, warn
from blobfuse_dysk.cli.progress import ProgressShown
from blobfuse_dysk.cli.types import DISK, SIZE, TARGET, connection_options
from blobfuse_dysk.disk import DiskAddress, check_snapshot, format_size
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import ATTACH_OPTIONS, AttachOptions
from blobfuse_dysk.printable import printable_json

__all__ = ["clone", "diff"]


@click.command(cls=Verb)
@click.argument("source", type=TARGET)
@click.argument("target", type=DISK)
@click.option("--size", type=SIZE, help="Size of the clone's device, if it is to be larger than the source's.")
@click.option("--tier", metavar="TIER", help="Tier of the clone in a premium account: P4 to P80.")
@click.option("--no-wait", is_flag=True, help="Return when the service has begun to copy. Within one account only.")
@click.option("--abort", is_flag=True, help="Give an unfinished clone up: nothing is left of it.")
@click.option(
    "--source-credentials", metavar="FILE", help="Credential file of the source's account, if that is another one."
)
@click.option(
    "--source-endpoint", metavar="URL", help="The blob service of the source's account, if it is another one."
)
@connection_options
@click.pass_context
def clone(
    context: click.Context,
    source: DiskAddress,
    target: DiskAddress,
    size: int | None,
    tier: str | None,
    no_wait: bool,
    abort: bool,
    source_credentials: str | None,
    source_endpoint: str | None,
    connection: AttachOptions,
) -> None:
    """Copy a disk or a snapshot to a new disk, in the same account or in another one.

    SOURCE may be the name or device of what is attached here.
    A disk that is attached somewhere is cloned as it is at this moment, from a snapshot that is deleted afterwards.
    TARGET must not exist. Until it is complete it cannot be attached; the same command again goes on with one that was
    left unfinished. Between accounts, only what is in use of the disk is copied, from service to service.

    \b
    Examples:
      dyskctl clone data mystore/disks/copy
      dyskctl clone 'mystore/disks/data?snapshot=2026-01-31T12:00:00.0000000Z' mystore/disks/old --size 64GiB
      dyskctl clone mystore/disks/data farstore/disks/data
      dyskctl clone mystore/disks/data farstore/disks/data --abort
    """
    from blobfuse_dysk.disks import clone as clones

    elsewhere = source.account != target.account
    given = source_credentials or source_endpoint
    if given and not elsewhere:
        raise UsageError(
            "source and target are of one account, so there is one credential",
            remedy="use --credentials and --endpoint",
        )
    far = connection
    if elsewhere:
        endpoint = source_endpoint and ATTACH_OPTIONS["endpoint"].read(source_endpoint)
        far = replace(connection, credentials=source_credentials, endpoint=endpoint)
    if abort:
        if size is not None or tier or no_wait:
            raise UsageError("--abort takes nothing besides how to reach the accounts", remedy="leave the others out")
        clones.abort_clone(target, connection, source_options=far)
        if settings(context).json:
            print_json({"disk": str(target), "aborted": True})
        else:
            print(f"gave up the clone {target}; nothing of it is left")
        return
    if no_wait and elsewhere:
        raise UsageError(
            "a clone in another account needs this command until it is complete", remedy="leave --no-wait out"
        )
    try:
        with ProgressShown(f"cloning {source}") as shown:
            made = clones.clone(
                source,
                target,
                far,
                connection,
                size=size,
                tier=tier,
                wait=not no_wait,
                progress=lambda progress: shown(progress.done, progress.total),
            )
    except KeyboardInterrupt:
        if elsewhere:
            warn(f"what was cloned stays as {target}: the same command goes on with it, --abort added gives it up")
        raise
    if settings(context).json:
        print_json(
            {
                "disk": str(target),
                "source": made.source,
                "size": made.size,
                "blob_size": made.blob_size,
                "complete": made.complete,
                "snapshot_made": made.temporary,
            }
        )
    elif made.complete:
        print(f"cloned {made.source} to {target}, {size_text(made.size)}")
    else:
        print(f"the service copies {made.source} to {target}: the same command without --no-wait waits for the end")


@click.command(cls=Verb)
@click.argument("disk", metavar="DISK|NAME|DEVICE", type=TARGET)
@click.option("--from", "since", metavar="SNAPSHOT", required=True, help="The older snapshot: its time.")
@click.option("--to", "until", metavar="SNAPSHOT", help="A newer one: its time. Default: the disk as it is now.")
@connection_options
@click.pass_context
def diff(context: click.Context, disk: DiskAddress, since: str, until: str | None, connection: AttachOptions) -> None:
    """List what changed in a disk since a snapshot: the ranges a backup has to read again, and those that were cleared.

    Offsets and lengths are bytes of the device. A range counts as changed if it was written, even with the same bytes;
    a cleared one reads as zeros. Of a disk that is being written to, take a snapshot, and compare with that.

    \b
    Examples:
      dyskctl diff data --from 2026-01-31T12:00:00.0000000Z
      dyskctl diff mystore/disks/data --from 2026-01-31T12:00:00.0000000Z --to 2026-02-01T12:00:00.0000000Z -o json
    """
    from blobfuse_dysk.disks.ranges import changed_ranges

    if until is not None and disk.snapshot:
        raise UsageError("the newer snapshot is named twice", remedy="leave --to or ?snapshot= out")
    before = _time(since, disk)
    newer = disk if until is None else replace(disk, snapshot=_time(until, disk))
    ranges = changed_ranges(newer, before, connection)
    if settings(context).json:
        _print_json(newer, before, ranges)
    else:
        _print_table(ranges)


def _time(text: str, disk: DiskAddress) -> str:
    """The time of a snapshot that was named by it, or as DISK?snapshot=TIME, or with the name of an attachment."""
    name, mark, time = text.rpartition("?snapshot=")
    if mark and parse_target(name).key != replace(disk, snapshot=None).key:
        raise UsageError(f"{text} is no snapshot of {replace(disk, snapshot=None)}", remedy="name one of its own")
    check_snapshot(time)
    return time


def _print_table(ranges: Iterable[tuple[int, int, bool]]) -> None:
    """Line by line, as they come; what it comes to at the end."""
    print(f"{'OFFSET':>14}  {'LENGTH':>14}  CHANGE")
    counts, sizes = [0, 0], [0, 0]
    for offset, length, cleared in ranges:
        counts[cleared] += 1
        sizes[cleared] += length
        print(f"{offset:>14}  {length:>14}  {'cleared' if cleared else 'written'}")
    told = [f"{format_size(size)} in {count} ranges" for size, count in zip(sizes, counts, strict=True)]
    print(f"written: {told[0]}; cleared: {told[1]}")


def _print_json(disk: DiskAddress, since: str, ranges: Iterable[tuple[int, int, bool]]) -> None:
    """One object, whose list of ranges is written as it comes; cut off where an error ends it."""
    head = {"disk": str(replace(disk, snapshot=None)), "from": since, "to": disk.snapshot}
    print(
        "{\n" + "".join(f"  {_text(name)}: {_text(value)},\n" for name, value in head.items()) + '  "ranges": [', end=""
    )
    sizes, comma = [0, 0], ""
    for offset, length, cleared in ranges:
        sizes[cleared] += length
        print(comma + "\n    " + _text({"offset": offset, "length": length, "cleared": cleared}), end="")
        comma = ","
    print(f'\n  ],\n  "written": {sizes[0]},\n  "cleared": {sizes[1]}\n}}')


def _text(value: object) -> str:
    return printable_json(json.dumps(value, ensure_ascii=False))
