"""Fixtures of the unit tests."""

from __future__ import annotations

import os

import pytest

from tests.suspension import suspend
from tests.unit.trusted import Trust, make_trust

__all__ = ["suspend"]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    """A server for TLS, and who vouches for it."""
    return make_trust(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["TCP", "TLS"])
def trust(request: pytest.FixtureRequest, certificates: Trust) -> Trust | None:
    """The test runs twice: without TLS (None) and with it."""
    return certificates if request.param == "TLS" else None


@pytest.fixture(autouse=True)
def _no_variables_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shell that runs the tests has set for dysk is not what they are about."""
    for name in [each for each in os.environ if each.startswith("DYSK_")]:
        monkeypatch.delenv(name)
