"""Reads the plain command lines of the verbs that somebody waits for, without click, which takes longer than they do.

Plain is what cannot be read in two ways and is right: `attach` and `detach` with options that they have, in full, each
with a value where it takes one. All else, a mistake in a value included, is click's, which reads it from the beginning
and says what it says (cli/main.py); nothing has been done or printed by then. What both read they read alike:
tests/unit/test_cli_quick.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from blobfuse_dysk import environment
from blobfuse_dysk.cli.session import Settings, run
from blobfuse_dysk.disk import DiskAddress, parse_size
from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.options import ATTACH_OPTIONS, AttachOptions

__all__ = ["understood"]

_OUTPUT = ("-o", "--output")
_Read = Callable[[str], Any]
# Of each verb: switches and options by their words; (keyword of attaching.py, how the value is read).
_DETACH: dict[str, tuple[str, _Read | None]] = {
    "--all": ("everything", None),
    "--force": ("force", None),
    "--lose-data": ("lose_data", None),
}
_ATTACH: dict[str, tuple[str, _Read | None]] = {
    "--snapshot": ("snapshot", str),
    "--create": ("create", None),
    "--size": ("size", parse_size),
}


class _NotPlain(Exception):
    """It is click's."""


def understood(words: Sequence[str]) -> Callable[[], int] | None:
    """What runs this command line and returns its exit code; None if click is to read it."""
    if environment.completes("dyskctl"):
        return None
    try:
        return _plain(words)
    except (_NotPlain, DyskError, ValueError):
        return None


def _plain(words: Sequence[str]) -> Callable[[], int]:
    settings, left = Settings(), iter(words)
    verb = _next(left)
    while verb in _OUTPUT:
        _set_output(settings, _next(left))
        verb = _next(left)
    if verb == "attach":
        named = {f"--{key}": (row.field, None if row.is_switch else row.read) for key, row in ATTACH_OPTIONS.items()}
        given, targets = _read(left, {**named, **_ATTACH}, settings)
        if len(targets) != 1:
            raise _NotPlain
        disk = DiskAddress.parse(targets[0])
        more = {name: given.pop(name) for name, _ in _ATTACH.values() if name in given}
        options = AttachOptions(**given)

        def attach() -> int:
            from blobfuse_dysk.cli import attaching

            attaching.warn_of_secret(disk)
            attaching.attach(settings, disk, options, **more)
            return 0

        return lambda: run(lambda: _interruptible(attach), settings)
    if verb == "detach":
        given, targets = _read(left, _DETACH, settings)

        def detach() -> int:
            from blobfuse_dysk.cli import attaching

            return attaching.detach(settings, targets, **given)

        return lambda: run(lambda: _interruptible(detach), settings)
    raise _NotPlain


def _interruptible(command: Callable[[], int]) -> int:
    """With the line that click begins after a ^C."""
    try:
        return command()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise


def _read(
    words: Iterator[str], known: dict[str, tuple[str, _Read | None]], settings: Settings
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The options as keywords, and the arguments. Of an option given twice the last one counts."""
    given: dict[str, Any] = {}
    arguments: list[str] = []
    for word in words:
        if word in _OUTPUT:
            _set_output(settings, _next(words))
        elif not word.startswith("-"):
            arguments.append(word)
        else:
            key, equals, value = word.partition("=")
            if key not in known:
                raise _NotPlain
            name, read = known[key]
            if read is not None:
                given[name] = read(value if equals else _next(words))
            elif equals:
                raise _NotPlain
            else:
                given[name] = True
    return given, tuple(arguments)


def _set_output(settings: Settings, value: str) -> None:
    if value == "json":
        settings.output = "json"
    elif value == "table":
        settings.output = "table"
    else:
        raise _NotPlain


def _next(words: Iterator[str]) -> str:
    """The value of an option, or the verb. One that looks like an option may be meant as one."""
    word = next(words, None)
    if word is None or (word.startswith("-") and word not in _OUTPUT):
        raise _NotPlain
    return word
