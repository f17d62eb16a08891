"""The manual pages are well formed, and name every verb and option that there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from blobfuse_dysk.cli.frame import SECTIONS
from blobfuse_dysk.cli.main import root
from blobfuse_dysk.mountoptions import DYSK_OPTIONS
from tests.conftest import need

MAN = Path(__file__).resolve().parents[2] / "packaging" / "man"
DYSKCTL = (MAN / "dyskctl.8").read_text()
MOUNT = (MAN / "mount.dysk.8").read_text()
OWN_VERBS = [verb for title, verbs in SECTIONS.items() if "original" not in title for verb in verbs]


@pytest.mark.parametrize("page", ["dyskctl.8", "mount.dysk.8"])
def test_a_page_is_well_formed(page: str) -> None:
    need(shutil.which("mandoc"), "mandoc is not installed")
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", MAN / page], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("verb", OWN_VERBS)
def test_every_option_of_a_verb_is_in_the_page(verb: str) -> None:
    assert re.search(rf"^\.It Cm {verb}\b", DYSKCTL, re.MULTILINE)
    command = root.get_command(click.Context(root), verb)
    assert command
    options = [name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts]
    missing = [name for name in options if not re.search(rf"\bFl {re.escape(name[1:])}(?![a-z-])", DYSKCTL)]
    assert options
    assert not missing


@pytest.mark.parametrize("verb", [verb for verbs in SECTIONS.values() for verb in verbs])
def test_every_verb_is_in_the_page(verb: str) -> None:
    assert re.search(rf"^\.(It )?Cm {verb}\b", DYSKCTL, re.MULTILINE)


@pytest.mark.parametrize("option", DYSK_OPTIONS)
def test_every_mount_option_is_in_the_page(option: str) -> None:
    assert re.search(rf"\bCm {re.escape(option)}(=|\s)", MOUNT)
