"""A worker is replaced while the disk is in use: no I/O error, no wrong byte, and the old one goes on if it must."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import cast

import pytest

from blobfuse_dysk import attachment, live
from blobfuse_dysk.device.ipc import message, state
from blobfuse_dysk.device.ipc.control import Control
from blobfuse_dysk.device.ipc.statefile import Process, StateFile
from blobfuse_dysk.errors import BusyError, DeviceError, DyskError, NotFoundError
from tests.device.conftest import MIB, Node, fill, flush, wait_for
from tests.device.programs import NO_RECOVERY, use_holder, use_worker
from tests.device.test_worker_death import direct_read, verifying


@pytest.fixture(params=["this kernel", "before 6.9", "without recovery"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Where requests do not come again, nothing may need that."""
    if request.param == "before 6.9":
        monkeypatch.setenv("DYSK_RESEND", "no")
    elif request.param == "without recovery":
        use_holder(monkeypatch, tmp_path, NO_RECOVERY)
    return str(request.param)


def test_the_worker_is_another_one_and_nothing_else(node: Node) -> None:
    attached = node.attach(node.create())
    before = node.state("data")
    written = fill(attached.device, 1, 4 * MIB)  # in the page cache and the dirty ring
    for _ in range(3):
        result = live.upgrade("data")
        assert (result.name, result.before, result.after) == ("data", result.after, result.before)
    wait_for(lambda: attachment.get("data").state == "attached", "the state attached")
    after = node.state("data")
    assert not state.alive(before["worker"])
    assert after["holder"] == before["holder"]
    assert after["restarts"] == 0
    assert after["lease"]["id"] == before["lease"]["id"]
    assert direct_read(attached.device, MIB) == written[:MIB]
    flush(attached.device)
    assert node.blob()["allocated"] == 4 * MIB
    attachment.detach("data")
    node.assert_nothing_left()


def test_a_load_notices_nothing_of_upgrades(node: Node, kernel: str) -> None:
    """Writes, reads and flushes of fio, which checks each byte."""
    node.server.configure(latency_ms=2)
    attached = node.attach(node.create())
    fio = subprocess.Popen(
        verifying(attached.device, fsync=20, loops=3), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    upgrades = 0
    while fio.poll() is None and upgrades < 8:
        live.upgrade("data")
        upgrades += 1
    output = fio.communicate()[0].decode()
    assert fio.returncode == 0, output
    assert upgrades >= 3
    assert attachment.get("data").restarts == 0
    attachment.detach("data")
    node.assert_nothing_left()


def test_what_is_in_the_ring_is_taken_over(node: Node, kernel: str) -> None:
    """The service takes nothing while the worker is replaced, so all of it is in the ring only."""
    attached = node.attach(node.create())
    node.server.fault("error", operation="write", status=503)
    written = os.urandom(MIB)
    fd = os.open(attached.device, os.O_WRONLY | os.O_DIRECT)
    assert os.writev(fd, [_aligned(written)]) == MIB
    os.close(fd)
    live.upgrade("data")
    node.server.clear_faults()
    assert direct_read(attached.device, MIB) == written
    attachment.detach("data")
    assert node.blob()["allocated"] == MIB
    node.assert_nothing_left()


def _aligned(data: bytes) -> memoryview:
    """As O_DIRECT wants it."""
    import mmap

    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memoryview(memory)


@pytest.mark.parametrize("last_words", ["import nothing_of_that_name", "sys.exit('no memory')"])
def test_a_new_worker_that_cannot_start(
    node: Node, kernel: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, last_words: str
) -> None:
    attached = node.attach(node.create())
    before = node.state("data")["worker"]
    with monkeypatch.context() as patch:
        use_worker(patch, tmp_path, last_words)
        with pytest.raises(DeviceError, match=r"new worker could not start .*(nothing_of_that_name|no memory)"):
            live.upgrade("data")
    assert node.state("data")["worker"] == before
    written = fill(attached.device, 2, MIB)
    flush(attached.device)
    assert direct_read(attached.device, MIB) == written
    live.upgrade("data")
    attachment.detach("data")
    node.assert_nothing_left()


def test_a_new_worker_that_dies_when_it_is_its_turn(
    node: Node, kernel: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It stood by well. Then the old program is started again, and nobody has seen anything."""
    node.server.configure(latency_ms=2)
    attached = node.attach(node.create())
    fio = subprocess.Popen(verifying(attached.device), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    dies = "from blobfuse_dysk.device.worker import worker; worker.Worker.take_turn = lambda *_: sys.exit('my turn')"
    with monkeypatch.context() as patch:
        use_worker(patch, tmp_path, dies)
        with pytest.raises(DeviceError, match=r"new worker could not start .*my turn"):
            live.upgrade("data")
    output = fio.communicate()[0].decode()
    assert fio.returncode == 0, output
    assert attachment.get("data").restarts == 1
    attachment.detach("data")
    node.assert_nothing_left()


def test_no_program_runs_but_a_worker_that_root_installed(node: Node, tmp_path: Path) -> None:
    """Whoever speaks for the worker says what is to take its place, and the holder has more rights than a worker."""
    node.attach(node.create())
    before = node.state("data")
    ran = tmp_path / "ran"
    flags = ["-S", "-P", "-s"]
    theirs = tmp_path / "theirs" / "blobfuse_dysk" / "device" / "worker" / "worker.py"
    theirs.parent.mkdir(parents=True)
    theirs.write_text(f"open({str(ran)!r}, 'w')")
    os.chown(tmp_path / "theirs", 65534, -1)
    for argv in (["/usr/bin/touch", str(ran)], [sys.executable, *flags, str(theirs), "--name", "data"]):
        with Control(state.control_path(str(node.dirs.run), "data"), "data") as control:
            control.ask("upgrade", id=argv[0], worker=argv, path="/usr/lib")
        wait_for(lambda: node.state("data")["upgrades"].get(argv[0], {}).get("done"), "the answer")  # noqa: B023
        assert "cannot start" in node.state("data")["upgrades"][argv[0]]["error"]["message"]
    assert not ran.exists()
    assert node.state("data")["worker"] == before["worker"]
    live.upgrade("data")
    attachment.detach("data")


def test_a_worker_of_another_protocol(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    attached = node.attach(node.create())
    before = node.state("data")["worker"]
    with monkeypatch.context() as patch:
        use_worker(patch, tmp_path, "from blobfuse_dysk.device.ipc import message; message.PROTOCOLS = (98, 99)")
        refusal = f"holder that speaks protocol {message.PROTOCOL}, it knows 98, 99"
        with pytest.raises(DeviceError, match=refusal) as caught:
            live.upgrade("data")
    assert caught.value.remedy and "attach it again" in caught.value.remedy
    assert node.state("data")["worker"] == before
    assert direct_read(attached.device, 4096) == bytes(4096)
    attachment.detach("data")


def test_a_holder_of_another_protocol(node: Node) -> None:
    node.attach(node.create())
    fields = node.state("data")
    state.write(str(node.dirs.run), "data", cast(StateFile, {**fields, "protocol": 0}))
    with pytest.raises(DeviceError, match=f"speaks protocol 0, this one knows 2, {message.PROTOCOL}"):
        live.upgrade("data")
    attachment.detach("data")


def test_a_restarted_worker_of_another_protocol_says_so(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The package was replaced below a running attachment, and then its worker died."""
    program = use_worker(monkeypatch, tmp_path, "")
    attached = node.attach(node.create(), io_timeout_s=5.0)
    user = os.open(attached.device, os.O_RDONLY)
    program.write_text(
        f"from blobfuse_dysk.device.ipc import message\nmessage.PROTOCOLS = (99,)\n{program.read_text()}"
    )
    os.kill(node.state("data")["worker"]["pid"], signal.SIGKILL)
    wait_for(lambda: f"speaks protocol {message.PROTOCOL}" in str(attachment.get("data").detail), "the reason")
    wait_for(lambda: attachment.get("data").state == "failed", "the failure")
    assert f"speaks protocol {message.PROTOCOL}" in str(attachment.get("data").detail)
    os.close(user)
    node.wait_gone()


def test_the_service_does_not_answer(node: Node, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that wait cannot be drained. They come again from kernel or memory; else the old one goes on."""
    attached = node.attach(node.create())
    written = fill(attached.device, 3, MIB)
    wait_for(lambda: node.blob()["allocated"] == MIB, "the write")  # and the dirty ring is empty
    before = node.state("data")["worker"]
    node.server.outage("silent")
    answers: list[bytes] = []
    reader = threading.Thread(target=lambda: answers.append(direct_read(attached.device, MIB)))
    reader.start()
    wait_for(lambda: attachment.status("data")["requests"]["in_flight"], "the read")
    if kernel != "without recovery":
        live.upgrade("data")
        assert node.state("data")["worker"] != before
    else:
        with pytest.raises(DeviceError, match="requests have been waiting for the service"):
            live.upgrade("data")
        assert node.state("data")["worker"] == before
    assert reader.is_alive()
    node.server.outage(None)
    reader.join(60)
    assert answers == [written]
    attachment.detach("data")
    node.assert_nothing_left()


def test_the_old_worker_is_killed_at_any_moment(node: Node) -> None:
    """While the new one loads, while the old one drains: whoever takes over, no byte is wrong."""
    node.server.configure(latency_ms=2)
    attached = node.attach(node.create())
    fio = subprocess.Popen(verifying(attached.device), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for delay_s in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
        victim = node.state("data")["worker"]
        killer = threading.Timer(delay_s, _kill, (victim,))
        killer.start()
        try:
            live.upgrade("data")
        except DyskError as error:
            assert "died meanwhile" in str(error) or "does not answer" in str(error)
        killer.join()
        wait_for(lambda: attachment.get("data").state == "attached" and node.state("data")["worker"], "the take-over")
    output = fio.communicate()[0].decode()
    assert fio.returncode == 0, output
    attachment.detach("data")
    node.assert_nothing_left()


def _kill(process: Process | None) -> None:
    if process and state.alive(process):
        os.kill(process["pid"], signal.SIGKILL)


def test_two_at_once(node: Node) -> None:
    node.attach(node.create())
    errors: list[DyskError] = []

    def upgrade() -> None:
        try:
            live.upgrade("data")
        except DyskError as error:
            errors.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) < 3
    assert all(isinstance(error, BusyError | DeviceError) for error in errors)
    assert not any("is not replaced after" in str(error) for error in errors), "each of them is answered"
    attachment.detach("data")
    node.assert_nothing_left()


def test_the_disk_is_detached_meanwhile(node: Node) -> None:
    node.attach(node.create())
    errors: list[DyskError] = []

    def upgrade() -> None:
        try:
            live.upgrade("data")
        except DyskError as error:
            errors.append(error)

    thread = threading.Thread(target=upgrade)
    thread.start()
    attachment.detach("data")
    thread.join()
    node.wait_gone()
    node.assert_nothing_left()


def test_what_cannot_be_upgraded(node: Node) -> None:
    with pytest.raises(NotFoundError):
        live.upgrade("nothing")
    node.attach(node.create())
    found = node.state("data")
    os.kill(found["holder"]["pid"], signal.SIGKILL)
    wait_for(lambda: not state.alive(found["worker"]), "the worker's end")
    with pytest.raises(DeviceError, match="data is dead"):
        live.upgrade("data")
    attachment.detach("data")
