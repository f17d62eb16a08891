"""What must never be is noticed where it happens, and ends the process before anything else is done."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from trio.testing import MockClock

from blobfuse_dysk import invariant
from blobfuse_dysk.device.worker.startup import BROKEN_STATUS
from blobfuse_dysk.invariant import InvariantError, broken
from blobfuse_dysk.store.contract import Buffer
from blobfuse_dysk.store.layers.front import Front
from blobfuse_dysk.store.parts.dirtymap import DirtyExtent, DirtyMap, Ledger
from blobfuse_dysk.store.parts.meter import Meter
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY, Record, Ring
from blobfuse_dysk.testing import MemoryStore
from tests.unit.fenced import opened


@pytest.fixture
def ring() -> Iterator[Ring]:
    memory = os.memfd_create("ring")
    ring = Ring(memory, MIN_CAPACITY)
    yield ring
    ring.close()
    os.close(memory)


def accepted(ring: Ring, offset: int = 0) -> Record:
    record = ring.append(offset, b"x" * 512)
    assert record is not None
    return record


def test_a_tail_only_goes_on_and_not_beyond_the_head(ring: Ring) -> None:
    first, second = accepted(ring), accepted(ring)
    ring.release(first.end)
    for position in (0, first.end, second.end + 64):
        with pytest.raises(InvariantError, match="tail"):
            ring.release(position)
    ring.release(second.end)
    assert ring.used == 0


def test_two_requests_in_flight_never_overlap() -> None:
    flight = DirtyMap()
    flight.put([DirtyExtent(1024, 2048, 0, 0, 0), DirtyExtent(2048, 4096, 0, 0, 0)])
    for start, end in ((512, 1536), (1024, 2048), (3584, 8192), (0, 8192)):
        with pytest.raises(InvariantError, match="in flight together"):
            flight.put([DirtyExtent(start, end, 0, 0, 1)])
    flight.put([DirtyExtent(0, 1024, 0, 0, 1)])
    flight.put([DirtyExtent(4096, 8192, 0, 0, 1)])


def test_what_is_acknowledged_was_in_flight() -> None:
    flight = DirtyMap()
    run = [DirtyExtent(0, 512, 0, 0, 0), DirtyExtent(512, 1024, 0, 0, 0)]
    flight.put(run)
    with pytest.raises(InvariantError, match="not there any more"):
        flight.remove([run[0], run[1]._replace(record=7)])


def test_a_generation_never_has_less_than_nothing_left(ring: Ring) -> None:
    ledger = Ledger(ring)
    record = accepted(ring)
    ledger.add_record(record)
    with pytest.raises(InvariantError, match="generation 3"):
        ledger.discount(DirtyExtent(0, 512, 0, 3, record.position))


async def test_the_highest_number_asked_for_is_the_epoch_or_the_next(autojump_clock: MockClock) -> None:
    async with opened() as it:
        it.fence._tried = it.guard.epoch + 5
        with pytest.raises(InvariantError, match="E1"):
            await it.fence._raise()
        assert "raise" not in it.client.sent


@pytest.mark.parametrize("length", [511, 513])
async def test_a_read_never_has_another_length_than_was_asked_for(length: int, autojump_clock: MockClock) -> None:
    class Wrong(MemoryStore):
        async def read(self, offset: int, length_wanted: int) -> Buffer:
            return bytes(length)

    with pytest.raises(InvariantError, match=f"has {length}"):
        await Front(Wrong(4096), Meter()).read(0, 512)


def test_what_is_to_happen_then_happens_first(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(invariant, "_end", told.append)
    with pytest.raises(InvariantError):
        broken("nothing is as it was")
    assert told == ["nothing is as it was"]


def test_nothing_that_handles_errors_takes_it_for_one() -> None:
    assert not issubclass(InvariantError, Exception)


def test_a_worker_ends_on_the_spot_with_a_line_in_the_log() -> None:
    """No `finally`, no other task, no exit handler of it runs."""
    program = (
        "import atexit, logging\n"
        "from blobfuse_dysk.device.worker import startup\n"
        "from blobfuse_dysk import invariant\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "atexit.register(print, 'tidied up')\n"
        "invariant.end_by(startup._die)\n"
        "try:\n"
        "    invariant.broken('two of them')\n"
        "finally:\n"
        "    print('went on', flush=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (BROKEN_STATUS, "")
    assert "two of them" in result.stderr
    assert "in <module>" in result.stderr
