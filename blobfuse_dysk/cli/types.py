"""Option types and option groups that several verbs share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from blobfuse_dysk.cli.attaching import parse_disk, parse_target
from blobfuse_dysk.disk import DiskAddress, parse_size
from blobfuse_dysk.options import ATTACH_OPTIONS, AttachOptions, Option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = [
    "DISK",
    "GO_BOOL",
    "SIZE",
    "TARGET",
    "attach_options",
    "complete_attachment",
    "connection_options",
    "credentials_option",
]

_CONNECTION = ("credentials", "endpoint", "realm", "proxy", "allow-http")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Disk(click.ParamType[DiskAddress]):
    """A DISK; mistakes are raised as our UsageError, which says what is wrong and how to write it."""

    name = "disk"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DiskAddress:
        return value if isinstance(value, DiskAddress) else parse_disk(value)


class _Target(click.ParamType[DiskAddress]):
    """A DISK, or a name or device of an attachment, as the address of its disk."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DiskAddress:
        return value if isinstance(value, DiskAddress) else parse_target(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in complete_attachment(ctx, param, incomplete)]


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_size(value)


class _Value(click.ParamType[Any]):
    """The value of an option of the table; mistakes are raised in the table's words."""

    def __init__(self, option: Option) -> None:
        self.name = option.key
        self._option = option

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._option.read(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        if self._option.metavar == "FILE":
            return click.Path().shell_complete(ctx, param, incomplete)
        return [CompletionItem(word) for word in self._option.choices if word.startswith(incomplete)]


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
TARGET = _Target()
SIZE = _Size()
GO_BOOL = _GoBool()


def attach_options(function: _Function) -> _Function:
    """All options of an attachment; the parameters are the fields of AttachOptions."""
    return _options(function, tuple(ATTACH_OPTIONS))


def connection_options(function: _Function) -> _Function:
    """The options that say how to reach the account. The verb gets `connection`: AttachOptions with just these."""
    names = [ATTACH_OPTIONS[key].field for key in _CONNECTION]

    @functools.wraps(function)
    def packed(*words: Any, **given: Any) -> Any:
        return function(*words, connection=AttachOptions(**{name: given.pop(name) for name in names}), **given)

    return _options(cast(_Function, packed), _CONNECTION)


def credentials_option(help: str) -> Callable[[_Function], _Function]:
    """--credentials of a verb where it means more than how to reach the account."""
    return _option(replace(ATTACH_OPTIONS["credentials"], help=help))


def _options(function: _Function, keys: Sequence[str]) -> _Function:
    for key in reversed(keys):
        function = _option(ATTACH_OPTIONS[key])(function)
    return function


def _option(row: Option) -> Callable[[_Function], _Function]:
    if row.is_switch:
        return click.option(f"--{row.key}", row.field, is_flag=True, help=row.help)
    return click.option(
        f"--{row.key}",
        row.field,
        type=_Value(row),
        metavar=row.metavar,
        default=row.default,
        show_default=row.default is not None,
        help=row.help,
    )


def complete_attachment(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """For shell completion: names of this machine's attachments."""
    from blobfuse_dysk.environment import run_dir

    try:
        names = sorted(entry.name for entry in run_dir().iterdir() if entry.is_dir())
    except OSError:
        return []
    return [name for name in names if name.startswith(incomplete)]
