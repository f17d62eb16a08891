"""live.py: what is asked of a worker."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blobfuse_dysk import live, patience


class Control(SimpleNamespace):
    """A connection to a worker that takes its time, or not."""

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def ask(self, op: str, fds: Sequence[int] = (), **arguments: Any) -> dict[str, object]:
        self.asked.append((op, arguments))
        self.fds, self.sent = fds, [os.pread(fd, 1 << 16, 0) for fd in fds]
        assert self.told is None or self.told.wait(30)
        return {"credential": {}}


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Control:
    control = Control(asked=[], told=None)
    monkeypatch.setattr(live, "Control", lambda *arguments, **options: control)
    monkeypatch.setattr(live, "find_state", lambda target: {"name": target})
    return control


def test_a_reload_that_takes_long_is_spoken_of(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    told = control.told = threading.Event()

    def tell(text: str) -> None:
        said.append(text)
        told.set()

    monkeypatch.setattr(patience, "FIRST_S", 0.0)
    monkeypatch.setattr(patience, "_tellers", [tell])
    live.reload_credential("data")
    assert said[0] == "waiting for the credential of data; given up after 100 s"


def test_a_credential_file_is_named_whole_but_with_its_links(
    control: Control, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Kubernetes rotates a mounted secret by another target of a link on the way to it."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "acc.conf").touch()
    (tmp_path / "acc.conf").symlink_to("..2026/acc.conf")
    monkeypatch.chdir(tmp_path)
    live.reload_credential("data", "acc.conf")
    assert control.asked == [("reload", {"file": f"{tmp_path}/acc.conf"})]


def test_a_credential_without_a_file_goes_in_sealed_memory(control: Control) -> None:
    live.reload_credential("data", text="account_key = c2VjcmV0\n")
    ((op, arguments),) = control.asked
    (fd,) = control.fds
    assert (op, arguments) == ("reload", {"file": None, "descriptor": True})
    assert control.sent == [b"account_key = c2VjcmV0\n"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
