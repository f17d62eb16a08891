"""What a holder writes into state.json: since when it is in its state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from blobfuse_dysk import timestamp
from blobfuse_dysk.device.holder import record as record_module
from blobfuse_dysk.device.holder.record import Record
from blobfuse_dysk.device.ipc import state
from tests.unit.states import a_first_state, a_state


@pytest.fixture
def record(tmp_path: Path) -> Record:
    (tmp_path / "data").mkdir()
    return Record(str(tmp_path), "data", a_first_state(), cast(Any, print))


def test_each_change_of_state_is_dated_and_nothing_else(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(timestamp.utc_text(second) for second in range(1, 9))
    monkeypatch.setattr(record_module, "utc_text", lambda: next(moments))
    assert record.fields["state_since"] == a_first_state()["since"]
    record.write({"state": "attached", "device": "/dev/loop0"})
    assert record.fields["state_since"] == "1970-01-01T00:00:01Z"
    record.save({"state": "attached", "detail": "a detail"})
    record.save({"restarts": 1})
    assert record.fields["state_since"] == "1970-01-01T00:00:01Z"
    record.save({"state": "failed"})
    found = state.read(record.run, "data")
    assert found and found["state_since"] == record.fields["state_since"] == "1970-01-01T00:00:02Z"


def test_what_a_holder_without_this_date_wrote_is_understood(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    fields = {name: value for name, value in a_state().items() if name != "state_since"}
    (tmp_path / "data" / "state.json").write_text(json.dumps(fields))
    found = state.read(str(tmp_path), "data")
    assert found and "state_since" not in found
    taken_up = Record(str(tmp_path), "data", found, cast(Any, print), found)
    taken_up.save({"state": "failed"})
    assert taken_up.fields["state_since"]
