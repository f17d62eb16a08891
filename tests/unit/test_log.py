"""Where lines go: the system log, a file, the holder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from blobfuse_dysk.device.ipc.log import WARNING, Log


def test_log_goes_to_the_system_log_or_to_a_bounded_file(tmp_path: Path) -> None:
    log = Log("dysk-test", "db", str(tmp_path / "log"), syslog=str(tmp_path / "dev-log"))
    log("one\ntwo", WARNING)
    lines = (tmp_path / "log" / "db.log").read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["one", "two"]
    assert f"dysk-test[{os.getpid()}]: db: one" in lines[0]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "dev-log"))
        log("three", WARNING)
        assert syslog.recv(1000).decode() == f"<28>dysk-test[{os.getpid()}]: db: three"
    (tmp_path / "dev-log").unlink()
    log("/a\udcff \ud800")
    assert (tmp_path / "log" / "db.log").read_text().endswith(r": /a\udcff \ud800" + "\n")
    (tmp_path / "log" / "db.log").write_bytes(bytes((1 << 20) + 1))
    log("four")
    log("five")
    assert (tmp_path / "log" / "db.log").read_text().endswith("five\n")
    assert (tmp_path / "log" / "db.log").stat().st_size < 1000
    assert (tmp_path / "log" / "db.log.1").stat().st_size > 1 << 20


def test_who_may_not_write_the_log_file_has_its_holder_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is another user. A pipe that is full does not stop it."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    log = Log("dysk-worker", "db", str(tmp_path / "log"), syslog=str(tmp_path / "dev-log"), holder=write_end)
    log("as root")
    monkeypatch.setattr(os, "geteuid", lambda: 999)
    log("one\ntwo", WARNING)
    assert os.read(read_end, 1000) == b"log: one\nlog: two\n"
    for _ in range(1000):
        log("x" * 1000)
    assert (tmp_path / "log" / "db.log").read_text().count("\n") == 1
    os.close(read_end)
    log("nobody reads")
    os.close(write_end)
