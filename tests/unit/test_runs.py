"""RunQueue and CommitLog, as WriteBack uses them: what is sent next, and which writes are a log's."""

from __future__ import annotations

from blobfuse_dysk.store.parts.commitlog import SINGLES, CommitLog
from blobfuse_dysk.store.parts.dirtymap import DirtyExtent, DirtyMap
from blobfuse_dysk.store.parts.ring import Record
from blobfuse_dysk.store.parts.runs import RunQueue


def record(position: int, offset: int) -> Record:
    """A page of data."""
    return Record(position, position + 1, 0, offset, 512, 0)


def extent(position: int, offset: int) -> DirtyExtent:
    """What that record has."""
    return DirtyExtent(offset, offset + 512, 0, 0, position)


def test_what_was_put_aside_is_due_and_comes_before_younger_ones() -> None:
    dirty, flight = DirtyMap(), DirtyMap()
    runs = RunQueue(dirty, flight, lambda: 1 << 20)
    sent = [extent(0, 0), extent(1, 4096)]
    for one in sent:
        flight.put([one])
    waiting = [extent(2, 0), extent(3, 4096), extent(4, 8192)]
    for one in waiting:
        dirty.put([one])
        runs.add(record(one.record, one.start))
    runs.until = 4
    assert runs.next() == []
    assert runs.any_due
    for one in sent:
        flight.remove([one])
    runs.unblock()
    runs.until = 5
    assert [runs.next(), runs.next(), runs.next(), runs.next()] == [*([one] for one in waiting), []]
    assert not runs.any_due


def test_a_flush_after_several_records_ends_a_log() -> None:
    log = CommitLog()
    for number in range(SINGLES + 1):
        log.accepted(record(number, 512 * number))
        log.flush_begins()
    after = 512 * (SINGLES + 1)
    assert log.goes_on(after)
    for offset in (1 << 20, 2 << 20):
        log.accepted(record(100, offset))
    log.flush_begins()
    assert not log.goes_on(after)
