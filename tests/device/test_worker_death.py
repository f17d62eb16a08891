"""Workers that die by surprise are replaced, and nobody notices but the log."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from random import Random

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.control import Control
from blobfuse_dysk.device.kernel import loop
from tests.device.conftest import MIB, Node, fill, flush, wait_for
from tests.device.programs import use_worker
from tools.fiojobs import command


def verifying(device: str, **changed: str | int | None) -> list[str]:
    """fio, for some seconds, checking each byte."""
    return command("verify", device, **{"bsrange": "4k-64k", "iodepth": 16, "size": "32m", "loops": 1, **changed})


def kill_worker(node: Node, name: str = "data") -> None:
    """SIGKILL the worker and wait until another one serves. A disk that has failed stays so."""
    before = node.state(name)
    well = before["state"] if before["state"] == "failed" else "attached"
    os.kill(before["worker"]["pid"], signal.SIGKILL)

    def taken_over() -> bool:
        now = node.state(name)
        return bool(now["worker"]) and now["worker"] != before["worker"] and now["state"] == well

    wait_for(taken_over, "another worker's start")


def resident(pid: int) -> int:
    """Bytes of a process that are in memory; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def direct_read(device: str, length: int) -> bytes:
    """Read from the start of a device, past the kernel's cache."""
    command = ["dd", f"if={device}", f"bs={length}", "count=1", "iflag=direct", "status=none"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_killed_while_idle(node: Node) -> None:
    attached = node.attach(node.create())
    holder = node.state("data")["holder"]
    written = fill(attached.device, 3, 4 * MIB)
    flush(attached.device)
    for restarts in (1, 2, 3):
        kill_worker(node)
        assert direct_read(attached.device, MIB) == written[:MIB]
        found = attachment.get("data")
        assert (found.device, found.restarts, found.state) == (attached.device, restarts, "attached")
    written = fill(attached.device, 4, 4 * MIB)
    flush(attached.device)
    assert direct_read(attached.device, MIB) == written[:MIB]
    assert node.state("data")["holder"] == holder
    assert loop.backing_file(attached.device) == state.disk_path(str(node.dirs.run), "data")
    attachment.detach("data")
    node.assert_nothing_left()


def test_the_lease_stays_the_same_and_the_epoch_is_raised(node: Node) -> None:
    attached = node.attach(node.create())
    before = node.blob()
    kill_worker(node)
    assert attached.lease is not None
    assert node.blob()["lease"]["id"] == before["lease"]["id"] == attached.lease["id"]
    assert node.blob()["sequence_number"] > before["sequence_number"]
    wait_for(lambda: node.lease("data")["epoch"] == node.blob()["sequence_number"], "the new epoch")
    attachment.detach("data")


def test_a_changed_io_timeout_outlives_the_worker(node: Node) -> None:
    node.attach(node.create())
    with Control(state.control_path(str(node.dirs.run), "data"), "data") as control:
        control.ask("set", io_timeout_s=7)
    kill_worker(node)
    assert attachment.status("data")["io_timeout_s"] == 7
    attachment.detach("data")


def test_killed_under_load(node: Node) -> None:
    """Requests that the dead worker had taken come again: no I/O error and no wrong byte."""
    node.server.configure(latency_ms=2)
    attached = node.attach(node.create())
    fio = subprocess.Popen(verifying(attached.device), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    kills = 0
    while fio.poll() is None and kills < 4:
        kill_worker(node)
        kills += 1
    output = fio.communicate()[0].decode()
    assert fio.returncode == 0, output
    assert kills >= 2
    assert attachment.get("data").restarts == kills
    attachment.detach("data")


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_killed_while_it_takes_requests(node: Node, seed: int) -> None:
    """The kernel fails a request whose copy into the worker's memory a kill breaks off: no page may be missing there.

    A worker that takes over begins with the large requests of its predecessor, each for a buffer that it has not used.
    Killed at that, 15 of 100 had one fail.
    """
    attached = node.attach(node.create(), cache="readwrite")
    stop = threading.Event()
    errors: list[OSError] = []

    def write(number: int) -> None:
        buffer = mmap.mmap(-1, MIB)
        fd = os.open(attached.device, os.O_WRONLY | os.O_DIRECT)
        try:
            while not stop.is_set():
                os.pwrite(fd, buffer, number * MIB)
        except OSError as error:
            errors.append(error)
        finally:
            os.close(fd)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    random = Random(seed)
    before = 0
    try:
        for _ in range(8):  # more in a row would be a crash loop, with pauses
            before = kill_when_grown(node, before, (26 + random.randrange(16)) * MIB)  # 26: when it begins
        wait_for(lambda: node.state("data")["state"] == "attached", "another worker")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    attachment.detach("data")
    node.assert_nothing_left()


def kill_when_grown(node: Node, before: int, size: int) -> int:
    """SIGKILL the worker that comes after `before` when so much of it is in memory, or it serves; returns its id."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = node.state("data")
        worker = (found["worker"] or {"pid": before})["pid"]
        if worker != before and (resident(worker) >= size or (before and found["state"] == "attached")):
            os.kill(worker, signal.SIGKILL)
            return int(worker)
    raise AssertionError("no worker to kill")


def test_released_while_no_worker_lives(node: Node) -> None:
    """The loop device lets go while the worker is dead: the next one hears of it, and all ends well."""
    attached = node.attach(node.create())
    found = node.state("data")
    os.kill(found["holder"]["pid"], signal.SIGSTOP)
    os.kill(found["worker"]["pid"], signal.SIGKILL)
    subprocess.run(["losetup", "-d", attached.device], check=True)
    os.kill(found["holder"]["pid"], signal.SIGCONT)
    node.wait_gone()
    node.assert_nothing_left()


def test_io_waits_for_the_disk_to_open_again(node: Node) -> None:
    """The service is away when the new worker starts; I/O within io-timeout is late, but not failed."""
    attached = node.attach(node.create())
    written = fill(attached.device, 5, MIB)
    flush(attached.device)
    node.server.outage("refuse")
    os.kill(node.state("data")["worker"]["pid"], signal.SIGKILL)
    answers: list[bytes] = []
    reader = threading.Thread(target=lambda: answers.append(direct_read(attached.device, MIB)))
    reader.start()
    wait_for(lambda: attachment.get("data").restarts == 1, "the restart")
    assert reader.is_alive()
    node.server.outage(None)
    reader.join(30)
    assert answers == [written]
    wait_for(lambda: attachment.get("data").state == "attached", "the state attached")
    attachment.detach("data")


def test_io_fails_after_io_timeout(node: Node) -> None:
    attached = node.attach(node.create(), io_timeout_s=2.0)
    node.server.outage("refuse")
    os.kill(node.state("data")["worker"]["pid"], signal.SIGKILL)
    with pytest.raises(subprocess.CalledProcessError):
        direct_read(attached.device, 4096)
    node.server.outage(None)
    wait_for(lambda: attachment.get("data").state == "attached", "the state attached")
    assert direct_read(attached.device, 4096) == bytes(4096)
    attachment.detach("data")


def test_no_worker_can_be_started(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The program vanished: after io-timeout all I/O fails instead of waiting for ever, and detach works."""
    program = tmp_path / "worker.py"
    program.write_text(f"import runpy; runpy.run_path({real_worker()!r}, run_name='__main__')")
    monkeypatch.setattr("blobfuse_dysk.device.attacher.launch.WORKER", str(program))
    attached = node.attach(node.create(), io_timeout_s=1.0)
    program.unlink()
    os.kill(node.state("data")["worker"]["pid"], signal.SIGKILL)
    with pytest.raises(subprocess.CalledProcessError):
        direct_read(attached.device, 4096)
    # The holder has the device let go, so nothing is left to detach.
    node.wait_gone()
    assert "cannot be opened" in node.log("data") or "No such file" in node.log("data")


def test_every_worker_dies_before_it_can_serve_a_request(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each takes the connection over and dies while it opens the disk: that, too, lasts no longer than io-timeout."""
    broken = tmp_path / "broken"
    program = tmp_path / "worker.py"
    program.write_text(
        "import os, runpy\n"
        "import blobfuse_dysk.store.open as store_open\n"
        f"if os.path.exists({str(broken)!r}):\n"
        "    store_open.open_stack = None\n"
        f"runpy.run_path({real_worker()!r}, run_name='__main__')\n"
    )
    monkeypatch.setattr("blobfuse_dysk.device.attacher.launch.WORKER", str(program))
    attached = node.attach(node.create(), io_timeout_s=8.0)  # longer than the pauses between workers get
    broken.touch()
    os.kill(node.state("data")["worker"]["pid"], signal.SIGKILL)
    with pytest.raises(subprocess.CalledProcessError):
        direct_read(attached.device, 4096)
    node.wait_gone()
    assert "within io-timeout" in node.log("data")


def test_failed_while_in_use(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As above, with the device open: the attachment is shown as failed until its user lets go."""
    program = tmp_path / "worker.py"
    program.write_text(f"import runpy; runpy.run_path({real_worker()!r}, run_name='__main__')")
    monkeypatch.setattr("blobfuse_dysk.device.attacher.launch.WORKER", str(program))
    attached = node.attach(node.create(), io_timeout_s=1.0)
    user = os.open(attached.device, os.O_RDWR)
    program.unlink()
    os.kill(node.state("data")["worker"]["pid"], signal.SIGKILL)
    wait_for(lambda: attachment.get("data").state == "failed", "the failure")
    assert "io-timeout" in str(attachment.get("data").detail)
    os.close(user)
    node.wait_gone()


def real_worker() -> str:
    from blobfuse_dysk.device.attacher import launch

    return launch.WORKER


def test_a_second_holder_of_the_lease_fences_the_new_worker(node: Node) -> None:
    """Between the death and the new start another node took the disk: I/O fails at once and for good."""
    attached = node.attach(node.create(), io_timeout_s=None)
    found = node.state("data")
    os.kill(found["holder"]["pid"], signal.SIGSTOP)
    os.kill(found["worker"]["pid"], signal.SIGKILL)
    take_lease(node)
    os.kill(found["holder"]["pid"], signal.SIGCONT)
    wait_for(lambda: attachment.get("data").state == "fenced", "the state fenced")
    with pytest.raises(subprocess.CalledProcessError):
        direct_read(attached.device, 4096)
    attachment.detach("data")
    assert node.blob()["lease"]["state"] == "leased"


def take_lease(node: Node) -> None:
    """Break the lease and take another, as a second node's --break-lease does."""
    import trio

    from blobfuse_dysk.azure.blob import BlobClient
    from blobfuse_dysk.azure.credential.resolve import resolve
    from blobfuse_dysk.disk import DiskAddress
    from blobfuse_dysk.options import AttachOptions

    async def take() -> None:
        address, credential = resolve(
            DiskAddress.parse(f"{node.server.account}/{node.container}/data"), AttachOptions()
        )
        client = BlobClient(address, credential)
        await client.break_lease(timeout_s=5)
        await client.acquire_lease(60, proposed_id="aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", timeout_s=5)
        await client.aclose()

    trio.run(take)


def test_a_worker_that_finds_itself_wrong_ends_and_the_next_one_goes_on(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A write meets a broken invariant, once; it reaches the disk by the next worker, and nobody sees an error."""
    once = tmp_path / "once"
    once.touch()
    use_worker(
        monkeypatch,
        tmp_path,
        "from blobfuse_dysk.store.parts.dirtymap import DirtyMap\n"
        f"wrong = os.path.exists({str(once)!r})\n"  # asked while it is root still
        f"if wrong: os.unlink({str(once)!r})\n"
        "def put(self, extents, real=DirtyMap.put):\n"
        "    if wrong:\n"
        "        real(self, extents)\n"
        "    real(self, extents)\n"
        "DirtyMap.put = put\n",
    )
    attached = node.attach(node.create())
    data = fill(attached.device, 5, MIB)
    with Path(attached.device).open("rb") as device:
        os.fsync(device.fileno())
    assert not once.exists()
    assert node.state("data")["restarts"] == 1
    assert direct_read(attached.device, MIB) == data
    assert "this worker cannot be trusted any more" in node.log("data")
    attachment.detach("data")
