"""dyskctl upgrade: what changes an attachment that is in use."""

from __future__ import annotations

import dataclasses

import click

from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import print_error, print_json
from blobfuse_dysk.cli.types import complete_attachment
from blobfuse_dysk.errors import DyskError, UsageError

__all__ = ["upgrade"]


def _targets(target: str | None, everything: bool) -> list[str]:
    """One name, or those of all attachments that live."""
    from blobfuse_dysk.attachment import attachments

    if (target is None) != everything:
        raise UsageError("give one attachment, or --all", remedy="dyskctl list shows them")
    if target is not None:
        return [target]
    return [found.name for found in attachments() if found.state != "dead"]


@click.command(cls=Verb)
@click.argument("target", metavar="[NAME|DEVICE|DISK]", required=False, shell_complete=complete_attachment)
@click.option("--all", "everything", is_flag=True, help="All attachments of this machine.")
@click.pass_context
def upgrade(context: click.Context, target: str | None, everything: bool) -> None:
    """Replace the worker process of an attachment by the installed version's, while the disk is in use.

    I/O pauses for a moment. If the new worker cannot start, the old one goes on. Package upgrades run it with --all.

    \b
    Examples:
      dyskctl upgrade data
      dyskctl upgrade --all
    """
    from blobfuse_dysk import live

    as_json = settings(context).json
    done, failed = [], False
    for name in _targets(target, everything):
        try:
            done.append(live.upgrade(name))
        except DyskError as error:
            if not everything:
                raise
            failed = True
            print_error(f"{name}: {error}", error.remedy, as_json=as_json)
            continue
        if not as_json:
            print(f"{done[-1].name}: version {done[-1].after} (was {done[-1].before})")
    if as_json:
        print_json([dataclasses.asdict(each) for each in done])
    if failed:
        context.exit(1)
