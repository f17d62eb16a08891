"""A small project with mutants of every kind, for the tests of tools/mutate."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.mutatelib.__main__ import main

__all__ = ["EQUIVALENT", "KILLED", "KILLED_ELSEWHERE", "SOURCE", "SURVIVES", "TESTS", "Project", "project"]

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
