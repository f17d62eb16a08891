"""tools/soak, for about a minute with a fixed seed: every mode, and no finding. Longer runs are for people."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import need
from tools.soaklib.history import Finding, History
from tools.soaklib.report import MODES, FaultRow, Report

ROUNDS = 15  # with SEED every mode comes at least twice
SEED = "16"


@pytest.mark.timeout(600)
def test_a_short_soak_finds_nothing(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "it attaches devices, which takes root")
    need(Path("/dev/fuse").exists(), "there is no /dev/fuse")
    evidence = tmp_path / "evidence"
    command = [
        sys.executable,
        "-m",
        "tools.soaklib",
        "--seed",
        SEED,
        "--rounds",
        f"{ROUNDS}",
        "--evidence",
        f"{evidence}",
    ]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for mode in MODES:
        assert f"| rounds: {mode} |" in done.stdout
    assert "| fault | times tried | I/O errors seen | mismatches | lost flushed writes |" in done.stdout
    assert "\n| kills of a worker | " in done.stdout.partition("| fault |")[2]
    assert not evidence.exists()


def follow(journal: str, **initial: int) -> History:
    """A history of a journal written without its times, of page 0 of space 0."""
    history = History({(0, 0): initial["first"]} if initial else None)
    history.follow(["0", *line.split()] for line in journal.strip().splitlines())
    return history


def test_what_was_flushed_must_be_there() -> None:
    history = follow("w 1 0 0 512 10\n + 1\n f 2 0\n + 2\n w 3 0 0 512 11")
    assert history.check({(0, 0): 10}, history.flushed, "") == []
    assert history.check({(0, 0): 11}, history.flushed, "") == []
    (finding,) = history.check({}, history.flushed, "")
    assert finding.kind == "lost"
    (finding,) = history.check({(0, 0): 12}, history.flushed, "")
    assert finding.kind == "foreign"


def test_a_flush_promises_nothing_that_was_acknowledged_after_it_began() -> None:
    history = follow("w 1 0 0 512 10\n f 2 0\n + 1\n + 2")
    assert history.check({}, history.flushed, "") == []
    assert [finding.kind for finding in history.check({}, float("inf"), "")] == ["lost"]


def test_writes_at_the_same_time_may_land_in_any_order() -> None:
    history = follow("w 1 0 0 512 10\n w 2 0 0 512 11\n + 2\n + 1\n f 3 0\n + 3", first=9)
    for version, wrong in ((9, ["lost"]), (10, []), (11, [])):
        assert [finding.kind for finding in history.check({(0, 0): version}, history.flushed, "")] == wrong


def test_a_read_must_see_what_was_acknowledged_before_it() -> None:
    assert follow("w 1 0 0 512 10\n r 2 0 0 512\n + 1\n + 2 0").findings == []
    (finding,) = follow("w 1 0 0 512 10\n + 1\n r 2 0 0 512\n + 2 0").findings
    assert finding.kind == "lost"


def test_each_fault_gets_what_its_rounds_saw() -> None:
    """The pause of a round with several kinds of fault is nobody's."""
    total = Report()
    first = Report(Counter({"kills of a worker": 2, "writes": 9, "I/O errors": 1}), [Finding("lost", "")], 0.25)
    second = Report(Counter({"kills of a worker": 1, "service: error": 7}), [], 9.0)
    for report in (first, second):
        report.attribute()
        total.add(report)
    assert total.faults == {"kills of a worker": FaultRow(3, 1, 0, 1, 0.25), "service: error": FaultRow(7)}
    assert "| kills of a worker | 3 | 1 | 0 | 1 | 0.25 s |" in total.text()
