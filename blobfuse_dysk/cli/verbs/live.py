"""dyskctl set, reload and upgrade: what changes an attachment that is in use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import click

from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import print_error, print_json, warn
from blobfuse_dysk.cli.types import complete_attachment, credentials_option
from blobfuse_dysk.errors import DyskError, UsageError
from blobfuse_dysk.keyvalue import suggest
from blobfuse_dysk.options import ATTACH_OPTIONS, LIVE_OPTIONS

__all__ = ["reload", "set_", "upgrade"]

_MOST_TEXT = 64 << 10  # bytes; a worker takes no more (device/worker/controlserver.py)


def _targets(target: str | None, everything: bool) -> list[str]:
    """One name, or those of all attachments that live."""
    from blobfuse_dysk.attachment import attachments

    if (target is None) != everything:
        raise UsageError("give one attachment, or --all", remedy="dyskctl list shows them")
    if target is not None:
        return [target]
    return [found.name for found in attachments() if found.state != "dead"]


def _each(
    context: click.Context,
    names: list[str],
    everything: bool,
    one: Callable[[str], dict[str, object]],
    line: Callable[[dict[str, object]], str],
) -> None:
    """Do it for each; with --all a failure does not keep the others from it. Prints a line each, or a JSON list."""
    as_json = settings(context).json
    rows, failed = [], False
    for name in names:
        try:
            rows.append(one(name))
        except DyskError as error:
            if not everything:
                raise
            failed = True
            print_error(f"{name}: {error}", error.remedy, as_json=as_json)
            continue
        if not as_json:
            print(line(rows[-1]))
    if as_json:
        print_json(rows)
    if failed:
        context.exit(1)


def _parse(words: tuple[str, ...]) -> dict[str, float | None]:
    settings: dict[str, float | None] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if name not in LIVE_OPTIONS:
            near = None if name in ATTACH_OPTIONS else suggest(name, LIVE_OPTIONS)  # that one is known well
            known = ", ".join(LIVE_OPTIONS)
            raise UsageError(f"{name!r} cannot be set while a disk is attached", remedy=near or f"these can: {known}")
        if not equals:
            raise UsageError(f"{name} needs a value", remedy=f"write {name}=VALUE")
        settings[LIVE_OPTIONS[name].field] = LIVE_OPTIONS[name].read(text)
    return settings


@click.command("set", cls=Verb)
@click.argument("target", metavar="NAME|DEVICE|DISK", shell_complete=complete_attachment)
@click.argument("words", metavar="SETTING=VALUE...", nargs=-1, required=True)
@click.pass_context
def set_(context: click.Context, target: str, words: tuple[str, ...]) -> None:
    """Change io-timeout, iops, mbps or trace of an attachment while it is in use.

    io-timeout also counts for I/O that waits already. iops and mbps take a number, or none for no limit. With trace,
    each call of the device is logged for so long: offset, length, time, outcome; 0 ends it.

    \b
    Examples:
      dyskctl set data io-timeout=10m
      dyskctl set data io-timeout=never
      dyskctl set data iops=500 mbps=none
      dyskctl set data trace=30s
    """
    from blobfuse_dysk import live

    changed = _parse(words)
    for warning in live.change(target, **changed):
        warn(warning)
    if settings(context).json:
        print_json({"target": target, **changed})


@click.command(cls=Verb)
@click.argument("target", metavar="[NAME|DEVICE|DISK]", required=False, shell_complete=complete_attachment)
@click.option("--all", "everything", is_flag=True, help="All attachments of this machine.")
@credentials_option("From now on use this credential file.")
@click.option(
    "--credentials-fd",
    "descriptor",
    metavar="N|-",
    help="From now on use what this descriptor has, in the form of a credential file; -: standard input.",
)
@click.pass_context
def reload(
    context: click.Context, target: str | None, everything: bool, credentials: str | None, descriptor: str | None
) -> None:
    """Read the credential file of an attachment again, while the disk is in use.

    A file that changes is read again within seconds without this; here you see at once whether it can be taken. If it
    cannot, the old credential stays in use. What comes by a descriptor is kept in memory alone, and no file is looked
    at from then on.

    \b
    Examples:
      dyskctl reload data
      dyskctl reload data --credentials /etc/dysk/new.conf
      fetch-secret | dyskctl reload data --credentials-fd -
      dyskctl reload --all
    """
    from blobfuse_dysk import live

    if credentials is not None and descriptor is not None:
        raise UsageError("--credentials and --credentials-fd are given", remedy="give one of them")
    text = None if descriptor is None else _read_descriptor(descriptor)

    def one(name: str) -> dict[str, object]:
        return {"name": name, **live.reload_credential(name, credentials, text=text)}

    def line(row: dict[str, object]) -> str:
        expires = f", expires {row['expires']}" if row["expires"] else ""
        return f"{row['name']}: {row['what']}{expires}"

    _each(context, _targets(target, everything), everything, one, line)


def _read_descriptor(word: str) -> str:
    if word != "-" and not (word.isascii() and word.isdigit()):
        raise UsageError(f"--credentials-fd {word!r} is no descriptor", remedy="give a number, or - for standard input")
    try:
        with open(0 if word == "-" else int(word), "rb", closefd=False) as file:
            data = file.read(_MOST_TEXT + 1)
            if len(data) > _MOST_TEXT:
                raise UsageError(
                    f"--credentials-fd {word} has more than {_MOST_TEXT >> 10} KiB", remedy="it is no credential file"
                )
            return data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"what --credentials-fd {word} has is not text", remedy="write lines key = value") from None
    except (OSError, OverflowError, TypeError) as error:  # of a number that is none that open(3) takes
        why = error.strerror if isinstance(error, OSError) else "there is no such descriptor"
        raise UsageError(
            f"--credentials-fd {word} cannot be read: {why}", remedy="open it for the command: 3<FILE"
        ) from None


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

    def one(name: str) -> dict[str, object]:
        return dataclasses.asdict(live.upgrade(name))

    def line(row: dict[str, object]) -> str:
        return f"{row['name']}: version {row['after']} (was {row['before']})"

    _each(context, _targets(target, everything), everything, one, line)
