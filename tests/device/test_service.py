"""Holders that systemd keeps alive, with a stand-in for systemd: their death is noticed by nobody."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobfuse_dysk import attachment, live
from blobfuse_dysk.device.attacher import systemd
from blobfuse_dysk.errors import DyskError
from tests.conftest import entries
from tests.device.conftest import MIB, Node, fill, flush, wait_for
from tests.device.test_worker_death import direct_read
from tests.leaks import find_leaks

_APART = 200  # descriptors from here on collide with none that a service gets


class Manager:
    """Starts a service, keeps what it wants kept, starts it again when it fails."""

    def __init__(self, node: Node, root: Path) -> None:
        self._node = node
        self._address = str(root / "notify")
        self._kept: list[tuple[str, int, bool]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False
        self.starts = 0
        self.program = systemd.SERVICE
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def systemctl(self, *arguments: str) -> None:
        """`start --no-block dysk-holder@data.service`: nothing if it runs."""
        if self._process is None or self._process.poll() is not None:
            self._start()

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self._socket.close()
        self._let_go()
        if self._process:
            self._process.wait()

    def names(self) -> set[str]:
        return {name for name, _, _ in self._kept}

    def _start(self) -> None:
        self.starts += 1
        self._kept = [entry for entry in self._kept if not (entry[2] and self._hung_up(entry[1]))]
        fds = [fd for _, fd, _ in self._kept]
        names = ":".join(name for name, _, _ in self._kept)
        moves = "".join(f" {3 + number}<&{fd}" for number, fd in enumerate(fds))
        service = [sys.executable, "-I", "-S", self.program, "--run", str(self._node.dirs.run), "--name", "data"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'{"export LISTEN_PID=$$;" * bool(fds)} exec "$@"{moves}', "bash", *service],
            pass_fds=fds,
            env={
                **self._node.dirs.environment,
                "PATH": os.environ["PATH"],
                "NOTIFY_SOCKET": self._address,
                **({"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names} if fds else {}),
            },
        )

    def _serve(self) -> None:
        self._socket.settimeout(0.02)
        while not self._over:
            with contextlib.suppress(TimeoutError):
                self._hear()
                continue
            if self._process and (code := self._process.poll()) is not None:
                if code not in (0, -signal.SIGUSR2):
                    self._start()
                elif self._kept:
                    self._let_go()

    def _hear(self) -> None:
        text, rights, _, _ = self._socket.recvmsg(4096, 1024)
        fields = dict(line.split("=", 1) for line in text.decode().split("\n"))
        if "FDSTOREREMOVE" in fields:
            self._let_go(fields["FDNAME"])
        for _, _, data in rights:
            fds = array.array("i")
            fds.frombytes(data)
            for fd in fds:
                self._kept.append(
                    (fields["FDNAME"], fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _APART), "FDPOLL" not in fields)
                )
                os.close(fd)

    def _let_go(self, name: str | None = None) -> None:
        for entry in [entry for entry in self._kept if name in (None, entry[0])]:
            self._kept.remove(entry)
            os.close(entry[1])

    @staticmethod
    def _hung_up(fd: int) -> bool:
        poll = select.poll()
        poll.register(fd, 0)
        return bool(poll.poll(0))


@pytest.fixture
def manager(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(node, tmp_path)
    monkeypatch.setattr(systemd, "usable", lambda run: True)
    monkeypatch.setattr(systemd, "systemctl", manager.systemctl)
    yield manager
    node.detach_all()
    manager.close()


def kill_holder(node: Node, *others: int) -> None:
    """SIGKILL the holder, and others with it, and wait for the next holder."""
    before = node.state("data")["holder"]
    for pid in (*others, before["pid"]):
        os.kill(pid, signal.SIGKILL)

    def taken_over() -> bool:
        now = node.state("data")
        return now["holder"] != before and now["state"] == "attached" and now["worker"] is not None

    wait_for(taken_over, "another holder's start")


def test_the_worker_does_not_notice_the_death_of_its_holder(node: Node, manager: Manager) -> None:
    attached = node.attach(node.create())
    worker = node.state("data")["worker"]
    written = fill(attached.device, 5, 4 * MIB)
    for _ in range(5):
        kill_holder(node)
        assert node.state("data")["worker"] == worker
        assert direct_read(attached.device, MIB) == written[:MIB]
    assert attachment.get("data").restarts == 0
    written = fill(attached.device, 6, 4 * MIB)
    flush(attached.device)
    assert direct_read(attached.device, MIB) == written[:MIB]
    attachment.detach("data")
    node.assert_nothing_left()
    wait_for(lambda: not manager.names(), "the end of what was kept")


def test_a_later_holder_still_replaces_workers(node: Node, manager: Manager) -> None:
    attached = node.attach(node.create())
    written = fill(attached.device, 7, MIB)
    kill_holder(node)
    first = node.state("data")["worker"]
    os.kill(first["pid"], signal.SIGKILL)
    wait_for(lambda: node.state("data")["worker"] not in (None, first), "another worker's start")
    assert direct_read(attached.device, MIB) == written
    kill_holder(node)
    live.upgrade("data")
    kill_holder(node)
    assert direct_read(attached.device, MIB) == written
    attachment.detach("data")
    node.assert_nothing_left()


def test_holder_and_worker_die_together(node: Node, manager: Manager) -> None:
    attached = node.attach(node.create())
    written = fill(attached.device, 8, 4 * MIB)
    for _ in range(3):
        kill_holder(node, node.state("data")["worker"]["pid"])
        assert direct_read(attached.device, MIB) == written[:MIB]
    attachment.detach("data")
    node.assert_nothing_left()


_KILLED_AFTER = {
    "the worker is told to serve": """
def send(channel, order, fds=(), *, wait=True, real=message.send):
    sent = real(channel, order, fds, wait=wait)
    die(order.get("op") == "go" or order.get("op") == "start" and order["resume"])
    return sent
message.send = send
""",
    "state.json names the worker": """
def write(run, name, fields, real=state.write):
    real(run, name, fields)
    worker = fields["worker"] and fields["worker"]["pid"]
    die(worker not in (None, *known))
    known.add(worker)
state.write = write
""",
    "systemd keeps the worker's channel": """
def keep(self, name, fd, *, watch=False, real=sdnotify.Notify.keep):
    real(self, name, fd, watch=watch)
    die(name.startswith("stderr-"))
sdnotify.Notify.keep = keep
""",
}
_HOLDER = """
import os, signal, sys
sys.path.append({root!r})
from blobfuse_dysk.device.holder import sdnotify
from blobfuse_dysk.device.ipc import message, state
known = set()
def die(here):
    if here and os.path.exists({armed!r}):
        os.unlink({armed!r})
        os.kill(os.getpid(), signal.SIGKILL)
{change}
from blobfuse_dysk.device.holder import systemd
os._exit(systemd.main())
"""


@pytest.mark.parametrize("how", ["its worker dies", "its worker is replaced"])
@pytest.mark.parametrize("when", _KILLED_AFTER)
def test_a_holder_is_killed_while_it_goes_over_to_another_worker(
    node: Node, manager: Manager, tmp_path: Path, when: str, how: str
) -> None:
    """At no time do two workers serve, and none of them releases the lease behind the back of another."""
    armed = tmp_path / "armed"
    program = tmp_path / "service.py"
    root = str(Path(systemd.SERVICE).parents[3])
    program.write_text(_HOLDER.format(root=root, armed=str(armed), change=_KILLED_AFTER[when]))
    manager.program = str(program)
    attached = node.attach(node.create())
    before = node.state("data")
    written = fill(attached.device, 9, 4 * MIB)
    armed.touch()
    if how == "its worker dies":
        os.kill(before["worker"]["pid"], signal.SIGKILL)
    else:
        with contextlib.suppress(DyskError):
            live.upgrade("data", timeout_s=20)

    def settled() -> bool:
        now = node.state("data")
        changed = now["holder"] != before["holder"] and now["worker"] not in (None, before["worker"])
        return changed and attachment.get("data").state == "attached"

    wait_for(settled, "another holder's start")
    assert not armed.exists()
    assert direct_read(attached.device, MIB) == written[:MIB]
    workers = [command for command in find_leaks(node.dirs).processes.values() if "worker" in command]
    assert len(workers) == 1, workers
    flush(attached.device)
    assert node.blob()["allocated"] == 4 * MIB
    assert node.blob()["lease"]["id"] == before["lease"]["id"]
    attachment.detach("data")
    node.assert_nothing_left()


def test_a_holder_is_killed_while_its_worker_drains(node: Node, manager: Manager, tmp_path: Path) -> None:
    """The next one knows of no replacement, so the worker is to go on."""
    armed = tmp_path / "armed"
    program = tmp_path / "service.py"
    change = """
def send(channel, order, fds=(), *, wait=True, real=message.send):
    sent = real(channel, order, fds, wait=wait)
    die(order.get("op") == "drain")
    return sent
message.send = send
"""
    root = str(Path(systemd.SERVICE).parents[3])
    program.write_text(_HOLDER.format(root=root, armed=str(armed), change=change))
    manager.program = str(program)
    attached = node.attach(node.create())
    before = node.state("data")
    written = fill(attached.device, 10, MIB)
    armed.touch()
    with pytest.raises(DyskError):
        live.upgrade("data", timeout_s=20)
    wait_for(lambda: node.state("data")["holder"] != before["holder"], "another holder's start")
    assert not armed.exists()
    assert node.state("data")["worker"] == before["worker"]
    with subprocess.Popen(
        ["dd", f"if={attached.device}", f"bs={MIB}", "count=1", "iflag=direct", "status=none"], stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout
        answer = reader.stdout.fileno()
        try:
            wait_for(lambda: select.select([answer], [], [], 0)[0], "an answer to a read")
        except AssertionError:
            node.detach_all()  # or the reader never ends
            raise
        assert reader.communicate()[0] == written
    live.upgrade("data")
    attachment.detach("data")
    node.assert_nothing_left()


def test_force_ends_a_holder_for_good(node: Node, manager: Manager) -> None:
    node.attach(node.create())
    os.kill(node.state("data")["worker"]["pid"], signal.SIGSTOP)
    os.kill(node.state("data")["holder"]["pid"], signal.SIGSTOP)
    attachment.detach("data", force=True)
    assert manager.starts == 1
    assert entries(node.dirs.run) == []


def test_a_failed_attach_is_reported_and_nobody_comes_back(node: Node, manager: Manager) -> None:
    with pytest.raises(DyskError, match="does not exist"):
        node.attach(f"{node.server.account}/{node.container}/none", name="data")
    assert manager.starts == 1
    assert not manager.names()
    node.wait_gone()


def test_processes_that_serve_a_disk_are_marked_for_shutdown(node: Node) -> None:
    node.attach(node.create())
    for process in ("holder", "worker"):
        pid = node.state("data")[process]["pid"]
        wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_bytes()[:1] == b"@", "the mark")  # noqa: B023
    attachment.detach("data")
