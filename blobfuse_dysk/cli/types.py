"""Option types and option groups that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from blobfuse_dysk.disk import DiskAddress, parse_duration, parse_size
from blobfuse_dysk.options import AttachOptions, Cache

__all__ = [
    "DISK",
    "DURATION",
    "GO_BOOL",
    "SIZE",
    "cache_options",
    "complete_attachment",
    "connection_options",
    "connection_settings",
    "parse_disk",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Disk(click.ParamType[DiskAddress]):
    """A DISK; mistakes are raised as our UsageError, which says what is wrong and how to write it."""

    name = "disk"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DiskAddress:
        return value if isinstance(value, DiskAddress) else parse_disk(value)


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_size(value)


class _Duration(click.ParamType[float]):
    """Seconds; `never` and `infinite` become infinity, because click takes None for "not given"."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        seconds = parse_duration(value, param.name.replace("_", "-") if param and param.name else "duration")
        return float("inf") if seconds is None else seconds


_GO_WORDS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}


class _GoBool(click.ParamType[bool]):
    """A boolean as the original's flag library takes it: `-v`, `-v=false`, `--vhd=true`."""

    name = "bool"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        if isinstance(value, bool):
            return value
        word = str(value).removeprefix("=").lower()
        if word not in _GO_WORDS:
            self.fail(f"{value!r} is neither true nor false", param, ctx)
        return _GO_WORDS[word]


DISK = _Disk()
SIZE = _Size()
DURATION = _Duration()
GO_BOOL = _GoBool()


def parse_disk(text: str) -> DiskAddress:
    """Read a DISK from the command line; warns of a SAS in it, because others can read command lines."""
    disk = DiskAddress.parse(text)
    if disk.sas:
        from blobfuse_dysk.cli.output import warn

        warn(
            "other users of this machine can read the SAS in the disk's URL from the process list: "
            f"put it into /etc/dysk/{disk.account}.conf instead"
        )
    return disk


def connection_options(function: _Function) -> _Function:
    """The options that say how to reach the account; `connection_settings` makes AttachOptions of them."""
    for option in reversed(
        [
            click.option(
                "--credentials",
                type=click.Path(),
                metavar="FILE",
                help="Credential file. Default: /etc/dysk/ACCOUNT.conf, then AZURE_STORAGE_* variables.",
            ),
            click.option("--endpoint", metavar="URL", help="Blob service to use, for private and emulated ones."),
            click.option("--realm", metavar="SUFFIX", help="The cloud's suffix. Default: core.windows.net."),
            click.option("--allow-http", is_flag=True, help="Allow plain HTTP to another machine. It hides nothing."),
        ]
    ):
        function = option(function)
    return function


def cache_options(function: _Function) -> _Function:
    """The options about caches and limits, named as the fields of AttachOptions but for their units."""
    for option in reversed(
        [
            click.option(
                "--cache",
                type=click.Choice(get_args(Cache)),
                default="readwrite",
                show_default=True,
                help="readwrite: writes return before the service has them, a flush after; readonly: read ahead only.",
            ),
            click.option("--write-cache-size", type=SIZE, default="64MiB", show_default=True, help="For readwrite."),
            click.option("--read-cache-size", type=SIZE, default="32MiB", show_default=True, help="For read-ahead."),
            click.option(
                "--write-delay",
                type=DURATION,
                default="1s",
                show_default=True,
                help="Written data is on its way after this long, although nobody asked for a flush.",
            ),
            click.option("--iops", type=int, metavar="N", help="At most so many requests a second. Default: no limit."),
            click.option("--mbps", type=float, metavar="N", help="At most so many 10^6 bytes a second."),
        ]
    ):
        function = option(function)
    return function


def connection_settings(
    credentials: str | None, endpoint: str | None, realm: str | None, allow_http: bool
) -> AttachOptions:
    """AttachOptions with just the connection set."""
    return AttachOptions(credentials=credentials, endpoint=endpoint, realm=realm, allow_http=allow_http)


def complete_attachment(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """For shell completion: names of this machine's attachments."""
    from blobfuse_dysk.environment import run_dir

    try:
        names = sorted(entry.name for entry in run_dir().iterdir() if entry.is_dir())
    except OSError:
        return []
    return [name for name in names if name.startswith(incomplete)]
