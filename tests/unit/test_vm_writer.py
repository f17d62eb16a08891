"""The checker of tests/vm must see what is missing, old or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.writer import FILES, check, content


def fill(directory: Path, last: int) -> None:
    """What the writer leaves behind when `last` was the newest file."""
    for number in range(last + 1):
        (directory / f"f{number % FILES}").write_bytes(content(number))


def test_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    fill(tmp_path, 150)
    check(str(tmp_path), 150)
    check(str(tmp_path), 140)  # newer files than those acknowledged are fine


def test_a_file_in_the_making_is_fine_beyond_the_last_acknowledged(tmp_path: Path) -> None:
    fill(tmp_path, 20)
    (tmp_path / "f21").write_bytes(content(21)[:100])
    check(str(tmp_path), 20)


@pytest.mark.parametrize("last", [151, 200])
def test_a_lost_file_is_found(tmp_path: Path, last: int) -> None:
    fill(tmp_path, 150)
    with pytest.raises(ValueError, match="was acknowledged"):
        check(str(tmp_path), last)


def test_damage_is_found(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    (tmp_path / "f4").write_bytes(content(4)[:-512] + bytes(512))
    with pytest.raises(ValueError, match="file 4 is damaged"):
        check(str(tmp_path), 10)


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    (tmp_path / "f3").unlink()
    with pytest.raises(FileNotFoundError):
        check(str(tmp_path), 10)
