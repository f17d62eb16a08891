"""Sends what Python's logging collects in a worker to the attachment's log."""

from __future__ import annotations

import logging

from blobfuse_dysk.device.ipc.log import ERROR, INFO, WARNING, Log

__all__ = ["LogHandler"]


class LogHandler(logging.Handler):
    """A logging handler over `Log`."""

    def __init__(self, program: str, name: str, directory: str) -> None:
        super().__init__()
        self._write = Log(program, name, directory)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, with its traceback if it has one."""
        priority = ERROR if record.levelno >= logging.ERROR else WARNING if record.levelno >= logging.WARNING else INFO
        self._write(self.format(record), priority)
