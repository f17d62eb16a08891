"""What dyskctl prints: plain tables for people and pipes, JSON for programs, one line for an error."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from blobfuse_dysk.disk import format_size
from blobfuse_dysk.printable import printable, printable_json

if TYPE_CHECKING:
    from blobfuse_dysk.attachment import Attachment

__all__ = [
    "attachment_json",
    "hold_warnings",
    "print_error",
    "print_json",
    "print_pairs",
    "print_table",
    "show_warnings",
    "size_text",
    "warn",
]


_EXPONENTS = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}


def print_json(value: object) -> None:
    """One JSON value, indented, in UTF-8."""
    print(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as their content; None is a dash. Never cut or wrapped, so that it can be piped."""
    lines = [list(headers)] + [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_pairs(pairs: dict[str, object], indent: str = "", *, as_given: bool = False) -> None:
    """A value a line, with the names in a column; a dictionary is indented below its name.

    as_given: the names are not ours: a blob's metadata, which is searched for as it is spelled.
    """
    width = max((len(name) for name, value in pairs.items() if not isinstance(value, dict) or not value), default=0)
    for name, value in pairs.items():
        label = printable(name) if as_given else name.replace("_", " ")
        if isinstance(value, dict) and value:
            print(f"{indent}{label}:")
            print_pairs(value, indent + "  ", as_given=as_given or name == "metadata")
        else:
            print(f"{indent}{(label + ':').ljust(width + 1)} {printable(_plain(value))}")


def print_error(message: str, remedy: str | None, *, as_json: bool) -> None:
    """One line on standard error: what, then what to do. With JSON an object with the keys error and remedy."""
    if as_json:
        text = printable_json(json.dumps({"error": message, "remedy": remedy}, ensure_ascii=False))
    else:
        text = _one_line(f"dyskctl: {message}: {remedy}" if remedy else f"dyskctl: {message}")
    print(text, file=sys.stderr)


def warn(message: str) -> None:
    """One line on standard error that does not change the result."""
    print(_one_line(f"dyskctl: warning: {message}"), file=sys.stderr)


class _Warnings(logging.Handler):
    """Shows what the layers below warn of; they never print."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def show_warnings() -> None:
    """From now on print the package's log messages from WARNING on, a line each."""
    logger = logging.getLogger("blobfuse_dysk")
    if not any(isinstance(handler, _Warnings) for handler in logger.handlers):
        logger.addHandler(_Warnings(logging.WARNING))


@contextlib.contextmanager
def hold_warnings() -> Iterator[None]:
    """Print none of these meanwhile, because the caller says the same in its own words."""
    logger = logging.getLogger("blobfuse_dysk")
    held = [handler for handler in logger.handlers if isinstance(handler, _Warnings)]
    nowhere = logging.NullHandler()  # without any handler logging prints by itself
    logger.addHandler(nowhere)
    for handler in held:
        logger.removeHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(nowhere)
        for handler in held:
            logger.addHandler(handler)


def attachment_json(attachment: Attachment) -> dict[str, object]:
    """The attachment as `-o json` shows it: a key a field."""
    return dataclasses.asdict(attachment)


def size_text(size: int) -> str:
    """`32GiB` where that is exact, else with the bytes behind: a disk's size must not be guessed from a rounded one."""
    text = format_size(size)
    number = text.rstrip("KMGTiB")
    exact = number.isdigit() and int(number) << _EXPONENTS[text.removeprefix(number)] == size
    return text if exact else f"{text} ({size} bytes)"


def _plain(value: object) -> str:
    if value is None or value in ([], {}, ""):
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
