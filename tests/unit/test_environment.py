"""environment.py: defaults, and what overrides them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from blobfuse_dysk import environment


@pytest.mark.parametrize(
    ("function", "variable", "default"),
    [
        (environment.run_dir, "DYSK_RUN_DIR", "/run/dysk"),
        (environment.config_dir, "DYSK_CONFIG_DIR", "/etc/dysk"),
        (environment.log_dir, "DYSK_LOG_DIR", "/var/log/dysk"),
        (environment.dev_dir, "DYSK_DEV_DIR", "/dev/dysk"),
    ],
)
def test_a_directory_may_be_named_by_a_variable_that_is_not_empty(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[], Path], variable: str, default: str
) -> None:
    monkeypatch.delenv(variable, raising=False)
    assert function() == Path(default)
    monkeypatch.setenv(variable, "")
    assert function() == Path(default)
    monkeypatch.setenv(variable, "/elsewhere")
    assert function() == Path("/elsewhere")


def test_a_node_has_the_name_of_its_host_or_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYSK_NODE", raising=False)
    assert environment.node_name() == socket.gethostname()
    monkeypatch.setenv("DYSK_NODE", "node-7")
    assert environment.node_name() == "node-7"


def test_variables_of_azure_that_are_empty_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCOUNT", "KEY", "SAS_TOKEN", "CONNECTION_STRING", "AUTH_MODE"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    assert environment.azure_variables() == {}
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "acc")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "")
    monkeypatch.setenv("AZURE_STORAGE_AUTH_MODE", "login")
    assert environment.azure_variables() == {"ACCOUNT": "acc", "AUTH_MODE": "login"}
