"""Which programs a holder starts when its worker asks for an upgrade, and what it says of the others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from blobfuse_dysk.device.attacher.launch import worker_command, worker_path
from blobfuse_dysk.device.holder import program
from blobfuse_dysk.device.ipc.messages import Program
from tests.conftest import need

NOBODY = 65534


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another installation, root's."""
    need(os.geteuid() == 0, "files of root are made")
    worker = tmp_path / "other" / "blobfuse_dysk" / "device" / "worker" / "worker.py"
    worker.parent.mkdir(parents=True)
    worker.write_text("")
    return worker


def command(worker: Path | str, *, path: str = "/usr/lib", interpreter: str = sys.executable) -> Program:
    argv = [interpreter, "-S", "-P", "-s", str(worker), "--name", "data"]
    return {"worker": argv, "environment": {"PYTHONPATH": path}}


def refusal(asked: Program) -> str:
    with pytest.raises(PermissionError) as caught:
        program.check(asked, "data")
    return str(caught.value.strerror)


def test_what_dyskctl_of_this_installation_asks_for_is_started() -> None:
    program.check({"worker": worker_command("data"), "environment": {"PYTHONPATH": worker_path()}}, "data")


def test_another_installation_of_root_is_started(other: Path) -> None:
    program.check(command(other, path=f"{other.parents[3]}:/usr/lib/no_such.zip"), "data")


@pytest.mark.parametrize(
    "argv",
    [
        ["-c", "import os", "--name", "data"],
        ["-S", "-P", "-s", "-c", "import os"],
        ["-S", "-P", "-s", "WORKER", "--name", "other"],
        ["-S", "-s", "-P", "WORKER", "--name", "data"],
        ["-S", "-P", "-s", "WORKER", "--name", "data", "--more"],
        ["-i", "-P", "-s", "WORKER", "--name", "data"],
    ],
)
def test_only_the_arguments_of_a_worker(other: Path, argv: list[str]) -> None:
    argv = [str(other) if word == "WORKER" else word for word in argv]
    asked: Program = {"worker": [sys.executable, *argv], "environment": {"PYTHONPATH": "/usr/lib"}}
    assert refusal(asked) == "these are not the arguments of a worker"


def test_a_script_of_root_that_is_no_worker(other: Path) -> None:
    script = other.with_name("script.py")
    script.write_text("")
    assert refusal(command(script)) == f"{script} is no worker"


def test_another_interpreter(other: Path) -> None:
    assert "another interpreter than the holder's" in refusal(command(other, interpreter="/bin/sh"))


def test_the_same_interpreter_by_a_link_of_somebody_else(other: Path, tmp_path: Path) -> None:
    """Beside it there could be a pyvenv.cfg, and the link could be another one a moment later."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    link = theirs / "python"
    link.symlink_to(os.path.realpath(sys.executable))
    os.chown(theirs, NOBODY, NOBODY)
    assert f"{theirs} belongs to user id {NOBODY}" in refusal(command(other, interpreter=str(link)))


@pytest.mark.parametrize("above", range(5))
def test_a_program_that_somebody_else_could_change(other: Path, above: int) -> None:
    """It, or any directory on the way."""
    for each in [other, *other.parents][above : above + 1]:
        os.chown(each, NOBODY, -1)
        assert f"{each} belongs to user id {NOBODY}" in refusal(command(other))
        os.chown(each, 0, -1)
        each.chmod(0o775)
        assert f"{each} can be written by others (mode 0775)" in refusal(command(other))


def test_a_program_behind_a_link_into_somebody_elses_directory(other: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    other.parents[3].rename(theirs)
    other.parents[3].symlink_to(theirs)
    program.check(command(other), "data")
    os.chown(theirs, NOBODY, NOBODY)
    assert f"{theirs} belongs to" in refusal(command(other))


def test_modules_that_somebody_else_could_write(other: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    for path in (f"{theirs}", f"/usr/lib:{theirs}", f"/usr/lib:{theirs}/not_there", "/usr/lib:relative", ""):
        refusal(command(other, path=path))


def test_modules_that_are_not_there_where_anybody_may_make_them(other: Path, tmp_path: Path) -> None:
    everybodys = tmp_path / "everybodys"
    everybodys.mkdir()
    everybodys.chmod(0o1777)
    assert "others could make it" in refusal(command(other, path=f"{everybodys}/modules"))
    (everybodys / "modules").mkdir()
    program.check(command(other, path=f"{everybodys}/modules"), "data")


def test_links_in_a_circle(other: Path, tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    assert "too many links" in refusal(command(other, path=str(circle)))


@pytest.mark.parametrize(
    ("after", "same"),
    [
        ('{"variables": {"A": "1"}, "credential": {"new": 1}, "later": 2}', True),
        ('{"variables": {"A": "1", "LD_PRELOAD": "x"}, "credential": {}}', False),
        ('{"variables": {}, "credential": {}}', False),
        ('{"credential": {}}', False),
        ("[]", False),
        ("{", False),
        ("", False),
    ],
)
def test_a_worker_does_not_choose_the_variables_of_roots_programs(after: str, same: bool) -> None:
    before = '{"variables": {"A": "1"}, "credential": {}}'
    fds = [os.memfd_create(name) for name in ("before", "after")]
    for fd, text in zip(fds, (before, after), strict=True):
        os.write(fd, text.encode())
    assert program.has_same_variables(*fds) == same
    for fd in fds:
        os.close(fd)
