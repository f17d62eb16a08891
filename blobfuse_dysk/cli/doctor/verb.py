"""dyskctl doctor: runs the checks and prints what they found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import click

from blobfuse_dysk.cli.doctor.findings import Finding
from blobfuse_dysk.cli.doctor.machine import MACHINE_CHECKS
from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import hold_warnings, print_json
from blobfuse_dysk.cli.types import connection_options
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.printable import printable

__all__ = ["doctor"]


@click.command(cls=Verb)
@click.argument("target", metavar="[ACCOUNT[/CONTAINER[/BLOB]]]", required=False)
@click.option("--write-test", is_flag=True, help="Also make, lease, write and delete a page blob of 512 bytes there.")
@connection_options
@click.pass_context
def doctor(
    context: click.Context,
    target: str | None,
    write_test: bool,
    connection: AttachOptions,
) -> int:
    """Check this machine, and if you name one an account, a container or a disk; say what to do about each finding.

    Exits with 1 if anything fails.

    \b
    Examples:
      dyskctl doctor
      dyskctl doctor mystore
      dyskctl doctor mystore/disks --write-test
      dyskctl doctor mystore/disks/data
    """
    if write_test and (target is None or "/" not in target):
        raise UsageError("--write-test needs a container", remedy="name it: dyskctl doctor ACCOUNT/CONTAINER")
    found = []
    with hold_warnings():
        for finding in _findings(target, connection, write_test):
            found.append(finding)
            if not settings(context).json:
                _print(finding)
    if settings(context).json:
        print_json([dataclasses.asdict(finding) for finding in found])
    return 1 if any(finding.level == "fail" for finding in found) else 0


def _findings(target: str | None, options: AttachOptions, write_test: bool) -> Iterator[Finding]:
    for check in MACHINE_CHECKS:
        yield check()
    if target is not None:
        from blobfuse_dysk.cli.doctor.account import account_checks

        yield from account_checks(target, options, write_test=write_test)


def _print(finding: Finding) -> None:
    print(f"{finding.level:<4}  {finding.check}: {printable(finding.found)}", flush=True)
    if finding.remedy:
        print(f"      -> {printable(finding.remedy)}", flush=True)
