"""live.py: what is asked of a worker."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from blobfuse_dysk import live


class Control(SimpleNamespace):
    """A connection to a worker that takes its time, or not."""

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def send(self, op: str, **arguments: object) -> None:
        self.asked.append((op, arguments))

    def is_answered(self, within_s: float) -> bool:
        return bool(self.prompt)

    def answer(self) -> dict[str, object]:
        return {"credential": {}}


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Control:
    control = Control(asked=[], prompt=True)
    monkeypatch.setattr(live, "Control", lambda *arguments, **options: control)
    monkeypatch.setattr(live, "find_state", lambda target: {"name": target})
    return control


def test_a_reload_that_takes_long_is_spoken_of(control: Control, caplog: pytest.LogCaptureFixture) -> None:
    live.reload_credential("data")
    assert caplog.messages == []
    control.prompt = False
    live.reload_credential("data")
    assert caplog.messages == ["data waits for its new credential, which may take up to a minute"]


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
