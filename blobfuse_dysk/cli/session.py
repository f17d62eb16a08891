"""One run of dyskctl, whoever read its words: what it prints to, and what becomes of an error.

Exit codes: 0 done; 1 it failed; 2 what was typed cannot be taken; 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from blobfuse_dysk import patience
from blobfuse_dysk.cli.output import print_error, show_warnings
from blobfuse_dysk.errors import DyskError

__all__ = ["EXIT_INTERRUPTED", "EXIT_USAGE", "Settings", "run"]

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@dataclass(slots=True)
class Settings:
    """What the options that every verb takes have set."""

    output: Literal["table", "json"] = "table"
    debug: bool = False

    @property
    def json(self) -> bool:
        return self.output == "json"


def run(command: Callable[[], int], settings: Settings) -> int:
    """Run it; return the exit code, its own or that of the error, which is printed. `command` may set the settings."""
    show_warnings()
    patience.tell_on_terminal("dyskctl")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name of a disk that the terminal's encoding does not have
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _guarded(command, settings)
        if sys.stdout:  # None if it was closed
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has left (`dyskctl list | head -1`). What is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print_error(f"the result cannot be written: {error.strerror}", "see where it goes", as_json=settings.json)
        return 1
    return code


def _guarded(command: Callable[[], int], settings: Settings) -> int:
    try:
        return command()
    except DyskError as error:
        print_error(str(error), error.remedy, as_json=settings.json)
        return error.exit_code
    except KeyboardInterrupt:
        print_error("interrupted", None, as_json=settings.json)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except PermissionError as error:
        print_error(f"not permitted: {error.strerror}: {error.filename}", "run it as root", as_json=settings.json)
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
            raise  # what was printed; `run` tells
        if settings.debug:
            raise
        what = f"unexpected {type(error).__name__}: {error}"
        remedy = "run it with --debug and report what it prints to the maintainers of blobfuse-dysk"
        print_error(what, remedy, as_json=settings.json)
        return 1
