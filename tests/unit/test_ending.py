"""Waiting for an attachment's end."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from blobfuse_dysk.device import ending
from blobfuse_dysk.device.control import Control
from blobfuse_dysk.errors import DeviceError


def test_a_worker_that_hangs_up_leaves_no_socket_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends between our connecting and our asking, as on a fast umount."""
    (tmp_path / "data").mkdir()
    asked: list[Control] = []

    def hung_up(control: Control, op: str) -> None:
        asked.append(control)
        raise DeviceError("the worker does not answer")

    monkeypatch.setattr(Control, "tell", hung_up)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "data" / "control.sock"))
        listener.listen()
        assert ending.watch(str(tmp_path), "data") is None
    assert asked[0]._socket.fileno() == -1
