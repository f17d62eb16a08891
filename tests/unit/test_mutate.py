"""tools/mutate: the lists beside the source fit it, and one that is wrong is refused. Its runs: tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutated import KILLED, SOURCE, SURVIVES, Project, project
from tools.mutatelib.mutants import MutantError, load

__all__ = ["project"]

ROOT = Path(__file__).resolve().parents[2]


def test_the_lists_of_this_project_fit_its_source() -> None:
    load(ROOT)


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
