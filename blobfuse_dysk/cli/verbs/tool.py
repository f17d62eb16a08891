"""dyskctl completion, version and help."""

from __future__ import annotations

import platform

import click

from blobfuse_dysk import __version__
from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import print_json
from blobfuse_dysk.errors import DeviceError

__all__ = ["completion", "help_", "version"]


@click.command(cls=Verb)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes dyskctl in your shell: verbs, options, names of attachments.

    \b
    Examples:
      dyskctl completion bash > /etc/bash_completion.d/dyskctl
      dyskctl completion zsh > "${fpath[1]}/_dyskctl"
      dyskctl completion fish > ~/.config/fish/completions/dyskctl.fish
    """
    from click.shell_completion import get_completion_class

    maker = get_completion_class(shell)
    assert maker is not None  # click has these three
    try:
        script = maker(context.find_root().command, {}, "dyskctl", "_DYSKCTL_COMPLETE").source()
    except RuntimeError as error:  # click asks bash for its version
        raise DeviceError(f"no completion: {error}") from None
    # click has fish split its answers at every comma, which cuts descriptions short; only the first one is its own.
    print(script.replace('string split "," ', 'string split -m 1 "," '))


@click.command(cls=Verb)
@click.pass_context
def version(context: click.Context) -> None:
    """Show the versions of this tool, of Python, and of the kernel.

    \b
    Example:
      dyskctl version
    """
    found = {"blobfuse-dysk": __version__, "python": platform.python_version(), "kernel": platform.release()}
    if settings(context).json:
        print_json(found)
    else:
        for name, text in found.items():
            print(f"{name} {text}")


@click.command("help", cls=Verb)
@click.argument("verb", metavar="[VERB]", required=False)
@click.pass_context
def help_(context: click.Context, verb: str | None) -> None:
    """Show what dyskctl can do, or what a verb takes.

    \b
    Examples:
      dyskctl help
      dyskctl help attach
    """
    root = context.find_root()
    assert isinstance(root.command, click.Group)
    if verb is None:
        print(root.get_help())
        return
    name, command, _ = root.command.resolve_command(root, [verb])
    assert command is not None  # an unknown verb is refused there
    with click.Context(command, info_name=name, parent=root) as of_verb:
        print(command.get_help(of_verb))
