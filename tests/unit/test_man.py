"""The manual pages are well formed, and name every verb and option that there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from blobfuse_dysk.cli import frame
from blobfuse_dysk.cli.frame import SECTIONS, Verbs
from blobfuse_dysk.cli.main import root
from blobfuse_dysk.device.ipc import shapes, statefile
from blobfuse_dysk.mount.options import MOUNT_USAGE, UMOUNT_USAGE
from blobfuse_dysk.options import LIVE_OPTIONS, MOUNT_OPTIONS
from tests.conftest import need

MAN = Path(__file__).resolve().parents[2] / "packaging" / "man"
DYSKCTL = (MAN / "dyskctl.8").read_text()
MOUNT = (MAN / "mount.dysk.8").read_text()
VERBS = [verb for verbs in SECTIONS.values() for verb in verbs]
ORIGINAL = {verb: target for verb, (target, _) in frame._ORIGINAL.items()}  # verbs with other options behind -a or -d
STATES = shapes.values_of(statefile.StateSeen)
NOT_OURS = {"ro", "remount", "helper"}  # options of mount(8) that the page mentions


@pytest.mark.parametrize("page", sorted(path.name for path in MAN.iterdir()))
def test_a_page_is_well_formed(page: str) -> None:
    need(shutil.which("mandoc"), "mandoc is not installed")
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", MAN / page], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def options_of(command: click.Command | None) -> list[str]:
    """With those of the verbs below it."""
    assert command
    below = command.commands.values() if isinstance(command, Verbs) else []
    parameters = [parameter for each in (command, *below) for parameter in each.params]
    return [name for parameter in parameters if isinstance(parameter, click.Option) for name in parameter.opts]


def missing(options: list[str]) -> list[str]:
    return [name for name in options if not re.search(rf"\bFl {re.escape(name[1:])}(?![A-Za-z-])", DYSKCTL)]


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_is_in_the_page(verb: str) -> None:
    assert re.search(rf"^\.It Cm {verb}\b", DYSKCTL, re.MULTILINE)
    options = options_of(root.get_command(click.Context(root), verb))
    assert options
    assert not missing(options)


@pytest.mark.parametrize("verb", ORIGINAL)
def test_every_option_of_the_original_s_verbs_is_in_the_page(verb: str) -> None:
    assert not missing(options_of(frame._load(ORIGINAL[verb])))


def test_every_state_of_an_attachment_is_in_the_page() -> None:
    text = DYSKCTL.partition("The state of an attachment is\n")[2].partition("\n.It ")[0]
    assert re.findall(r"^\.Ql (\w+)$", text, re.MULTILINE) == [*STATES]


def test_the_page_has_no_option_that_no_verb_has() -> None:
    commands = [root, *(root.get_command(click.Context(root), verb) for verb in VERBS)]
    commands += [frame._load(target) for target in ORIGINAL.values()]
    known = {name for command in commands for name in options_of(command)} | {"--help"}
    named = {f"-{name}" for name in re.findall(r"\bFl ([A-Za-z-]+)", DYSKCTL)}
    assert named - known == set()


def test_the_page_has_no_mount_option_that_there_is_not() -> None:
    named = set(re.findall(r"\bCm ([a-z.-]+)=", MOUNT)) | set(re.findall(r"^\.Cm ([a-z.-]+)=$", MOUNT, re.MULTILINE))
    assert named - {*MOUNT_OPTIONS, *NOT_OURS} == set()
    assert len(named) > 15


@pytest.mark.parametrize("usage", [MOUNT_USAGE, UMOUNT_USAGE])
def test_flags_of_the_helpers_are_in_the_page(usage: str) -> None:
    flags = [letter for group in re.findall(r"\[-([a-zA-Z]+)", usage) for letter in group]
    assert flags
    for letter in flags:
        assert re.search(rf"\bFl [a-zA-Z]*{letter}", MOUNT), letter


@pytest.mark.parametrize("option", MOUNT_OPTIONS)
def test_every_mount_option_is_in_the_page(option: str) -> None:
    assert re.search(rf"\bCm {re.escape(option)}(=|\s)", MOUNT)


@pytest.mark.parametrize("option", LIVE_OPTIONS)
def test_page_and_help_of_set_name_what_can_be_set(option: str) -> None:
    (paragraph,) = re.findall(r"^\.It Cm set\b.*?(?=^\.It )", DYSKCTL, re.MULTILINE | re.DOTALL)
    assert re.search(rf"^\.Cm {option}\b", paragraph, re.MULTILINE)
    command = root.get_command(click.Context(root), "set")
    assert command and option in (command.help or "").partition("\n")[0]
