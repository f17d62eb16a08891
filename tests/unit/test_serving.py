"""Only one worker serves at a time, whoever started it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobfuse_dysk.device.worker import serving

_TAKES_TURN = (
    "import os; from blobfuse_dysk.device.worker import serving; serving.await_turn({ring}); os.write(1, b'x'); {then}"
)


@pytest.fixture
def ring() -> Iterator[int]:
    fd = os.memfd_create("ring")
    yield fd
    os.close(fd)


@contextlib.contextmanager
def worker(ring: int, then: str = "os.read(0, 1)") -> Iterator[subprocess.Popen[bytes]]:
    """A process that gets the holder's own descriptor, as workers do, and has its turn when it writes a byte."""
    code = _TAKES_TURN.format(ring=ring, then=then)
    with subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=[ring], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def has_turn(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    assert process.stdout
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    return bool(poll.poll(limit_s * 1000))


def is_free(ring: int) -> bool:
    fd = os.open(f"/proc/self/fd/{ring}", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def waits(process: subprocess.Popen[bytes]) -> bool:
    """Whether it is blocked in flock(2), by the kernel's list of those who wait."""
    with Path("/proc/locks").open() as locks:
        return any("->" in line and f" {process.pid} " in line for line in locks)


def test_the_next_waits_for_the_end_of_the_one_before(ring: int) -> None:
    with worker(ring) as first:
        assert has_turn(first, 20)
        with worker(ring) as second:
            while not waits(second):
                assert not has_turn(second, 0.01), "two have their turn"
            first.send_signal(signal.SIGSTOP)
            assert not has_turn(second, 0.1)
            first.kill()
            assert has_turn(second, 20)


def test_a_turn_ends_with_the_process_and_not_before(ring: int) -> None:
    """Not with a thread, a child, or the descriptor that all have in common."""
    then = (
        "import subprocess; child = subprocess.Popen(['sleep', '60']); os.close({ring}); "
        "os.write(1, b' %d\\n' % child.pid); os.read(0, 1)"
    )
    with worker(ring, then.format(ring=ring)) as process:
        assert process.stdout
        assert has_turn(process, 20)
        child = int(process.stdout.readline().split()[1])
        try:
            assert not is_free(ring)
            process.kill()
            process.wait()
            assert is_free(ring), "the child of a worker has its turn"
        finally:
            os.kill(child, signal.SIGKILL)


def test_having_had_a_turn_is_not_inherited(ring: int) -> None:
    turn = serving.await_turn(ring)
    assert not os.get_inheritable(turn)
    assert not is_free(ring)
    os.close(turn)
    assert is_free(ring)
