"""Where a holder and a worker say what happens: the system log when there is one, else log_dir()/NAME.log.

Everything is one line of printable text (printable.py); a line never holds a secret. The file is cut off at 1 MiB, one
older part is kept.
"""

from __future__ import annotations

import contextlib
import os
import socket

from blobfuse_dysk.printable import printable
from blobfuse_dysk.timestamp import utc_text

__all__ = ["ERROR", "INFO", "LOGGED", "WARNING", "Log"]

LOGGED = "log: "
"""What begins a line of a worker's standard error that is for the log, and not what it says of its own end."""

ERROR, WARNING, INFO = 3, 4, 6  # priorities; source: syslog(3)
_FACILITY_DAEMON = 3 << 3
_MOST_BYTES = 1 << 20  # of a log file
_SYSLOG = "/dev/log"


class Log:
    """A log for one process of the attachment `name`. Calling it writes a line; it never raises and never waits."""

    def __init__(
        self, program: str, name: str, directory: str, *, syslog: str = _SYSLOG, holder: int | None = None
    ) -> None:
        """holder: a pipe to the holder, which logs what comes out of it, for a process that may not write the file."""
        self._tag = f"{program}[{os.getpid()}]: {name}"
        self._file = os.path.join(directory, f"{name}.log")
        self._syslog = syslog
        self._holder = holder

    def __call__(self, text: str, priority: int = INFO) -> None:
        for line in map(printable, text.splitlines()):
            if not self._to_syslog(line, priority):
                with contextlib.suppress(OSError):
                    self._to_file(line) if self._may_write() else self._to_holder(line)

    def _to_syslog(self, line: str, priority: int) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
                channel.connect(self._syslog)
                channel.send(f"<{_FACILITY_DAEMON | priority}>{self._tag}: {line}".encode(errors="backslashreplace"))
        except OSError:
            return False
        return True

    def _may_write(self) -> bool:
        return self._holder is None or os.geteuid() == 0

    def _to_holder(self, line: str) -> None:
        assert self._holder is not None
        os.write(self._holder, f"{LOGGED}{line}\n".encode(errors="backslashreplace"))

    def _to_file(self, line: str) -> None:
        os.makedirs(os.path.dirname(self._file), mode=0o750, exist_ok=True)
        fd = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            if os.fstat(fd).st_size > _MOST_BYTES:
                os.rename(self._file, f"{self._file}.1")
            os.write(fd, f"{utc_text()} {self._tag}: {line}\n".encode(errors="backslashreplace"))
        finally:
            os.close(fd)
