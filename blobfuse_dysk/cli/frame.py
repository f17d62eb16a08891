"""The frame of dyskctl: which verbs there are, where their code is, and what every verb takes.

A verb's module is imported when the verb is used, so `dyskctl attach` does not wait for what `doctor` needs.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import click

from blobfuse_dysk import __version__
from blobfuse_dysk.cli.session import Settings
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.keyvalue import suggest

__all__ = ["SECTIONS", "Root", "Verb", "Verbs", "settings"]


# Heading -> verb -> (module.attribute below blobfuse_dysk.cli, what it does).
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Disks": {
        "create": ("verbs.disks.create", "Create a disk: a page blob of the size you ask for."),
        "delete": ("verbs.disks.delete", "Delete a disk and everything on it."),
        "resize": ("verbs.disks.resize", "Make a disk larger, in use or not, and what is mounted on it."),
        "tier": ("verbs.disks.tier", "Raise the tier of a disk in a Premium account."),
        "clone": ("verbs.copies.clone", "Copy a disk or a snapshot to a new disk."),
        "diff": ("verbs.copies.diff", "List what changed in a disk since a snapshot."),
        "snapshot": ("verbs.snapshots.snapshot", "Make, list or delete snapshots of a disk."),
    },
    "Attachments": {
        "attach": ("verbs.attachments.attach", "Attach a disk to this machine and print its device."),
        "detach": ("verbs.attachments.detach", "Write everything out, let the disk go, remove its device."),
        "list": ("verbs.show.list_", "List this machine's attachments, or the disks of a container."),
        "get": ("verbs.show.get", "Show one attachment, or a disk of the account."),
        "status": ("verbs.status.status", "Show what an attachment is doing: lease, requests, latencies."),
        "set": ("verbs.live.set_", "Change the timeout or the limits of an attachment in use."),
        "reload": ("verbs.live.reload", "Read the credential of an attachment in use again."),
        "upgrade": ("verbs.live.upgrade", "Replace the worker of an attachment by the installed version's."),
    },
    "For systemd": {
        "attach-file": ("verbs.boot.attach_file", "Attach the disk that a file in /etc/dysk/disks.d describes."),
        "shutdown": ("verbs.boot.shutdown", "Let the disks go while the machine shuts down."),
    },
    "Kubernetes": {
        "install-flexvolume": (
            "verbs.kubernetes.install_flexvolume",
            "Put the FlexVolume driver where the kubelet looks.",
        ),
    },
    "This tool": {
        "doctor": ("doctor.verb.doctor", "Check this machine, and an account, and say what to do."),
        "completion": ("verbs.tool.completion", "Print the script that completes dyskctl in your shell."),
        "version": ("verbs.tool.version", "Show versions."),
        "help": ("verbs.tool.help_", "Show what there is, or what a verb takes."),
    },
    "Verbs of the original dysk": {
        "mount": ("original.verbs.mount", "Attach an existing page blob (now: attach)."),
        "mount-file": ("original.verbs.mount_file", "Attach from the JSON that mount printed (now: attach)."),
        "unmount": ("original.verbs.unmount", "Detach (now: detach)."),
        "convert-pv": ("verbs.kubernetes.convert_pv", "Turn a disk into a Kubernetes PersistentVolume."),
    },
}
# Verbs that the original has too, with other words behind them: any of these options means the original's verb.
_ORIGINAL = {
    "create": ("original.disks.create", ("-a", "--account")),
    "delete": ("original.disks.delete", ("-a", "--account")),
    "get": ("original.disks.get", ("-d", "--device-name")),
}
_VERBS = {verb: target for section in SECTIONS.values() for verb, target in section.items()}


def settings(context: click.Context) -> Settings:
    """The settings of this run."""
    found = context.find_object(Settings)
    assert found is not None  # main() put them there
    return found


def _common_options() -> list[click.Option]:
    def set_output(context: click.Context, parameter: click.Parameter, value: Literal["table", "json"] | None) -> None:
        if value:
            settings(context).output = value

    def set_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            settings(context).debug = True

    return [
        click.Option(
            ["-o", "--output"],
            type=click.Choice(["table", "json"]),
            help="How to print the result. Default: table.",
            callback=set_output,
            expose_value=False,
            is_eager=True,
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            help="Show where an unexpected error came from.",
            callback=set_debug,
            expose_value=False,
            is_eager=True,
        ),
    ]


def _version_option() -> click.Option:
    def show(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            print(f"dyskctl {__version__}")
            context.exit()

    return click.Option(
        ["--version"], is_flag=True, help="Show the version.", callback=show, expose_value=False, is_eager=True
    )


class Verb(click.Command):
    """A verb: it takes the common options behind its own, and keeps the line breaks of its examples."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params.extend(_common_options())


class Verbs(click.Group):
    """A verb with verbs of its own; it takes the common options, as they do."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params.extend(_common_options())

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            near = suggest(args[0], self.commands)
            known = f"write {ctx.command_path} {' or '.join(self.commands)}"
            raise UsageError(f"unknown verb {ctx.info_name} {args[0]!r}", remedy=near or known)
        return super().resolve_command(ctx, args)


def _load(target: str) -> click.Command:
    module, _, attribute = target.rpartition(".")
    command = getattr(importlib.import_module(f"blobfuse_dysk.cli.{module}"), attribute)
    assert isinstance(command, click.Command)
    return command


class Root(click.Group):
    """dyskctl itself: knows its verbs from a table, and imports each when it is used."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params.extend([*_common_options(), _version_option()])

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _load(_VERBS[cmd_name][0]) if cmd_name in _VERBS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, rest = args[0], args[1:]
        if name not in _VERBS and not name.startswith("-"):
            near = suggest(name, _VERBS)
            raise UsageError(f"unknown verb {name!r}", remedy=near or f"see {ctx.command_path} --help")
        if name == "mount" and rest and "/" in rest[0] and not rest[0].startswith("-"):  # as mount(8) takes it
            directory = rest[1] if len(rest) > 1 else "DIR"
            raise UsageError(
                "this mount is the original dysk's, which attaches a disk by its options and mounts nothing",
                remedy=f"mount -t dysk {rest[0]} {directory}; or to attach it only: dyskctl attach {rest[0]}",
            )
        target, flags = _ORIGINAL.get(name, ("", ()))
        if any(word.startswith(flags) for word in rest):
            return name, _load(target), rest
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, verbs in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(verb, text) for verb, (_, text) in verbs.items()])
