"""What a worker is told, and by whom: briefings, and the descriptors that come with them."""

from __future__ import annotations

import base64
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from blobfuse_dysk.device.holder import systemd
from blobfuse_dysk.device.holder.keeper import kept_names, process_of
from blobfuse_dysk.device.holder.record import Record
from blobfuse_dysk.device.holder.reservation import Reservation
from blobfuse_dysk.device.holder.workers import Crew, WorkerProcess
from blobfuse_dysk.device.ipc import door, message, state
from blobfuse_dysk.device.ipc.log import Log
from blobfuse_dysk.device.kernel import fuse
from blobfuse_dysk.device.worker.startup import await_go, resume_state, take_briefing
from tests.unit.states import a_first_state, a_state


class Told:
    """A worker's two ends of the channel."""

    def __init__(self) -> None:
        self.channel, self.peer = message.channel()


@pytest.fixture
def told() -> Iterator[Told]:
    told = Told()
    yield told
    told.channel.close()
    told.peer.close()


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    place = Reservation(str(tmp_path), str(tmp_path), "data")
    place.init = b"init"
    place.fuse_fd = os.memfd_create("fuse")
    place.control = socket.socket(socket.AF_UNIX)
    crew = Crew("data", "/log", place, os.memfd_create("config"))
    yield crew
    place.control.close()
    for fd in (place.fuse_fd, crew._config_fd, crew._ring_fd):
        os.close(fd)


def name_of(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())


@pytest.mark.parametrize("standby", [False, True])
def test_a_briefing_says_it_all(crew: Crew, told: Told, standby: bool) -> None:
    crew.brief(cast(WorkerProcess, told), a_state(size=512), resend=True, standby=standby)
    briefing = take_briefing(told.peer)
    assert briefing
    fds = (briefing.config_fd, briefing.fuse_fd, briefing.control_fd, briefing.ring_fd)
    names = [name_of(fd) for fd in fds]
    assert [name.partition(" ")[0] for name in names[:2]] == ["/memfd:config", "/memfd:fuse"]
    assert names[2].startswith("socket:")
    assert names[3].startswith("/memfd:dysk-ring")
    assert base64.b64decode(briefing.init) == b"init"
    assert (briefing.name, briefing.log, briefing.resume) == ("data", "/log", a_state(size=512))
    assert (briefing.resend, briefing.standby) == (True, standby)
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("resends", "always", "kept"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_where_the_kernel_cannot_send_again_what_is_taken_is_kept(
    crew: Crew, told: Told, monkeypatch: pytest.MonkeyPatch, resends: bool, always: bool, kept: bool
) -> None:
    monkeypatch.setattr(fuse, "can_resend", lambda init: resends)
    assert crew.recovers is resends
    crew.keep_requests(always=always)
    assert crew.recovers
    assert ("taken" in crew.parts()) is kept
    for _ in range(2):  # each worker gets the same
        crew.brief(cast(WorkerProcess, told), None)
        briefing = take_briefing(told.peer)
        assert briefing
        assert (briefing.taken_fd is not None) is kept
        if briefing.taken_fd is not None:
            assert name_of(briefing.taken_fd).startswith("/memfd:dysk-taken")
            assert os.path.sameopenfile(briefing.taken_fd, crew.parts()["taken"])
            os.close(briefing.taken_fd)
        for fd in (briefing.config_fd, briefing.fuse_fd, briefing.control_fd, briefing.ring_fd):
            os.close(fd)
    if kept:
        os.close(crew.parts()["taken"])


def test_a_worker_that_stands_by_goes_on_when_it_is_told(crew: Crew, told: Told) -> None:
    message.send(told.channel, {"op": "go", "resume": a_state(size=1), "resend": True})
    assert await_go(told.peer) == (a_state(size=1), True)
    assert door.receive(told.channel, door.WORKER_TO_HOLDER, pytest.fail).message == {"event": "standing-by"}


def test_a_worker_that_stands_by_is_told_to_serve_by_the_next_holder(crew: Crew, told: Told) -> None:
    """It did not hear the word of the one before. The descriptors of the second briefing are those it has."""
    before = len([*Path("/proc/self/fd").iterdir()])
    crew.brief(cast(WorkerProcess, told), cast(Any, a_state(size=1)))
    assert await_go(told.peer) == (a_state(size=1), False)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_worker_whose_holder_is_gone_before_it_is_told_does_nothing(told: Told) -> None:
    told.channel.close()
    assert take_briefing(told.peer) is None
    assert await_go(told.peer) is None


def test_a_worker_serves_no_holder_that_it_does_not_know(told: Told) -> None:
    message.send(told.channel, {"op": "start", "protocol": 99})
    assert take_briefing(told.peer) is None
    said = door.receive(told.channel, door.WORKER_TO_HOLDER, pytest.fail).message
    assert said
    assert said["event"] == "error"
    assert "protocol 99" in said["error"]["message"]


def test_later_workers_get_the_later_configuration(crew: Crew, told: Told) -> None:
    old = crew._config_fd
    crew.replace_config(os.memfd_create("later"))
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(old)
    crew.brief(cast(WorkerProcess, told), None)
    fds = door.receive(told.peer, door.HOLDER_TO_WORKER, pytest.fail).fds
    assert name_of(fds[0]).startswith("/memfd:later")
    for fd in fds:
        os.close(fd)


def test_a_worker_that_is_started_is_told_nothing() -> None:
    """Not before it is known where its next holder would look: see systemd.py."""
    code = "import socket, sys; s = socket.socket(fileno=0); s.settimeout(0.3); sys.stderr.write(repr(s.recv(99)))"
    worker = start([sys.executable, "-c", code], {})
    assert "timed out" in worker.reap()[-1]


def test_a_program_that_cannot_be_started_costs_no_descriptor() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(FileNotFoundError):
        start(["/none"], {})
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def start(argv: list[str], environment: dict[str, str]) -> WorkerProcess:
    return WorkerProcess.start({"worker": argv, "environment": environment})


def wait_for_line(worker: WorkerProcess) -> None:
    deadline = time.monotonic() + 20
    while not worker.read_stderr():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_is_ended_and_its_end_awaited() -> None:
    worker = start(
        ["/bin/sh", "-c", "trap '' TERM; echo x >&2; while :; do sleep 1; done"], {"PATH": os.environ["PATH"]}
    )
    wait_for_line(worker)
    known = state.identity(worker.pid)
    systemd.end_process({**known, "start": known["start"] - 1})
    systemd.end_process(None)
    assert state.alive(known), "a stranger with that id was killed"
    systemd.end_process(known)
    assert os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT), "it may still have been at work"
    worker.reap()
    assert "SIGKILL" in worker.end_text()
    systemd.end_process(known)


def test_last_words_without_end_fit_into_a_message() -> None:
    worker = start(["/bin/sh", "-c", "head -c 60000 /dev/zero | tr '\\0' x >&2"], {"PATH": os.environ["PATH"]})
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    worker.reap()
    assert worker.end_text().startswith("exit status 0: xxx")
    assert len(worker.end_text()) < 3000


def test_an_end_is_awaited_that_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a process which is in the middle of something that cannot be interrupted."""
    real = signal.pidfd_send_signal
    worker = start(["/bin/sh", "-c", "sleep 0.5"], {"PATH": os.environ["PATH"]})
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda pidfd, number: real(pidfd, signal.SIGCONT))
    systemd.end_process(state.identity(worker.pid))
    assert os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    worker.reap()


def test_a_worker_is_taken_up_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = message.channel()
    read_end, write_end = os.pipe()
    worker = start(["/bin/sh", "-c", "sleep 60"], {"PATH": os.environ["PATH"]})
    known = state.identity(worker.pid)
    fds = (ours.fileno(), read_end)
    assert systemd._adopt(known, None, read_end) is systemd._adopt(known, ours.fileno(), None) is None
    assert systemd._adopt({**known, "start": 1}, *fds) is None
    adopted = systemd._adopt(known, *fds)
    assert adopted
    adopted.kill()
    worker.reap()  # as init does
    adopted.kill()
    os.write(write_end, b"last words\n")
    assert adopted.reap() == ["last words"]
    assert adopted.end_text() == "not seen how: last words"
    adopted.reason = "no lease"
    assert adopted.end_text() == "not seen how: no lease", "its own word says more than its last line"
    assert systemd._adopt(known, *fds) is None
    ours.detach()
    theirs.close()
    os.close(write_end)


def test_names_under_which_a_worker_is_kept_say_which_it_is() -> None:
    for name in kept_names({"pid": 12, "start": 345}):
        assert process_of(name) == {"pid": 12, "start": 345}


def test_a_change_that_must_be_written_is_not_made_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    lines: list[str] = []
    log = cast(Log, lambda text, priority=0: lines.append(text))
    record = Record(str(tmp_path), "data", cast(Any, a_first_state()), log)
    record.write({"state": "attached"})
    found = state.read(str(tmp_path), "data")
    assert found == record.fields
    assert found["holder"] == state.identity(os.getpid())

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "write", full)
    with pytest.raises(OSError, match="No space"):
        record.write({"state": "failed"})
    fields: Any = record.fields
    assert fields["state"] == "attached"
    record.save({"state": "failed"})
    assert fields["state"] == "failed"
    assert lines == ["cannot write state.json: No space left on device"]


def test_a_lease_is_taken_up_where_there_is_one() -> None:
    assert resume_state(None) is None
    held = resume_state({"id": "i", "epoch": 3, "seconds": 60})
    assert held
    assert (held.lease_id, held.epoch) == ("i", 3)
