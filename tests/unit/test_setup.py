"""tools/setup: what it makes of programs that root runs. Its functions by themselves; nothing is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import need

SETUP = (Path(__file__).resolve().parents[2] / "tools" / "setup").read_text()


def call(function: str, *words: str | Path) -> str:
    """What a function of the script prints."""
    functions = re.findall(r"^[a-z_]+\(\) \{.*?^\}$", SETUP, re.M | re.S)
    script = "\n".join(["set -euo pipefail", *functions, '"$@"'])
    done = subprocess.run(
        ["bash", "-c", script, "bash", function, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("directory", ["short", "with a blank", "long" + "x" * 200])
def test_programs_run_isolated(tmp_path: Path, directory: str) -> None:
    """pip writes two kinds of first lines. A second time nothing more is changed."""
    place = tmp_path / directory
    place.mkdir()
    python = place / "python3"
    python.symlink_to(sys.executable)
    first = f"#!{python}\n"
    if len(first) > 127 or " " in str(python):
        quoted = f'"{python}"' if " " in str(python) else str(python)
        first = f"#!/bin/sh\n'''exec' {quoted} \"$0\" \"$@\"\n' '''\n"
    program = place / "dyskctl"
    program.write_text(f"{first}import os, sys\nprint(sys.flags.isolated, sys.argv[1:], os.environ['PYTHONPATH'])\n")
    program.chmod(0o755)
    for _ in range(2):
        call("isolate", program)
        done = subprocess.run(
            [program, "a b"], env={**os.environ, "PYTHONPATH": "/evil"}, capture_output=True, text=True, check=True
        )
        assert done.stdout == "1 ['a b'] /evil\n"


def test_a_clone_that_others_can_write_is_seen(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "only root can give files away")
    tmp_path = tmp_path.resolve()
    clone = tmp_path / "home" / "clone"
    (clone / "package").mkdir(parents=True)
    module = clone / "package" / "module.py"
    module.touch(0o644)
    (clone / "link").symlink_to("package")  # a link's own mode says nothing
    before = call("others_files", clone)
    for path, uid, mode in ((module, 1, 0o644), (module, 0, 0o664), (clone, 0, 0o777), (clone.parent, 1, 0o755)):
        was = path.stat().st_mode
        os.chown(path, uid, 0)
        path.chmod(mode)
        assert str(path) in call("others_files", clone).splitlines()
        os.chown(path, 0, 0)
        path.chmod(was)
    clone.parent.chmod(0o1777)
    assert call("others_files", clone) == before
