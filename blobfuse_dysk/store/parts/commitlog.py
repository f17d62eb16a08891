"""Recognises the commits of a log, such as a journal's or a database's: writes that are alone before their flush.

Where the last SINGLES flushes came after one write each, every one in or right behind the place of the one before, as a
log's commits do, the next such write goes at once and returns when it is durable, and its flush has nothing to do:
waiting in the flush instead would hold up whatever else the loop driver has to start meanwhile. Should the guess be
wrong, that is one slow write for each flush; writes all over the disk would make it wrong often.
"""

from __future__ import annotations

from blobfuse_dysk.store.contract import Extent
from blobfuse_dysk.store.parts.ring import Record

__all__ = ["CommitLog"]

SINGLES = 2  # flushes


class CommitLog:
    """since_flush: records accepted since a flush began."""

    def __init__(self) -> None:
        self.since_flush = 0
        self._newest: Extent = (0, 0)  # start and end of the last record accepted
        self._last: Extent = (0, 0)  # likewise of the last record that was alone before its flush
        self._singles = 0  # flushes in a row that came after one record each, of one log

    def accepted(self, record: Record) -> None:
        """A record was accepted."""
        self.since_flush += 1
        self._newest = (record.offset, record.offset + record.length)

    def flush_begins(self) -> None:
        """A flush begins, after at least one record."""
        if self.since_flush > 1:
            self._singles = 0
        else:
            self._singles = self._singles + 1 if self._continues(self._newest[0]) else 1
            self._last = self._newest
        self.since_flush = 0

    def goes_on(self, offset: int) -> bool:
        """Whether a write that begins here, the first since a flush, is a log's."""
        return self._singles >= SINGLES and self._continues(offset)

    def _continues(self, offset: int) -> bool:
        """Whether what begins here is in the place of the log's last record, or right behind it."""
        return self._last[0] <= offset <= self._last[1]
