"""dyskctl as it is installed, in C: attach and detach are run by a fork of the template, and as ever without it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.template import commands
from tests.conftest import need
from tests.device.conftest import Node, wait_for
from tests.device.test_template import parent_of, templates
from tests.leaks import find_leaks

PROGRAM = Path(sys.executable).parent / "dyskctl"


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    need(PROGRAM.exists() and PROGRAM.read_bytes()[:4] == b"\x7fELF", "dyskctl is not built in C: pip install -e .")
    for name in [name for name in os.environ if name.startswith(("PYTHON", "LD_"))]:
        monkeypatch.delenv(name)


def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=60, env={**os.environ, **more})


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def is_c(pid: int) -> bool:
    """Whether it still is the program, and has executed nothing else."""
    return Path(f"/proc/{pid}/exe").readlink() == PROGRAM.resolve()


def runner(template: int) -> int | None:
    """The child of the template that runs a command, since it was told to go: from then on it hears of the end."""
    for child in Path(f"/proc/{template}/task/{template}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has ended
            process = Path(f"/proc/{child}")
            flags = (process / "fdinfo" / str(commands.CHANNEL_FD)).read_text().split()[3]
            if (process / "cmdline").read_bytes().startswith(b"dyskctl\0") and int(flags, 8) & os.O_ASYNC:
                return int(child)
    return None


def begun(process: subprocess.Popen[str], template: int) -> int:
    """The process that runs the command, once it does."""
    wait_for(lambda: process.poll() is not None or runner(template), "the command's begin")
    pid = runner(template)
    assert pid, process.communicate()
    return pid


def await_gone(node: Node, name: str) -> None:
    """Wait for the end of an attachment that is taken back, and of its processes."""

    def gone() -> bool:
        commands = find_leaks(node.dirs).processes.values()
        return not state.exists(str(node.dirs.run), name) and not any(name in command for command in commands)

    wait_for(gone, f"the end of {name}")


@pytest.fixture
def template(node: Node) -> int:
    """Of the attachment `first`, which is there to keep it."""
    node.attach(node.create("first"))
    (pid,) = templates(node)
    wait_for(lambda: Path(state.commands_path(str(node.dirs.run), commands.key())).exists(), "its socket")
    return pid


@pytest.fixture
def slow(node: Node) -> Callable[[], str]:
    """A disk of which an attach takes seconds."""

    def make() -> str:
        disk = node.create("slow")
        node.server.configure(latency_ms=1500)
        return disk

    return make


def test_attach_and_detach(node: Node, template: int) -> None:
    disk = node.create("second")
    done = run("-o", "json", "attach", disk, "--read-only", "--name", "two")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"name": "two"' in done.stdout
    assert attachment.get("two").read_only
    assert parent_of(node.state("two")["holder"]["pid"]) == template
    for name in ("two", "first"):
        done = run("detach", name)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert templates(node) == [template]
    for blob in ("second", "first"):
        node.assert_nothing_left(blob)


def test_it_is_run_by_a_fork_and_nothing_else_is_started(node: Node, template: int, slow: Callable[[], str]) -> None:
    process = start("attach", slow(), "--name", "slow")
    pid = begun(process, template)
    assert is_c(process.pid)
    ours, caller = Path(f"/proc/{pid}"), Path(f"/proc/{process.pid}")
    assert (ours / "cmdline").read_bytes().split(b"\0")[:2] == [b"dyskctl", b"attach"]
    for path in ("fd/0", "fd/1", "fd/2", "cwd"):
        assert (ours / path).readlink() == (caller / path).readlink()
    node.server.configure(latency_ms=0)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.startswith("/dev/loop"), err) == (0, True, "")
    for name in ("slow", "first"):
        attachment.detach(name)


def memory_has(pid: int, text: bytes) -> bool:
    """Whether it has this anywhere in its memory."""
    process = Path(f"/proc/{pid}")
    with (process / "maps").open() as maps, (process / "mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            if not rights.startswith("rw"):
                continue
            low, high = (int(each, 16) for each in span.split("-"))
            memory.seek(low)
            if text in memory.read(high - low):
                return True
    return False


def test_the_template_never_has_a_secret(node: Node, template: int, slow: Callable[[], str]) -> None:
    secret = b"-".join((b"a", b"secret", b"of", b"the", b"environment"))
    process = start("attach", slow(), "--name", "slow", DYSK_TEST=secret.decode())
    pid = begun(process, template)
    assert memory_has(pid, secret)
    assert not memory_has(template, secret)
    node.server.configure(latency_ms=0)
    assert process.wait(60) == 0
    holder = node.state("slow")["holder"]["pid"]
    assert not memory_has(template, secret)
    assert not memory_has(holder, secret)
    process.communicate()
    for name in ("slow", "first"):
        attachment.detach(name)


def test_errors_and_their_exit_status(node: Node, template: int) -> None:
    done = run("attach", f"{node.server.account}/{node.container}/none")
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not exist" in done.stderr
    done = run("detach", "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("dyskctl: none is not attached here")
    attachment.detach("first")


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (("attach", "--help"), {}),
        (("list",), {}),
        (("detach", "first", "--no-such"), {}),
        (("detach", "none"), {"PYTHONHASHSEED": "7"}),
        (("detach", "none"), {"LD_LIBRARY_PATH": "/tmp"}),
        (("detach", "none"), {"DYSK_NATIVE": "no"}),
        (("detach", "none"), {"LC_ALL": "en_US.ISO-8859-1"}),
        (("detach", "none"), {"X": "x" * (100 << 10)}),
        (("detach", "none"), {"DYSK_RUN_DIR": "relative"}),
    ],
)
def test_what_is_not_for_it_is_run_whole(
    node: Node, template: int, words: tuple[str, ...], variables: dict[str, str]
) -> None:
    script = PROGRAM.with_name("dyskctl.py")
    whole = subprocess.run([script, *words], capture_output=True, text=True, env={**os.environ, **variables})
    done = run(*words, **variables)
    assert (done.returncode, done.stdout, done.stderr) == (whole.returncode, whole.stdout, whole.stderr)
    assert done.stdout or done.stderr
    assert templates(node) == [template]
    attachment.detach("first")


def test_without_a_template_it_is_run_whole(node: Node) -> None:
    done = run("attach", node.create(), "--name", "data")
    assert (done.returncode, done.stderr) == (0, "")
    assert run("detach", "data").returncode == 0
    node.assert_nothing_left()


def attach_well(started: list[subprocess.Popen[str]], names: list[str]) -> None:
    """Each of these ends without a word, and its disk is attached: detach them."""
    for process in started:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    for name in names:
        attachment.detach(name)


@pytest.mark.parametrize("has_run", [True, False])
def test_of_many_at_once_the_first_starts_the_template_for_all(node: Node, has_run: bool) -> None:
    """Also after a start of the machine, when there is no run directory yet."""
    if not has_run:
        node.dirs.run.rmdir()
    names = [f"disk{number}" for number in range(5)]
    disks = [node.create(name) for name in names]
    node.server.configure(latency_ms=1000)
    started = [start("attach", disk, "--name", name) for disk, name in zip(disks, names, strict=True)]
    wait_for(lambda: all(state.exists(str(node.dirs.run), name) for name in names), "the begin of all")
    assert sorted(is_c(process.pid) for process in started) == [False, True, True, True, True]
    node.server.configure(latency_ms=0)
    attach_well(started, names)
    if not has_run:
        assert stat.S_IMODE(node.dirs.run.stat().st_mode) == 0o755


def test_a_first_one_that_is_slow_is_waited_for(node: Node) -> None:
    """As on a machine that has much else to do."""
    disks = [node.create(name) for name in ("one", "two")]
    first = start("attach", disks[0], "--name", "one")
    wait_for(lambda: not is_c(first.pid), "the start of Python")
    first.send_signal(signal.SIGSTOP)
    second = start("attach", disks[1], "--name", "two")
    time.sleep(2)
    assert is_c(second.pid)
    first.send_signal(signal.SIGCONT)
    attach_well([first, second], ["one", "two"])


def test_where_the_first_one_starts_no_template_another_is_the_first(node: Node) -> None:
    """It was asked for something that is refused at once."""
    disks = [node.create(name) for name in ("one", "two", "three")]
    first = start("attach", disks[0], "--name", "one", "--cache", "nothing")
    wait_for(lambda: not is_c(first.pid), "the start of Python")
    first.send_signal(signal.SIGSTOP)
    others = [start("attach", disk, "--name", disk.rpartition("/")[2]) for disk in disks[1:]]
    time.sleep(0.5)
    node.server.configure(latency_ms=1000)
    first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 2
    first.communicate()
    wait_for(lambda: all(state.exists(str(node.dirs.run), name) for name in ("two", "three")), "the begin of both")
    assert sorted(is_c(process.pid) for process in others) == [False, True]
    node.server.configure(latency_ms=0)
    attach_well(others, ["two", "three"])


def test_without_a_template_to_come_nobody_waits_for_ever(node: Node) -> None:
    """The first stands still."""
    disks = [node.create(name) for name in ("one", "two")]
    first = start("attach", disks[0], "--name", "one")
    wait_for(lambda: not is_c(first.pid), "the start of Python")
    first.send_signal(signal.SIGSTOP)
    done = run("attach", disks[1], "--name", "two")
    assert (done.returncode, done.stderr) == (0, "")
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=60)
    assert first.returncode == 0
    for name in ("one", "two"):
        attachment.detach(name)


def test_who_hands_on_something_else_runs_it_itself(node: Node, template: int) -> None:
    less = (1000, 4000)
    done = subprocess.run(
        [PROGRAM, "attach", node.create("two"), "--name", "two"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, less),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert resource.prlimit(node.state("two")["holder"]["pid"], resource.RLIMIT_NOFILE) == less
    for name in ("two", "first"):
        attachment.detach(name)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_its_end_takes_everything_back(
    node: Node, template: int, slow: Callable[[], str], number: signal.Signals
) -> None:
    process = start("attach", slow(), "--name", "slow")
    pid = begun(process, template)
    wait_for(lambda: state.exists(str(node.dirs.run), "slow"), "the attachment's begin")
    process.send_signal(number)
    assert process.wait(20) == -number
    process.communicate()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the end of what ran it")
    node.server.configure(latency_ms=0)
    await_gone(node, "slow")
    wait_for(lambda: node.blob("slow")["lease"]["state"] == "available", "the end of its lease")
    attachment.detach("first")


def test_an_interrupt_is_handed_on(node: Node, template: int, slow: Callable[[], str]) -> None:
    process = start("attach", slow(), "--name", "slow")
    begun(process, template)
    wait_for(lambda: state.exists(str(node.dirs.run), "slow"), "the attachment's begin")
    process.send_signal(signal.SIGINT)
    node.server.configure(latency_ms=0)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "\ndyskctl: interrupted\n")
    assert not state.exists(str(node.dirs.run), "slow")
    attachment.detach("first")


def test_the_end_of_what_runs_it_is_told(node: Node, template: int, slow: Callable[[], str]) -> None:
    process = start("attach", slow(), "--name", "slow")
    os.kill(begun(process, template), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("dyskctl: the process that ran this has ended")
    node.server.configure(latency_ms=0)
    await_gone(node, "slow")
    attachment.detach("first")


def test_after_an_upgrade_the_command_is_run_whole(node: Node, template: int) -> None:
    """A template of before is not what is installed; it goes, and whoever came by it runs the command himself."""
    part = Path(commands.__file__)
    found = part.stat()
    time.sleep(0.11)  # for which a look at all files counts
    os.utime(part, ns=(found.st_atime_ns, found.st_mtime_ns))  # which changes the time of its last change
    done = run("detach", "none")
    assert done.stderr.startswith("dyskctl: none is not attached here")
    wait_for(lambda: template not in templates(node), "its end")
    assert not Path(state.commands_path(str(node.dirs.run), commands.key())).exists()
    attachment.detach("first")
