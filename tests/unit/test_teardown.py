"""The end of an attachment from outside: what is waited for, killed, cleared, and left alone."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk.device.attacher import force, teardown
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.control import Control
from blobfuse_dysk.device.ipc.statefile import Process
from blobfuse_dysk.device.kernel import fuse, loop
from blobfuse_dysk.device.kernel.usage import Use
from blobfuse_dysk.errors import BusyError, DeviceError, DyskError
from tests.conftest import entries
from tests.unit.states import a_state

MOUNTED = Use("mount", "it is mounted on /mnt")
OPEN = Use("process", "udevd (process 7) has it open")
GONE: Process = {"pid": 1, "start": 1}  # an id that was used again


@contextlib.contextmanager
def process(command: str = "sleep 60") -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sh", "-c", f"exec {command}"])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


class Dead:
    """What a dead holder left: a directory with a state, and a link; a device and a mount by what is told of them."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.run, self.dev = root / "run", root / "dev"
        (self.run / "data" / "fs").mkdir(parents=True)
        self.dev.mkdir()
        (self.dev / "data").symlink_to("/dev/loop7")
        self.found = a_state(io_timeout_s=1.0)
        state.write(str(self.run), "data", self.found)
        self.done: list[str] = []
        patch.setattr(loop, "bound_to", lambda path, device, connection: device)
        patch.setattr(loop, "clear", lambda device: self.done.append(f"clear {device}"))
        patch.setattr(fuse, "unmount", lambda path: self.done.append("unmount"))

    def clear(self, **options: Any) -> None:
        teardown.clear_dead(str(self.run), str(self.dev), self.found, **options)

    def attached_again(self, holder: int) -> None:
        """By another process, under the same name."""
        state.write(str(self.run), "data", a_state(io_timeout_s=1.0, holder=state.identity(holder)))

    def left(self) -> list[str]:
        return sorted(path.name for path in (*entries(self.run), *self.dev.iterdir()))


@pytest.fixture
def dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dead:
    return Dead(tmp_path, monkeypatch)


def test_what_a_dead_holder_left_is_cleared(dead: Dead) -> None:
    dead.clear()
    assert dead.done == ["clear /dev/loop7", "unmount"]
    assert dead.left() == []


def test_a_device_that_has_another_file_by_now_is_left_alone(dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "bound_to", lambda path, device, connection: None)
    dead.clear()
    assert dead.done == ["unmount"]
    assert dead.left() == []


def test_a_file_in_the_place_of_the_link_is_left_alone(dead: Dead) -> None:
    (dead.dev / "data").unlink()
    (dead.dev / "data").write_text("not ours")
    dead.clear()
    assert dead.left() == ["data"]


def test_a_new_holder_makes_it_live_again(dead: Dead) -> None:
    """Systemd has started one: neither device nor mount is taken from under it."""
    dead.attached_again(os.getpid())
    with pytest.raises(BusyError, match="has a new holder"):
        dead.clear()
    assert dead.done == []
    assert dead.left() == ["data", "data"]


def test_a_name_that_is_in_use_again_is_left_alone(dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process cleared it, and attached under the same name, before we had the lock."""
    lock = state.lock

    @contextlib.contextmanager
    def late(run: str) -> Iterator[None]:
        dead.attached_again(os.getpid())
        with lock(run):
            yield

    monkeypatch.setattr(state, "lock", late)
    dead.clear()
    assert dead.done == [], "a living disk was cut off"
    assert dead.left() == ["data", "data"]


def test_it_is_cleared_under_the_lock(dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
    def exclusive(path: str) -> None:
        taken = subprocess.run(["flock", "--nonblock", str(dead.run / ".lock"), "true"])
        dead.done.append(f"locked: {taken.returncode == 1}")

    monkeypatch.setattr(fuse, "unmount", exclusive)
    dead.clear()
    assert dead.done == ["clear /dev/loop7", "locked: True"]


def test_a_holder_that_cannot_be_killed_keeps_its_directory(dead: Dead) -> None:
    dead.found["holder"] = state.identity(os.getpid())
    state.write(str(dead.run), "data", dead.found)
    dead.clear()
    assert dead.done == ["clear /dev/loop7", "unmount"]
    assert dead.left() == ["data", "data"]


def test_a_worker_without_a_holder_has_time_to_write(dead: Dead) -> None:
    with process("sh -c 'sleep 0.5; exit 7'") as worker:
        dead.found["worker"] = state.identity(worker.pid)
        began = time.monotonic()
        dead.clear()
        assert time.monotonic() - began > 0.3
        assert worker.wait(0) == 7, "it was killed with data that it would have written"


def test_a_worker_that_does_not_end_is_killed_before_its_mount_goes(
    dead: Dead, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process() as worker:
        dead.found["worker"] = state.identity(worker.pid)
        monkeypatch.setattr(fuse, "unmount", lambda path: dead.done.append(f"exit {worker.poll()}"))
        dead.clear(patience_s=0.2)
        assert dead.done == ["clear /dev/loop7", "exit -9"]


def test_an_id_that_was_used_again_is_a_strangers() -> None:
    with process() as stranger:
        gone: Process = {"pid": stranger.pid, "start": state.identity(stranger.pid)["start"] - 1}
        assert teardown.wait_end(gone, 0.0)
        teardown.kill(gone, wait_s=0.0)
        with pytest.raises(subprocess.TimeoutExpired):
            stranger.wait(0.3)
        assert not teardown.wait_end(state.identity(stranger.pid), 0.05)
        teardown.kill(state.identity(stranger.pid))
        assert stranger.wait(0) == -signal.SIGKILL


def test_the_end_of_nothing_is_not_waited_for() -> None:
    assert teardown.wait_end(None, None)
    assert teardown.wait_end({"pid": 0, "start": 0}, None)
    with process("true") as child:
        ended = state.identity(child.pid)
        child.wait()
    assert teardown.wait_end(ended, None)
    teardown.kill(ended)


EXIT = {"x86_64": 60, "aarch64": 93}  # exit(2), of one thread


def test_a_process_is_there_while_one_of_its_threads_is() -> None:
    """Its first thread is a zombie already, as in a process that is being killed."""
    code = (
        "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
        f"print(flush=True); ctypes.CDLL(None).syscall({EXIT[platform.machine()]}, 0)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        try:
            known = state.identity(child.pid)
            assert child.stdout
            child.stdout.readline()
            deadline = time.monotonic() + 20
            while state.alive(known):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert not teardown.wait_end(known, 0.05)
            teardown.kill(known)
            assert teardown.wait_end(known, 0.0)
        finally:
            child.kill()


def ignored(pid: int) -> int:
    """The signals that a process ignores, a bit each; it may have inherited others than its own."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn:"))
    return int(line.split()[1], 16)


def test_a_holder_is_told_to_end_for_good_and_killed_if_it_does_not() -> None:
    with process() as holder:
        force._kill_holder(state.identity(holder.pid))
        assert holder.wait(0) == -signal.SIGUSR2, "systemd would start another one"
    with process("env -i sh -c 'trap \"\" USR2; echo; exec sleep 60'") as holder:
        deadline = time.monotonic() + 20
        while not ignored(holder.pid) & 1 << signal.SIGUSR2 - 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        force._kill_holder(state.identity(holder.pid))
        assert holder.wait(0) == -signal.SIGKILL


def test_a_detach_that_is_not_done_is_no_success(dead: Dead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "backing_file", lambda device: None)
    dead.found["holder"] = state.identity(os.getpid())
    with pytest.raises(BusyError, match="not detached after 0 s: the service has not taken the last writes"):
        teardown.await_end(dead.found, None, 0.1)


def test_the_time_for_a_detach_is_io_timeout_and_a_minute(dead: Dead) -> None:
    assert teardown.time_for(dead.found, None) == 61.0
    dead.found["io_timeout_s"] = None
    assert teardown.time_for(dead.found, None) is None
    assert teardown.time_for(dead.found, 3.0) == 3.0


@pytest.mark.parametrize("read_only", [True, False])
def test_the_end_of_a_disk_that_had_failed_is_no_clean_one(dead: Dead, read_only: bool, tmp_path: Path) -> None:
    """No worker is left that could say what is missing; one that is, is believed."""
    dead.found["state"], dead.found["detail"] = "failed", "no worker could be started"
    dead.found["read_only"] = read_only
    with contextlib.ExitStack() as stack:
        if not read_only:
            stack.enter_context(pytest.raises(DyskError, match="data is detached; it had failed"))
        teardown.await_end(dead.found, None, None)
    with watched(tmp_path, b'{"ok": true}\n') as control:
        teardown.await_end(dead.found, control, None)


CLAIM = Use("claim", "the kernel has it in use")


@pytest.mark.parametrize("io_timeout_s", [300.0, None])
def test_a_file_system_that_is_frozen_is_not_waited_for_and_the_way_out_is_given(
    io_timeout_s: float | None, dead: Dead, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead.found["holder"] = state.identity(os.getpid())
    dead.found["io_timeout_s"] = io_timeout_s
    monkeypatch.setattr(teardown, "_SLICE_S", 0.01)
    monkeypatch.setattr(loop, "backing_file", lambda device: "/run/dysk/data/fs/disk")
    monkeypatch.setattr(teardown, "users", lambda device: [CLAIM])
    with pytest.raises(BusyError, match="frozen") as caught:
        teardown.await_end(dead.found, None, None)
    device = dead.found["device"]
    assert caught.value.remedy is not None
    assert f"mount -o helper=dysk {device} /mnt && fsfreeze -u /mnt && umount /mnt" in caught.value.remedy


def test_a_claim_that_goes_away_or_has_a_name_is_no_frozen_file_system(
    dead: Dead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the last umount is at work the kernel has the device, too."""
    dead.found["holder"] = state.identity(os.getpid())
    seen = [[CLAIM], [CLAIM], [], [CLAIM], [CLAIM, MOUNTED], [CLAIM], [CLAIM], []]

    def wait_end(process: object, timeout_s: float | None) -> bool:
        return not seen

    monkeypatch.setattr(teardown, "wait_end", wait_end)
    monkeypatch.setattr(loop, "backing_file", lambda device: "/run/dysk/data/fs/disk")
    monkeypatch.setattr(teardown, "users", lambda device: seen.pop(0))
    teardown.await_end(dead.found, None, None)


def test_a_frozen_file_system_is_no_reason_for_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "_BUSY_S", 0.1)
    monkeypatch.setattr(teardown, "users", lambda device: [CLAIM])
    with pytest.raises(BusyError, match="frozen") as caught:
        teardown.refuse_busy("data", "/dev/loop7")
    assert "--force" not in caught.value.line()


@contextlib.contextmanager
def watched(tmp_path: Path, answer: bytes) -> Iterator[Control]:
    """A worker that says this at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with Control(str(tmp_path / "control.sock"), "data", timeout_s=20) as control:
            control.send("watch")
            yield control
        thread.join()


def test_what_went_wrong_at_the_end_is_raised(dead: Dead, tmp_path: Path) -> None:
    lost = b'{"ok": false, "error": {"type": "DyskError", "message": "data was lost", "remedy": null}}\n'
    with watched(tmp_path, lost) as control, pytest.raises(DyskError, match="data was lost"):
        teardown.await_end(dead.found, control, None)
    (tmp_path / "control.sock").unlink()
    with (
        watched(tmp_path, b'{"ok": false, "lost": true}\n') as control,
        pytest.raises(DyskError, match="error is missing"),
    ):
        teardown.await_end(dead.found, control, None)
    (tmp_path / "control.sock").unlink()
    with watched(tmp_path, b"") as control:
        teardown.await_end(dead.found, control, None)


@pytest.mark.parametrize(
    ("use", "waits"), [(MOUNTED, False), (OPEN, True), (Use("process", "is-it-mounted (process 7) has it open"), True)]
)
def test_who_has_the_device_is_waited_for_unless_it_is_mounted(
    monkeypatch: pytest.MonkeyPatch, use: Use, waits: bool
) -> None:
    asked: list[str] = []

    def users(device: str) -> list[Use]:
        asked.append(device)
        return [use, use]

    monkeypatch.setattr(teardown, "_BUSY_S", 0.1)
    monkeypatch.setattr(teardown, "users", users)
    with pytest.raises(BusyError) as caught:
        teardown.refuse_busy("data", "/dev/loop7")
    assert str(caught.value) == f"/dev/loop7 (data) is in use: {use.text}; {use.text}"
    assert (len(asked) > 1) is waits


def test_a_device_that_is_used_for_a_moment_is_not_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [[OPEN], [OPEN], []]
    monkeypatch.setattr(teardown, "users", lambda device: answers.pop(0))
    teardown.refuse_busy("data", "/dev/loop7")
    assert answers == []


def test_a_worker_that_hangs_up_leaves_no_socket_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends between our connecting and our asking, as on a fast umount."""
    (tmp_path / "data").mkdir()
    asked: list[Control] = []

    def hung_up(control: Control, op: str) -> None:
        asked.append(control)
        raise DeviceError("the worker does not answer")

    monkeypatch.setattr(Control, "send", hung_up)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "data" / "control.sock"))
        listener.listen()
        assert teardown.watch(str(tmp_path), "data") is None
    assert asked[0]._socket.fileno() == -1
