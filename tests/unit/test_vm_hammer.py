"""The load of tests/vm must see what is missing, old or damaged, and what fails."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.hammer import PAGE, Hammer, Region, content


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "device").write_bytes(bytes(64 * PAGE))
    fd = os.open(tmp_path / "device", os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("depth", [1, 5, 64])
def test_what_works_is_found_to(fd: int, depth: int) -> None:
    hammer = Hammer(fd, depth, 64 * PAGE)
    timer = threading.Timer(0.2, hammer.ends.set)
    timer.start()
    hammer.run()
    assert hammer.errors == []
    assert sum(hammer.operations) > 20
    regions = [range(each.first, each.first + len(each.numbers)) for each in hammer.regions]
    assert len({page for region in regions for page in region}) == sum(map(len, regions)) <= 64


@pytest.mark.parametrize(
    "there", [bytes(PAGE), content(9, 1), content(8, 2), content(9, 2)[:-1] + b"x"], ids=["none", "old", "other", "bad"]
)
def test_a_wrong_byte_is_found(fd: int, there: bytes) -> None:
    region = Region(fd, 8, 4, random.Random(1))
    region.write(0, 4)
    region.write(1, 2)
    region.check(0, 4)
    os.pwrite(fd, there, 9 * PAGE)
    with pytest.raises(ValueError, match="page 9 holds"):
        region.check(0, 4)


def test_damage_ends_the_load(fd: int) -> None:
    hammer = Hammer(fd, 2, 64 * PAGE)
    threading.Timer(0.1, lambda: os.pwrite(fd, b"x" * 64 * PAGE, 0)).start()
    hammer.run()
    assert any("holds 7878" in error for error in hammer.errors)


def test_an_error_ends_the_load(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    hammer = Hammer(fd, 2, 64 * PAGE)
    monkeypatch.setattr(os, "preadv", fails)
    hammer.run()
    assert any("Input/output" in error for error in hammer.errors)
