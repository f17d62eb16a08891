"""Fixtures of the unit tests."""

from __future__ import annotations

import os

import pytest

from tests.suspension import suspend

__all__ = ["suspend"]


@pytest.fixture(autouse=True)
def _no_variables_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shell that runs the tests has set for dysk is not what they are about."""
    for name in [each for each in os.environ if each.startswith("DYSK_")]:
        monkeypatch.delenv(name)
