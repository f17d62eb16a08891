"""The end of an attachment by force: what is refused, what is written before, and what is said to be lost."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobfuse_dysk.device.attacher import force, teardown
from blobfuse_dysk.device.attacher.force import Loss
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.statefile import StateFile
from blobfuse_dysk.device.kernel import pagecache
from blobfuse_dysk.device.kernel.usage import Use
from blobfuse_dysk.errors import BusyError
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY, Ring
from tests.unit.states import a_state

DEVICE = "/dev/loop7"


@pytest.fixture
def ring_fd() -> Iterator[int]:
    """A dirty ring that this process has, as a holder has its own."""
    fd = os.memfd_create("dysk-ring")
    yield fd
    os.close(fd)


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for long, and nobody is killed."""
    monkeypatch.setattr(force, "_LOOK_S", 0.001)
    monkeypatch.setattr(force, "_STILL_S", 0.05)
    monkeypatch.setattr(teardown, "device_of", lambda run, found: DEVICE)
    monkeypatch.setattr(force, "_end", lambda run, dev, found: None)


def mine() -> StateFile:
    """An attachment whose holder and worker are this process."""
    return a_state(holder=state.identity(os.getpid()), worker=state.identity(os.getpid()))


@pytest.mark.parametrize(
    ("use", "remedy"),
    [
        (Use("mount", "it is mounted on /a b", "/a b"), "umount '/a b'; if it is attached still, then: dyskctl detach"),
        (Use("mount", "process 7 has it mounted on /m"), "end that first, then: dyskctl detach data"),
        (Use("claim", "the kernel has it in use"), "end that first, then: dyskctl detach data"),  # a mount out of sight
        (Use("swap", "/dev/loop7 is swap space", DEVICE), "swapoff /dev/loop7, then: dyskctl detach data"),
        (Use("device", "/dev/dm-0 is built on /dev/loop7", "/dev/dm-0"), "take /dev/dm-0 down"),
    ],
)
def test_what_would_lose_data_with_the_device_is_refused_and_the_way_without_loss_is_named(
    use: Use, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(force, "users", lambda device: [use])
    with pytest.raises(BusyError) as caught:
        force.refuse_used("data", DEVICE)
    assert caught.value.remedy and caught.value.remedy.startswith(remedy)
    assert caught.value.remedy.endswith("--force --lose-data cuts it off and loses what is not written")


def test_a_program_that_has_the_device_open_is_no_reason_against_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(force, "users", lambda device: [Use("process", "dd has it open")])
    force.refuse_used("data", DEVICE)


def test_a_detach_without_force_never_advises_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "users", lambda device: [Use("mount", "it is mounted on /m", "/m")])
    with pytest.raises(BusyError) as caught:
        teardown.refuse_busy("data", DEVICE)
    assert caught.value.remedy == "umount /m; if it is attached still, then: dyskctl detach data"


def test_what_the_worker_accepted_and_never_wrote_is_counted_once_a_byte(
    ring_fd: int, calm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(force, "_flush", lambda nodes, failed: failed.append(OSError()))
    monkeypatch.setattr(force, "_in_kernel", lambda device: 8192)
    ring = Ring(ring_fd, MIN_CAPACITY)
    ring.append(0, b"x" * 4096)
    ring.append(2048, b"y" * 4096)
    ring.append_zero(1 << 20, 512)
    loss = force.by_force("/run", "/dev", mine())
    assert loss == Loss(6144 + 512, 8192)
    assert str(loss) == "up to 14,848 bytes"
    ring.close()


def test_a_disk_that_was_written_out_lost_nothing(ring_fd: int, calm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written out before the connection is aborted, for as long as the service takes what there is."""
    ring = Ring(ring_fd, MIN_CAPACITY)
    records = [ring.append(n * 4096, b"x" * 4096) for n in range(60)]
    order: list[str] = []

    def flush(nodes: list[str], failed: list[OSError]) -> None:
        for record in records:  # more slowly than what counts as a service that does not answer, all in all
            assert record
            threading.Event().wait(0.005)
            ring.release(record.end)
        order.append("written")

    monkeypatch.setattr(force, "_flush", flush)
    monkeypatch.setattr(force, "_end", lambda run, dev, found: order.append("aborted"))
    loss = force.by_force("/run", "/dev", mine())
    assert order == ["written", "aborted"]
    assert loss == Loss(0, 0) and not loss
    ring.close()


def test_a_service_that_takes_nothing_is_given_up_although_programs_go_on_writing(
    ring_fd: int, calm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = Ring(ring_fd, MIN_CAPACITY)
    over, stuck = threading.Event(), threading.Event()

    def write() -> None:
        while not over.wait(0.002):
            ring.append(0, b"x" * 512)

    writer = threading.Thread(target=write)
    ring.append(0, b"x" * 512)
    monkeypatch.setattr(force, "_flush", lambda nodes, failed: stuck.wait(30))
    monkeypatch.setattr(force, "_in_kernel", lambda device: None)
    writer.start()
    loss = force.by_force("/run", "/dev", mine())
    assert writer.is_alive() and not stuck.is_set()
    over.set()
    stuck.set()
    writer.join()
    assert loss == Loss(512, None)
    assert str(loss) == "up to 512 bytes, and what the kernel had in memory of it (how much is not known)"
    ring.close()


def test_a_damaged_ring_is_a_loss_of_which_nobody_knows_how_much(
    ring_fd: int, calm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(force, "_flush", lambda nodes, failed: None)
    os.write(ring_fd, b"x" * 8192)
    loss = force.by_force("/run", "/dev", mine())
    assert loss == Loss(None, 0) and loss
    assert str(loss) == "what its worker had accepted last (how much is not known)"


def test_a_ring_that_may_not_be_looked_at_is_not_one_that_lost_nothing(
    calm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container without CAP_SYS_PTRACE."""
    monkeypatch.setattr(force, "_flush", lambda nodes, failed: None)
    monkeypatch.setattr(force, "_open_ring", lambda process: None)
    assert force.by_force("/run", "/dev", mine()) == Loss(None, 0)
    assert force.by_force("/run", "/dev", a_state()) == Loss(0, 0), "dead before, so that nothing is to be told"


def test_a_ring_that_was_never_made_holds_nothing(ring_fd: int, calm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With cache=none, and until the worker has the disk open."""
    monkeypatch.setattr(force, "_flush", lambda nodes, failed: None)
    assert not force.by_force("/run", "/dev", mine())


def test_what_the_kernel_has_to_write_still_is_read_where_debugfs_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = Path(os.devnull).stat().st_rdev
    stats = tmp_path / f"{os.major(number)}:{os.minor(number)}" / "stats"
    stats.parent.mkdir()
    stats.write_text("BdiWriteback:                4 kB\nBdiReclaimable:              8 kB\nb_dirty: 1\nstate: 1\n")
    monkeypatch.setattr(pagecache, "_DEBUG", str(tmp_path))
    assert pagecache.unwritten(os.devnull, mounted=True) == 12 << 10
    stats.write_text("nothing\n")
    assert pagecache.unwritten(os.devnull, mounted=True) is None
    assert pagecache.unwritten(str(tmp_path / "gone"), mounted=False) is None


def test_without_debugfs_the_dirty_pages_of_an_unmounted_device_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file serves as well; what the kernel has written of it meanwhile does not count."""
    monkeypatch.setattr(pagecache, "_DEBUG", str(tmp_path))
    path = tmp_path / "device"
    path.write_bytes(bytes(1 << 20))
    assert pagecache.unwritten(str(path), mounted=False) in (None, *range(0, (1 << 20) + 1, os.sysconf("SC_PAGE_SIZE")))
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)
    assert pagecache.unwritten(str(path), mounted=False) in (None, 0)
    assert pagecache.unwritten(str(path), mounted=True) is None
