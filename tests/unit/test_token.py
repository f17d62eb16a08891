"""token.py: the only program that imports azure-identity, driven with a made-up login."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError

from blobfuse_dysk.azure import token


def login(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[dict[str, Any]]:
    """Put a class in the place of DefaultAzureCredential; returns the arguments it is made with."""
    made: list[dict[str, Any]] = []

    class Login:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def get_token(self, scope: str) -> Any:
            made.append({"scope": scope})
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr("azure.identity.DefaultAzureCredential", Login)
    monkeypatch.setattr(token.logging, "disable", lambda level: None)  # type: ignore[attr-defined]
    return made


def test_it_prints_a_token(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = login(monkeypatch, SimpleNamespace(token="abc", expires_on=123))
    assert token.main(["--client-id", "id-1"]) == 0
    assert json.loads(capsys.readouterr().out) == {"access_token": "abc", "expires_on": 123}
    assert made[0]["managed_identity_client_id"] == "id-1"
    assert made[1] == {"scope": "https://storage.azure.com/.default"}


def test_a_failed_login_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    login(monkeypatch, ClientAuthenticationError("DefaultAzureCredential failed\n\tEnvironmentCredential: not set"))
    assert token.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["DefaultAzureCredential failed EnvironmentCredential: not set"]


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    assert token.main([]) == 1
    assert "pip install 'blobfuse-dysk[entra]'" in capsys.readouterr().err
