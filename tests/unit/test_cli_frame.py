"""dyskctl as a whole: options of every verb, errors, exit codes, help, completion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from blobfuse_dysk import __version__
from blobfuse_dysk.cli.frame import SECTIONS
from blobfuse_dysk.cli.main import main, root
from blobfuse_dysk.errors import BusyError, LeasedError
from tests.unit.cli_fakes import Machine, machine

__all__ = ["machine"]

VERBS = [verb for section in SECTIONS.values() for verb in section]
DYSKCTL = [sys.executable, "-m", "blobfuse_dysk.cli.main"]


@pytest.mark.parametrize("words", [["-o", "json", "list"], ["list", "-o", "json"], ["list", "--output=json"]])
def test_the_output_option_stands_before_or_behind_the_verb(machine: Machine, words: list[str]) -> None:
    assert machine.run(*words).out == "[]\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_the_common_options_and_has_help_with_an_example(machine: Machine, verb: str) -> None:
    result = machine.run(verb, "--help")
    assert result.code == 0
    assert "--output" in result.out and "--debug" in result.out
    assert f"dyskctl {verb}" in result.out.partition("Example")[2] or f"dyskctl -o json {verb}" in result.out


def test_help_lists_every_verb_without_importing_it() -> None:
    program = "import sys; from blobfuse_dysk.cli.main import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    for verb in VERBS:
        assert f"  {verb} " in done.stdout
    assert "blobfuse_dysk.cli.verbs.attachments" not in done.stdout


def test_without_a_verb_there_is_help_and_exit_code_2(machine: Machine) -> None:
    result = machine.run()
    assert result.code == 2
    assert "Usage: dyskctl" in result.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["atach", "x"], "dyskctl: unknown verb 'atach': did you mean attach"),
        (["frobnicate"], "dyskctl: unknown verb 'frobnicate': see dyskctl --help"),
        (["attach", "a/b", "--io-timout", "5"], "dyskctl: unknown option --io-timout: did you mean --io-timeout?"),
        (["attach", "a/b", "--cahce", "none"], "dyskctl: unknown option --cahce: did you mean --cache?\n"),
        (["list", "-o"], "dyskctl: option '-o' requires an argument: see dyskctl --help"),
        (["-o", "table"], "dyskctl: missing verb: see dyskctl --help"),
        (["list", "--zzz"], "dyskctl: unknown option --zzz: see dyskctl list --help"),
        (["attach"], "dyskctl: missing argument 'DISK': see dyskctl attach --help"),
        (
            ["attach", "mystore/data"],
            "dyskctl: disk 'mystore/data' is not complete: write it as ACCOUNT/CONTAINER/BLOB",
        ),
        (["attach", "m/d/b", "--lease", "soon"], "lease 'soon' is not a time"),
        (["attach", "mystore/disks/b", "--lease", "5"], "lease of 5 s: use 15 to 60 seconds, or infinite"),
        (["attach", "mystore/disks/b", "--sector-size", "1024"], "sector-size '1024' is not known: use 512 or 4096"),
        (["create", "mystore/disks/b", "--size", "1000"], "is not a multiple of 512 bytes"),
        (["create", "mystore/disks/b", "--size", "0"], "size is zero"),
        (["create", "mystore/disks/b", "--size", "9TiB"], "above 8 TiB"),
        (["create", "mystore/disks/b", "--size", "lots"], "is not a number with a unit"),
        (["create", "mystore/disks/b"], "missing option '--size'"),
        (["completion", "tcsh"], "'bash', 'zsh', 'fish'"),
        (["-o", "xml", "list"], "'table', 'json'"),
    ],
)
def test_what_cannot_be_taken_is_one_line_and_exit_code_2(machine: Machine, words: list[str], says: str) -> None:
    result = machine.run(*words)
    assert result.code == 2
    assert says in result.err
    assert result.err.startswith("dyskctl: ") and result.err.count("\n") == 1
    assert result.out == ""
    assert machine.calls == []


def test_errors_are_json_with_json_output_even_those_of_parsing(machine: Machine) -> None:
    assert json.loads(machine.run("-o", "json", "atach").err) == {
        "error": "unknown verb 'atach'",
        "remedy": "did you mean attach or detach?",
    }
    assert json.loads(machine.run("get", "nothing", "-o", "json").err) == {
        "error": "nothing is not attached here",
        "remedy": "see dyskctl list",
    }


def test_an_error_of_ours_is_one_line_with_its_own_exit_code(machine: Machine) -> None:
    machine.failure = LeasedError("disk x is leased by node b", remedy="detach it\nthere")
    result = machine.run("attach", "mystore/disks/data")
    assert (result.code, result.err) == (1, "dyskctl: disk x is leased by node b: detach it there\n")
    machine.failure = BusyError("the device is mounted")
    assert machine.run("attach", "mystore/disks/data").err == "dyskctl: the device is mounted\n"


def test_an_unexpected_error_has_no_traceback_unless_asked_for(machine: Machine) -> None:
    machine.failure = RuntimeError("boom")
    result = machine.run("attach", "mystore/disks/data")
    assert result.code == 1
    assert result.err.startswith("dyskctl: unexpected RuntimeError: boom: ")
    assert "report" in result.err and result.err.count("\n") == 1
    with pytest.raises(RuntimeError):
        machine.run("attach", "mystore/disks/data", "--debug")


def test_an_operation_that_only_root_may_do(machine: Machine) -> None:
    machine.failure = PermissionError(13, "Permission denied", "/dev/fuse")
    result = machine.run("attach", "mystore/disks/data")
    assert (result.code, "root" in result.err) == (1, True)


def test_an_interrupt_is_exit_code_130(machine: Machine) -> None:
    machine.failure = KeyboardInterrupt()
    result = machine.run("attach", "mystore/disks/data")
    assert result.code == 130
    assert result.err.strip() == "dyskctl: interrupted"


def test_a_reader_that_leaves_is_no_error(run_dir: Path) -> None:
    """`dyskctl list | true`: nothing on standard error, from us or from the interpreter's end."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*DYSKCTL, "version"], stdout=write_end, stderr=subprocess.PIPE, timeout=60, check=False, text=True
    )
    os.close(write_end)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYSK_RUN_DIR", str(tmp_path))
    return tmp_path


def test_a_signal_ends_it_without_a_traceback(tmp_path: Path) -> None:
    """Waiting at a prompt's place: standard input that never comes."""
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [*DYSKCTL, "convert-pv", "--secret-name", "x"], stdin=read_end, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until_reading(process.pid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        os.close(read_end)
        os.close(write_end)
    assert process.returncode == 130
    assert err.strip() == "dyskctl: interrupted"


def wait_until_reading(pid: int) -> None:
    """Until the process is in read(2) on descriptor 0. Source: proc_pid_syscall(5); 0 is read on x86-64."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if Path(f"/proc/{pid}/wchan").read_text().endswith("pipe_read"):
            return
        time.sleep(0.01)
    pytest.fail("it never read its standard input")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_completion_script_for_each_shell(machine: Machine, shell: str) -> None:
    result = machine.run("completion", shell)
    assert result.code == 0
    assert "_DYSKCTL_COMPLETE" in result.out
    assert 'string split "," ' not in result.out  # fish would cut descriptions at a comma


def completions(words: list[str], incomplete: str) -> list[str]:
    from click.shell_completion import ShellComplete

    found = ShellComplete(root, {}, "dyskctl", "_DYSKCTL_COMPLETE").get_completions(words, incomplete)
    return [item.value for item in found]


def test_completion_knows_verbs_options_and_attachments(run_dir: Path) -> None:
    (run_dir / "db").mkdir()
    (run_dir / "data").mkdir()
    (run_dir / "file").touch()
    assert completions([], "de") == ["delete", "detach"]
    assert completions(["attach"], "--io-t") == ["--io-timeout"]
    assert completions(["attach", "--cache"], "read") == ["readonly", "readwrite"]
    assert completions(["attach", "--io-timeout"], "") == []
    assert completions(["detach"], "d") == ["data", "db"]
    assert completions(["detach"], "") == ["data", "db"]


def test_completion_leaves_files_to_the_shell() -> None:
    from click.shell_completion import ShellComplete

    found = ShellComplete(root, {}, "dyskctl", "_DYSKCTL_COMPLETE").get_completions(
        ["attach", "--credentials"], "/etc/d"
    )
    assert [item.type for item in found] == ["file"]


def test_completion_without_attachments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYSK_RUN_DIR", "/nonexistent")
    assert completions(["detach"], "") == []


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_help_tells_of_the_original_s_words(machine: Machine, verb: str) -> None:
    assert "-a ACCOUNT --help" in " ".join(machine.run(verb, "--help").out.split())
    assert "original dysk's words" in machine.run(verb, "-a", "mystore", "--help").out


def test_version_names_the_package_and_its_number(machine: Machine) -> None:
    found = json.loads(machine.run("version", "-o", "json").out)
    assert found["blobfuse-dysk"] == __version__
    assert f"blobfuse-dysk {__version__}" in machine.run("version").out


def test_the_version_is_that_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project.get("version", __version__) == __version__


def test_attach_starts_without_what_other_verbs_need() -> None:
    program = "import sys, blobfuse_dysk.cli.verbs.attachments; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert not {"trio", "azure", "ssl", "http.client", "asyncio"} & set(done.stdout.split())


def test_main_reads_the_command_line_of_its_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dyskctl", "version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("blobfuse-dysk ")


def test_options_are_spelled_alike_everywhere() -> None:
    """A long option has one meaning of its value in all verbs that have it (the original's verbs aside)."""
    context = click.Context(root)
    kinds: dict[str, set[str]] = {}
    for verb in [*SECTIONS["Disks"], *SECTIONS["Attachments"], *SECTIONS["This tool"]]:
        command = root.get_command(context, verb)
        assert command is not None
        for parameter in command.params:
            for name in parameter.opts:
                if name.startswith("--") and name != "--vhd":
                    kinds.setdefault(name, set()).add(repr((type(parameter.type), parameter.type.name)))
    assert {name: kind for name, kind in kinds.items() if len(kind) > 1} == {}
