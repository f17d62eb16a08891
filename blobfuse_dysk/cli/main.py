"""dyskctl as click reads it: all verbs, help, completion, and what is wrong with a command line. See also quick.py."""

from __future__ import annotations

import itertools
import sys

import click

from blobfuse_dysk.cli.frame import Root
from blobfuse_dysk.cli.output import print_error
from blobfuse_dysk.cli.session import EXIT_USAGE, Settings, run
from blobfuse_dysk.keyvalue import suggest

__all__ = ["main", "root"]

_HELP = """Use Azure page blobs as disks of this machine.

A disk is named ACCOUNT/CONTAINER/BLOB, or by the blob's URL.

\b
  dyskctl create mystore/disks/data --size 32GiB
  dyskctl attach mystore/disks/data          # prints /dev/loop0
  mkfs.ext4 /dev/loop0 && mount /dev/loop0 /data
  dyskctl list
  umount /data && dyskctl detach data

All but the first in one step, and as a line for /etc/fstab:

\b
  mount -t dysk mystore/disks/data /data -o fstype=ext4
  mystore/disks/data  /data  dysk  _netdev,nofail,fstype=ext4  0 0

Credentials come from /etc/dysk/ACCOUNT.conf (mode 0600; account_key = ... or sas = ...) or from the AZURE_STORAGE_*
variables that the Azure CLI uses.
"""

root = Root(
    name="dyskctl",
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="VERB [ARGUMENTS]...",
    epilog="Every verb has --help with examples. The manual page is dyskctl(8).",
)


def main(arguments: list[str] | None = None) -> int:
    """Run dyskctl with these arguments (the process's own if None); returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    settings = Settings()
    if _asks_for_json(words):
        settings.output = "json"
    return run(lambda: _read_by_click(words, settings), settings)


def _read_by_click(words: list[str], settings: Settings) -> int:
    """Run the verb. What click says of the words is printed here; errors of the verb are for `run`."""
    try:
        result = root.main(words, prog_name="dyskctl", standalone_mode=False, obj=settings)
        return result if isinstance(result, int) else 0
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # private in some versions of click, missing in others
            print(error.format_message())
            return EXIT_USAGE
        message, remedy = _usage_message(error)
        print_error(message, remedy, as_json=settings.json)
        return EXIT_USAGE
    except click.ClickException as error:
        print_error(error.format_message(), None, as_json=settings.json)
        return 1
    except click.Abort:
        raise KeyboardInterrupt from None


def _usage_message(error: click.UsageError) -> tuple[str, str | None]:
    """Click's message as ours are written: no capital, no full stop; the remedy names the nearest or the help."""
    remedy = f"see {error.ctx.command_path if error.ctx else 'dyskctl'} --help"
    if isinstance(error, click.NoSuchOption):
        known = [name for parameter in error.ctx.command.params for name in parameter.opts] if error.ctx else []
        return f"unknown option {error.option_name}", suggest(error.option_name, known) or remedy
    message = error.format_message().rstrip(".").replace("Missing command", "Missing verb")
    return message[:1].lower() + message[1:], remedy


def _asks_for_json(words: list[str]) -> bool:
    """Whether -o json is among the words; known before they are parsed, for the errors of parsing."""
    apart = (("-o", "json"), ("--output", "json"))
    return any(pair in apart for pair in itertools.pairwise(words)) or bool({"--output=json", "-ojson"} & set(words))


if __name__ == "__main__":
    sys.exit(main())
