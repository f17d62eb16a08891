"""Templates and those who ask them, without devices: a template of the tests' own, of a program that says hello."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk.device.attacher import template
from blobfuse_dysk.device.ipc import door, message, state
from blobfuse_dysk.device.kernel.inherited import inherited
from tests.conftest import need

ROOT = Path(__file__).resolve().parents[2]
HOLDER = "/holder.py"
PLAIN = {"PATH": "/usr/bin", "LANG": "C.UTF-8"}
# A whole template, but for what it forks: a program that says what it was started as, and stays until it is let go.
TEMPLATE = """
import os, signal, socket, sys, time
sys.path[:0] = [ROOT, os.path.dirname(PART)]
import part
from blobfuse_dysk import environment
from blobfuse_dysk.device.kernel import programs
from blobfuse_dysk.device.template.server import Template

def hello():
    os.write(0, " ".join(sys.argv).encode())
    os.read(0, 1)
    return 0

listener = socket.socket(fileno=os.dup(0))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
kept = {(sys.executable, "-I", "-S", "/holder.py"): hello}
programs.keep(kept, environment.started_with(), time.time_ns())
Template(listener, IDLE_S).serve()
"""


class Running:
    """One, on a socket in `run`. argv: of a holder that it forks."""

    def __init__(self, run: Path, idle_s: float) -> None:
        self.run = run
        self.path = state.template_path(str(run), "test")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.path)
            listener.listen()
            self.part = run / "part.py"  # of its program
            self.part.touch()
            time.sleep(0.02)  # what was written just now is not taken for what was loaded
            program = TEMPLATE.replace("ROOT", repr(str(ROOT))).replace("PART", repr(str(self.part)))
            program = program.replace("IDLE_S", str(idle_s))
            self.process = subprocess.Popen(
                [sys.executable, "-c", program], stdin=listener.fileno(), env=self.environment, stderr=subprocess.PIPE
            )
        self.argv = [sys.executable, "-I", "-S", HOLDER, "--name", "data"]

    @property
    def environment(self) -> dict[str, str]:
        return {**PLAIN, "PYTHONPATH": str(ROOT)}

    def ask(self, meanwhile: Callable[[], None] = lambda: None, **changed: Any) -> tuple[bool, socket.socket]:
        """Whether it forked a holder, and this side of the holder's standard input. meanwhile: once it has accepted."""
        ours, theirs = message.channel()
        order = {
            "op": "fork",
            "holder": self.argv,
            "environment": PLAIN,
            "inherited": inherited(leaves_cgroup=False),
            **changed,
        }
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asker:
            asker.settimeout(20)
            asker.connect(self.path)
            meanwhile()
            message.send(asker, order, [theirs.fileno()])
            return door.receive(asker, door.TEMPLATE_TO_ATTACHER, pytest.fail).message is not None, ours

    def ends(self) -> bool:
        """Whether it ends by itself, and leaves no socket."""
        return self.process.wait(timeout=20) == 0 and not Path(self.path).exists()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    need(os.geteuid() == 0, "a template hears root only")
    begun: list[Running] = []

    def start(idle_s: float = 60.0) -> Running:
        begun.append(Running(tmp_path, idle_s))
        return begun[-1]

    yield start
    for each in begun:
        each.process.kill()
        each.process.communicate()


def test_it_forks_what_it_has_and_nothing_else(start: Callable[..., Running]) -> None:
    running = start()
    forked, channel = running.ask()
    assert forked
    with channel:
        assert channel.recv(100) == b"/holder.py --name data"
    changes: list[dict[str, Any]] = [
        {"holder": [sys.executable, "-I", "-S", "/other.py", "--name", "data"]},
        {"holder": ["/bin/sh", "-c", "id"]},
        {"environment": {**PLAIN, "LD_PRELOAD": "/tmp/x.so"}},
        {"environment": {}},
        {"inherited": "something else"},
        {"inherited": 3},
        {"op": "knife"},
    ]
    for changed in changes:
        forked, channel = running.ask(**changed)
        with channel:
            assert not forked, changed
            assert channel.recv(100) == b""  # nobody has the other end
    forked, channel = running.ask()
    channel.close()
    assert forked


def test_one_who_says_nothing_keeps_nobody_waiting_for_ever(start: Callable[..., Running]) -> None:
    running = start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(running.path)
        forked, channel = running.ask()
    channel.close()
    assert forked


def test_nor_does_the_template_stay_for_him(start: Callable[..., Running]) -> None:
    running = start(idle_s=0.3)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(running.path)
        assert running.ends()


def test_only_root_is_heard(start: Callable[..., Running]) -> None:
    running = start()
    Path(running.path).chmod(0o777)
    running.run.chmod(0o777)
    ours, theirs = message.channel()
    asker = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        os.chdir(running.run)  # whatever is above is not for everybody
        os.setresuid(65534, 65534, 65534)
        try:
            asker.connect(Path(running.path).name)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    order = {"op": "fork", "holder": running.argv, "environment": PLAIN}
    message.send(asker, {**order, "inherited": inherited(leaves_cgroup=False)}, [theirs.fileno()])
    theirs.close()
    asker.settimeout(20)
    assert door.receive(asker, door.TEMPLATE_TO_ATTACHER, pytest.fail).gone
    assert ours.recv(10) == b""
    asker.close()
    ours.close()


def test_it_ends_when_nobody_needs_it(start: Callable[..., Running]) -> None:
    assert start(idle_s=0.05).ends()


def test_while_a_holder_lives_it_stays(start: Callable[..., Running]) -> None:
    running = start(idle_s=0.3)
    forked, channel = running.ask()
    assert forked
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(timeout=1.5)
    channel.close()
    assert running.ends()


def test_it_ends_when_its_socket_is_not_its_own_any_more(start: Callable[..., Running]) -> None:
    running = start(idle_s=0.3)
    forked, channel = running.ask()
    assert forked
    Path(running.path).unlink()
    Path(running.path).touch()
    assert running.process.wait(timeout=20) == 0
    assert Path(running.path).exists()
    channel.close()


def test_one_that_is_not_what_is_installed_any_more_ends(start: Callable[..., Running]) -> None:
    running = start()
    forked, channel = running.ask()
    channel.close()
    assert forked
    running.part.write_text("another = 1\n")
    time.sleep(0.11)  # for which a look at all files counts
    forked, channel = running.ask()
    channel.close()
    assert not forked
    assert running.ends()


def test_it_leaves_the_socket_of_the_next_one_alone(start: Callable[..., Running]) -> None:
    running = start()

    def replace() -> None:
        running.part.write_text("another = 1\n")
        Path(running.path).unlink()
        Path(running.path).touch()

    forked, channel = running.ask()
    channel.close()
    time.sleep(0.11)  # for which a look at all files counts
    forked, channel = running.ask(replace)
    channel.close()
    assert not forked
    assert running.process.wait(timeout=20) == 0
    assert Path(running.path).exists()


# Who asks.


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., bool]]:
    """Ask for a holder by the templates of `program`, a script, in place of the real one."""
    monkeypatch.setattr(template, "_LIMIT_S", 1.0)
    ours, theirs = message.channel()
    (tmp_path / "pids").touch()

    def ask(program: str, run: str = str(tmp_path / "run")) -> bool:
        path = tmp_path / "template.py"
        count = f"open({str(tmp_path / 'pids')!r}, 'a').write('one\\n')"
        path.write_text(f"import os, socket, sys, time\n{count}\n{program}")
        monkeypatch.setattr(template, "TEMPLATE", str(path))
        argv = [sys.executable, "-I", "-S", HOLDER, "--name", "data"]
        return template.fork_holder(run, argv, {"PATH": "/usr/bin"}, str(ROOT), theirs.fileno())

    yield ask
    ours.close()
    theirs.close()


GOOD = """
listener = socket.socket(fileno=0)
listener.settimeout(20)  # nobody takes it down
if os.fork():
    os._exit(0)
for _ in range(2):
    asker, _ = listener.accept()
    asker.recv(1 << 17)
    asker.send(b'{"event":"forked"}')
    asker.close()
"""


def test_a_template_is_started_once(ask: Callable[..., bool], tmp_path: Path) -> None:
    assert ask(GOOD)
    assert ask(GOOD)
    assert len((tmp_path / "pids").read_text().splitlines()) == 1
    (path,) = (tmp_path / "run").glob(".template-*")
    assert path.stat().st_mode & 0o777 == 0o600
    assert ask(GOOD), "after the end of the one before"
    assert len((tmp_path / "pids").read_text().splitlines()) == 2
    assert ask(GOOD)


STILL = "if os.fork(): os._exit(0)\nasker, _ = socket.socket(fileno=0).accept()\ntime.sleep(3)"


@pytest.mark.parametrize(
    "program",
    [
        "sys.exit(3)",
        "if os.fork(): os._exit(0)\nsocket.socket(fileno=0).accept()",
        "if os.fork(): os._exit(0)\nasker, _ = socket.socket(fileno=0).accept()\nasker.recv(9)\nasker.send(b'odd')",
        STILL,
    ],
    ids=["it cannot start", "it dies at once", "it says something else", "it stands still"],
)
def test_without_one_the_caller_is_told_so(ask: Callable[..., bool], program: str) -> None:
    assert not ask(program)
    assert ask(GOOD), "what is left of the one before is in nobody's way"
    assert ask(GOOD)


def test_one_that_stands_still_is_waited_for_once(ask: Callable[..., bool], tmp_path: Path) -> None:
    """The path goes, so that the next to ask starts another, and it finds out that it is not to be found any more."""
    assert not ask(STILL)
    assert not [*(tmp_path / "run").glob(".template-*")]


def test_a_run_directory_that_cannot_be_is_no_error_here(ask: Callable[..., bool]) -> None:
    assert not ask(GOOD, run="/proc/none")
    assert not ask(GOOD, run="/run/" + 90 * "x")


def test_a_template_is_of_one_installation_and_environment(
    ask: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(GOOD)
    monkeypatch.setattr(template, "inherited", lambda **_: "other")
    assert ask(GOOD)
    assert len([*(tmp_path / "run").glob(".template-*")]) == 2
    monkeypatch.undo()
