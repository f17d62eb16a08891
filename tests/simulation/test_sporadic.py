"""Refusals that do not depend on the rate cost little, and nothing once they end. All cells: sporadic.py."""

from __future__ import annotations

import pytest

from tests.simulation.sporadic import Cell, run

CELLS = [
    Cell(20.0, 1, "503", None),
    Cell(20.0, 32, "503", None),
    Cell(50.0, 4, "strict", None),
    Cell(120.0, 1, "strict", None),
    Cell(120.0, 32, "503", None),
    Cell(500.0, 1, "503", None),
    Cell(500.0, 32, "strict", None),
    Cell(2300.0, 4, "503", None),
    Cell(20_000.0, 8, "503", None, 0.02),
    Cell(20.0, 4, "503", 1.0),
    Cell(120.0, 32, "503", 1.0),
    Cell(500.0, 32, "strict", 1.0),
    Cell(500.0, 1, "strict", None),
    Cell(50.0, 4, "503", 1.0),
    Cell(120.0, 1, "strict", 1.0),
    Cell(500.0, 4, "strict", 1.0),
    Cell(2300.0, 32, "strict", 1.0),
    Cell(7500.0, 128, "503", 1.0),
    Cell(50.0, 1, "503", 1.0),
    Cell(50.0, 1, "strict", 1.0),
    Cell(50.0, 32, "503", 1.0),
    Cell(500.0, 1, "503", 1.0),
    Cell(20_000.0, 8, "503", 1.0, 0.02),
    Cell(20_000.0, 128, "503", 1.0, 0.05),
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_refusals_at_random_cost_a_tenth_at_most_and_are_forgotten_in_five_seconds(cell: Cell) -> None:
    outcome = run(cell)
    assert outcome.meanwhile >= 0.9
    assert outcome.afterwards >= 0.95
    assert outcome.found >= 0.83
