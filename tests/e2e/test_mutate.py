"""tools/mutate runs tests in copies of the tree: what is killed, what survives, what is known, what is stopped."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.conftest import need
from tests.mutated import EQUIVALENT, KILLED, KILLED_ELSEWHERE, SURVIVES, TESTS, Project, project

__all__ = ["project"]

ROOT = Path(__file__).resolve().parents[2]

# A daemon, as a holder is: in a session of its own, and nobody waits for it.
SLOW = """\
import subprocess
import sys
import time

def test_slow():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "TOKEN"], start_new_session=True)
    time.sleep(600)
"""


GREEDY = """\
def test_greedy():
    bytearray(5 << 30)
"""


@pytest.fixture
def runnable(project: Project) -> Project:
    need(os.geteuid() == 0, "it mounts the copy over the tree, which takes root")
    return project


def test_each_kind_of_mutant_is_told(runnable: Project, capsys: pytest.CaptureFixture[str]) -> None:
    runnable.write(KILLED, KILLED_ELSEWHERE, SURVIVES, EQUIVALENT)
    before = {path: path.read_bytes() for path in runnable.root.rglob("*.*")}
    assert runnable.run() == 1
    out = capsys.readouterr().out
    assert "without a mutant: tests/test_thing.py passes" in out
    assert re.search(r"^TH01  killed  tests/test_thing.py::test_larger", out, re.MULTILINE)
    assert re.search(r"^TH02  killed  tests/test_thing.py::test_in_a_process_of_its_own", out, re.MULTILINE)
    assert re.search(r"^TH03  SURVIVED: it tells another place", out, re.MULTILINE)
    assert "| blobfuse_dysk/thing.py | 4 | 2 | 1 | 1 | 0 | 66 % | 2/2 |" in out
    assert "- TH04 blobfuse_dysk/thing.py:5: equal numbers are the same" in out
    assert "blobfuse_dysk/thing.py: 67% are killed, 95% are needed" in out
    assert {path: path.read_bytes() for path in before} == before, "the tree itself was touched"


def test_what_is_known_is_not_run_again_until_something_changes(
    runnable: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    runnable.write(KILLED)
    assert runnable.run() == 0
    assert "0 to do" in capsys.readouterr().out
    assert runnable.run() == 0
    assert "to do" not in capsys.readouterr().out
    assert runnable.run("--list") == 0
    assert capsys.readouterr().out == "TH01  blobfuse_dysk/thing.py:5  killed  the smaller one comes\n"
    assert runnable.run("--all", "--id", "TH01") == 0
    assert "0 to do" in capsys.readouterr().out
    runnable.test.write_text(TESTS.replace("larger(2, 1) == 2", "larger(1, 1) == 1"))
    assert runnable.run("--table") == 1
    assert "| 1 | 0 | 0 | 0 | 1 | 0 % | 0/1 |" in capsys.readouterr().out
    assert runnable.run() == 0
    assert "TH01  killed  tests/test_thing.py::test_in_a_process_of_its_own" in capsys.readouterr().out


def test_tests_that_fail_without_a_mutant_tell_nothing(runnable: Project, capsys: pytest.CaptureFixture[str]) -> None:
    runnable.test.write_text("def test_red():\n    assert False\n")
    runnable.write(KILLED)
    assert runnable.run() == 2
    assert "tests/test_thing.py does not pass without a mutant" in capsys.readouterr().err


def test_memory_has_a_bound(runnable: Project, capsys: pytest.CaptureFixture[str]) -> None:
    runnable.test.write_text(GREEDY)
    runnable.write(KILLED)
    assert runnable.run() == 2
    assert "MemoryError" in capsys.readouterr().err


def test_what_is_stopped_leaves_nothing_behind(runnable: Project, tmp_path: Path) -> None:
    token = uuid.uuid4().hex
    runnable.test.write_text(SLOW.replace("TOKEN", token))
    runnable.write(KILLED)
    copies = tmp_path / "t"
    copies.mkdir()
    command = [sys.executable, "-m", "tools.mutatelib", "--root", str(runnable.root)]
    environment = {**os.environ, "TMPDIR": str(copies)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not running(token) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert running(token)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped" in err
    assert not running(token)
    assert not list(copies.iterdir())


def running(token: str) -> bool:
    """Whether a process runs that has this in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if token.encode() in path.read_bytes():
                return True
    return False
