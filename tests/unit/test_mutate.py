"""tools/mutate: the lists beside the source fit it, and a project with mutants of every kind is judged rightly."""

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
from tools.mutatelib.__main__ import main
from tools.mutatelib.mutants import MutantError, load

ROOT = Path(__file__).resolve().parents[2]

SOURCE = """\
import sys
from pathlib import Path

def larger(a: int, b: int) -> int:
    if a > b:
        return a
    return b

def where() -> str:
    return str(Path(sys.prefix))
"""
# The second test sees the mutant through a program of its own, as a holder and its worker are.
TESTS = """\
import subprocess
import sys
from blobfuse_dysk.thing import larger

def test_larger():
    assert larger(2, 1) == 2

def test_in_a_process_of_its_own():
    program = "import blobfuse_dysk.thing as thing; print(thing.larger(1, 2), thing.where())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "2"
"""
# A daemon, as a holder is: in a session of its own, and nobody waits for it.
SLOW = """\
import subprocess
import sys
import time

def test_slow():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "TOKEN"], start_new_session=True)
    time.sleep(600)
"""
KILLED = """
[[mutant]]
id = "TH01"
means = "the smaller one comes"
loses_data = true
old = '''
    if a > b:
'''
new = '''
    if a < b:
'''
"""
KILLED_ELSEWHERE = """
[[mutant]]
id = "TH02"
means = "the first comes, whichever is larger"
loses_data = true
old = '''
    return b
'''
new = '''
    return a
'''
"""
SURVIVES = """
[[mutant]]
id = "TH03"
means = "it tells another place"
loses_data = false
old = '''
    return str(Path(sys.prefix))
'''
new = '''
    return str(Path(sys.prefix) / "x")
'''
"""
EQUIVALENT = """
[[mutant]]
id = "TH04"
means = "of two that are equal the other one comes"
loses_data = false
equivalent = "equal numbers are the same"
old = '''
    if a > b:
'''
new = '''
    if a >= b:
'''
"""


class Project:
    """A small project of the same shape as this one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / "blobfuse_dysk" / "thing.py"
        self.list = root / "blobfuse_dysk" / "thing.mutants.toml"
        self.test = root / "tests" / "test_thing.py"
        for path, text in (
            (self.source, SOURCE),
            (self.test, TESTS),
            (root / "blobfuse_dysk" / "__init__.py", ""),
            (root / "pyproject.toml", '[tool.pytest.ini_options]\npythonpath = ["."]\n'),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def write(self, *mutants: str, tests: str = '["tests/test_thing.py"]') -> None:
        self.list.write_text(f"tests = {tests}\n" + "".join(mutants))

    def run(self, *words: str) -> int:
        return main(["--root", str(self.root), *words])


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def runnable(project: Project) -> Project:
    need(os.geteuid() == 0, "it mounts the copy over the tree, which takes root")
    return project


def test_the_lists_of_this_project_fit_its_source() -> None:
    load(ROOT)


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (KILLED.replace("a > b", "b > a"), "TH01: 'old' is not in blobfuse_dysk/thing.py"),
        (KILLED.replace("    if a > b:", "    return"), "'old' is not in"),  # no whole line
        (KILLED.replace("    if a > b:", "").replace("\n\n", "\n"), "'old' is empty"),
        (KILLED.replace("a < b", "a > b"), "TH01: 'old' and 'new' are the same"),
        (KILLED.replace("a < b:", "a < b"), "does not compile"),
        (KILLED + KILLED, "TH01 is in blobfuse_dysk/thing.py, too"),
        (KILLED.replace('"TH01"', '"thing-1"'), "an id is two or three capitals and a number"),
        (KILLED.replace("loses_data", "looses_data"), "unknown key 'looses_data'"),
        (KILLED.replace("loses_data = true", ""), "'loses_data' is missing"),
        (KILLED.replace("= true", "= 1"), "'loses_data' is no bool"),
        (KILLED.replace("the smaller one comes", " "), "'means' is empty"),
        (KILLED + 'equivalent = ""\n', "'equivalent' is empty"),
        (KILLED + 'tests = ["tests/test_gone.py"]\n', "there is no test 'tests/test_gone.py'"),
        (KILLED + "tests = []\n", "'tests' is empty"),
        (KILLED + "= 1\n", "not TOML"),
        ("mutant = [1]\n", "a mutant is a table"),
        ("", "'mutant' is missing"),
    ],
)
def test_a_list_that_is_wrong(text: str, message: str, project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.write(text)
    assert project.run("--check") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_old_must_be_there_once(project: Project) -> None:
    project.source.write_text(SOURCE + SOURCE.replace("larger", "greater"))
    project.write(KILLED)
    with pytest.raises(MutantError, match="'old' is 2 times in"):
        load(project.root)


def test_a_list_without_its_source(project: Project) -> None:
    project.write(KILLED)
    project.source.unlink()
    with pytest.raises(MutantError, match=r"there is no thing\.py beside it"):
        load(project.root)


def test_check_show_and_choice(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.write(KILLED, SURVIVES)
    assert project.run("--check") == 0
    assert capsys.readouterr().out == "2 mutants in 1 files\n"
    assert project.run("--show", "TH01") == 0
    shown = capsys.readouterr().out
    assert "-    if a > b:\n+    if a < b:\n" in shown
    assert project.run("--list", "--file", str(project.source), "--id", "TH03") == 0
    assert "TH01" not in capsys.readouterr().out
    for words in (["--show", "TH99"], ["--list", "--file", str(project.test)]):
        assert project.run(*words) == 2
        assert "there " in capsys.readouterr().err


def test_lines_in_place_of_which_nothing_comes(project: Project) -> None:
    project.write(KILLED.replace("    if a < b:\n", "").replace("    if a > b:\n", "    if a > b:\n        return a\n"))
    assert load(project.root)[0].mutated == SOURCE.replace("    if a > b:\n        return a\n", "")
