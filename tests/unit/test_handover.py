"""The replacement of a worker: what the holder tells those who ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from blobfuse_dysk.device.child import WorkerProcess
from blobfuse_dysk.device.handover import Handover
from blobfuse_dysk.device.log import Log


def test_each_of_several_who_ask_at_once_finds_an_answer(tmp_path: Path) -> None:
    """They look at state.json now and then, so an answer must not be overwritten by the next one."""
    told: dict[str, Any] = {}
    worker = cast(WorkerProcess, object())
    handover = Handover({"environment": {}}, lambda command: worker, told.update, Log("test", "data", str(tmp_path)))
    for request_id in ("first", "second", "third"):
        handover.begin({"id": request_id, "worker": ["python"], "path": ""}, worker, can_resend=True)
    answers = told["upgrades"]
    assert not answers["first"]["done"]
    for request_id in ("second", "third"):
        assert answers[request_id]["done"]
        assert "replaced already" in str(answers[request_id]["error"])


def test_old_answers_are_forgotten(tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    handover = Handover({}, lambda command: None, told.update, Log("test", "data", str(tmp_path)))  # type: ignore
    for number in range(100):
        handover.begin({"id": str(number)}, None, can_resend=True)
    assert list(told["upgrades"])[-1] == "99"
    assert len(told["upgrades"]) < 20
