"""live.py: what is asked of a worker."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from blobfuse_dysk import live


def test_a_credential_file_is_named_whole_but_with_its_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kubernetes rotates a mounted secret by another target of a link on the way to it."""
    asked: list[object] = []

    class Control(SimpleNamespace):
        def __enter__(self) -> Control:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def ask(self, op: str, **arguments: object) -> dict[str, object]:
            asked.append((op, arguments))
            return {"credential": {}}

    monkeypatch.setattr(live, "Control", lambda *arguments, **options: Control())
    monkeypatch.setattr(live, "find_state", lambda target: {"name": target})
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "acc.conf").touch()
    (tmp_path / "acc.conf").symlink_to("..2026/acc.conf")
    monkeypatch.chdir(tmp_path)
    live.reload_credential("data", "acc.conf")
    assert asked == [("reload", {"file": f"{tmp_path}/acc.conf"})]
