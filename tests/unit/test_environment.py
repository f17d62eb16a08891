"""environment.py: defaults, and what overrides them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from blobfuse_dysk import attachment, environment


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


def test_what_is_written_in_c_is_used_unless_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a worker is started with the switch, as it inherits no environment."""
    for value, used in (("no", False), ("", True), ("yes", True)):
        monkeypatch.setenv("DYSK_NATIVE", value)
        assert environment.uses_native() is used
        assert attachment._directories().get("DYSK_NATIVE") == (None if used else "no")


def test_the_kernel_sends_requests_again_unless_it_is_not_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holder and worker are started with the switch, too."""
    for value, used in (("no", False), ("", True), ("yes", True)):
        monkeypatch.setenv("DYSK_RESEND", value)
        assert environment.uses_resend() is environment.uses_resend({"DYSK_RESEND": value}) is used
        assert attachment._directories().get("DYSK_RESEND") == (None if used else "no")


def test_variables_of_azure_that_are_empty_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCOUNT", "KEY", "SAS_TOKEN", "CONNECTION_STRING", "AUTH_MODE"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    assert environment.azure_variables() == {}
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "acc")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "")
    monkeypatch.setenv("AZURE_STORAGE_AUTH_MODE", "login")
    assert environment.azure_variables() == {"ACCOUNT": "acc", "AUTH_MODE": "login"}


FORBIDDEN = {
    "PYTHONPATH": "/tmp/evil",
    "PYTHONSTARTUP": "/tmp/evil.py",
    "LD_PRELOAD": "/tmp/evil.so",
    "PATH": "/tmp/evil",
    "SSL_CERT_FILE": "/tmp/evil.pem",
    "REQUESTS_CA_BUNDLE": "/tmp/evil.pem",
    "AZURE_STORAGE_KEY": "c2VjcmV0",
    "BASH_ENV": "/tmp/evil",
    "DYSK_RUN_DIR": "/tmp/evil",
}
WANTED = {"AZURE_CLIENT_ID": "id", "IDENTITY_ENDPOINT": "http://localhost:1/token", "HTTPS_PROXY": "http://proxy:3128"}


def test_a_login_gets_the_variables_that_it_needs_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker got the whole environment of whoever attached, and with it the modules that it loads, as root."""
    for name in environment.LOGIN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**FORBIDDEN, **WANTED}.items():
        monkeypatch.setenv(name, value)
    assert environment.login_variables() == WANTED


def test_what_is_no_login_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration of a worker of an older version has all."""
    names = {**FORBIDDEN, **WANTED}
    # A copy, as what is set here is nothing that monkeypatch would take back.
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name not in names})
    environment.restore({**FORBIDDEN, **WANTED})
    assert {name: os.environ.get(name) for name in {**FORBIDDEN, **WANTED}} == {**dict.fromkeys(FORBIDDEN), **WANTED}


def test_all_that_azure_identity_reads_is_handed_over() -> None:
    from azure.identity._constants import EnvironmentVariables

    read = {value for value in vars(EnvironmentVariables).values() if isinstance(value, str) and value.isupper()}
    assert len(read) > 20
    assert read - environment.LOGIN_VARIABLES == set()
