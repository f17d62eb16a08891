"""token.py: the only program that imports azure-identity, driven with a made-up login."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError

from blobfuse_dysk.azure.credential import token
from tests.conftest import need


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


def test_the_identity_that_the_environment_names_is_taken_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """azure-identity reads AZURE_CLIENT_ID only if the argument is not there at all; None means: of the machine."""
    made = login(monkeypatch, SimpleNamespace(token="abc", expires_on=123))
    assert token.main([]) == 0
    assert "managed_identity_client_id" not in made[0]


def test_a_failed_login_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    login(monkeypatch, ClientAuthenticationError("DefaultAzureCredential failed\n\tno network"))
    assert token.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["DefaultAzureCredential failed no network"]


TRIED = """DefaultAzureCredential failed to retrieve a token from the included credentials.
Attempted credentials:
\tEnvironmentCredential: EnvironmentCredential unavailable. Environment variables are not fully configured.
Visit https://aka.ms/x to troubleshoot this issue.
\tManagedIdentityCredential: ManagedIdentityCredential authentication unavailable.
\tAzureCliCredential: {}
\tVisualStudioCodeCredential: VisualStudioCodeCredential requires the 'x' package to be installed.
\tAzureDeveloperCliCredential: Azure Developer CLI could not be found.
To mitigate this issue, please refer to the troubleshooting guidelines here at https://aka.ms/y."""


@pytest.mark.parametrize(
    ("azure_cli", "line"),
    [
        (
            "Azure CLI not found on path",
            "no login applies on this machine "
            "(tried Environment, ManagedIdentity, AzureCli, VisualStudioCode, AzureDeveloperCli)",
        ),
        (
            "Please run 'az login' to set up an account",
            "AzureCliCredential: Please run 'az login' to set up an account",
        ),
    ],
)
def test_of_all_the_logins_those_that_were_set_up_tell_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], azure_cli: str, line: str
) -> None:
    login(monkeypatch, ClientAuthenticationError(TRIED.format(azure_cli)))
    assert token.main([]) == 1
    assert capsys.readouterr().err == f"{line}\n"


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    assert token.main([]) == 1
    assert "pip install 'blobfuse-dysk[entra]'" in capsys.readouterr().err


def test_it_runs_where_only_its_own_program_knows_the_package(tmp_path: Path) -> None:
    """As the Debian package has it: the path is set by dyskctl itself, and by nothing that a child inherits."""
    root = Path(token.__file__).resolve().parents[3]
    library = tmp_path / "lib"
    shutil.copytree(root / "blobfuse_dysk", library / "blobfuse_dysk")
    identity = library / "azure" / "identity"
    core = library / "azure" / "core"
    for package in (library / "azure", identity, core):
        package.mkdir()
        (package / "__init__.py").touch()
    (core / "exceptions.py").write_text("class ClientAuthenticationError(Exception): pass\n")
    (identity / "__init__.py").write_text(
        "from types import SimpleNamespace as S\n"
        "class DefaultAzureCredential:\n"
        "    def __init__(self, **options): pass\n"
        "    def get_token(self, scope): return S(token='abc', expires_on=123)\n"
    )
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "json.py").write_text("print('evil')")
    program = (
        f"import subprocess, sys; sys.path.insert(0, {str(library)!r})\n"
        "from blobfuse_dysk.azure.credential.tokencommand import own_command\n"
        "sys.exit(subprocess.run(own_command('id-1')).returncode)\n"
    )
    python = Path(sys.base_prefix, "bin", f"python3.{sys.version_info[1]}")
    need(python.exists(), "there is no Python outside the virtual environment")
    done = subprocess.run(
        [python, "-IS", "-c", program], cwd=evil, env={"PYTHONPATH": str(evil)}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ('{"access_token": "abc", "expires_on": 123}\n', "")
