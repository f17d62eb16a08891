"""How the commands begin and end as processes: interrupts while loading, standard output that cannot take it all."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from blobfuse_dysk import commands

DYSKCTL = [sys.executable, "-c", "import sys; from blobfuse_dysk.commands import dyskctl; sys.exit(dyskctl())"]


def run(redirection: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *DYSKCTL, *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("program", "code"), [(commands.dyskctl, 130), (commands.mount_dysk, 8), (commands.umount_dysk, 8)]
)
def test_an_interrupt_while_loading_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: Callable[[], int], code: int
) -> None:
    class Interrupt:
        """Ctrl-C when a module is looked for."""

        def find_spec(self, name: str, path: object, target: object = None) -> None:
            raise KeyboardInterrupt

    for name in [name for name in sys.modules if name in ("blobfuse_dysk.cli.main", "blobfuse_dysk.mount.helper")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Interrupt(), *sys.meta_path])
    assert program() == code
    assert capsys.readouterr().err.endswith(": interrupted\n")


def test_the_project_s_scripts_are_these() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for place in project["scripts"].values():
        module, _, function = place.partition(":")
        assert callable(getattr(import_module(module), function))


def test_a_standard_output_that_is_closed_takes_nothing_and_is_no_error() -> None:
    done = run(">&-", "version")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_standard_output_that_is_full() -> None:
    done = run(">/dev/full", "version")
    assert done.returncode == 1
    assert done.stderr == "dyskctl: the result cannot be written: No space left on device: see where it goes\n"


def test_a_name_that_the_terminal_s_encoding_does_not_have() -> None:
    words = ("convert-pv", "mystore/disks/ü", "--size", "1GiB", "--secret-name", "x", "--name", "y")
    done = run("", *words, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xfc" in done.stdout
