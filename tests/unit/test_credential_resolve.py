"""credentials.py: which credential and endpoint is found, in which order, and what is said if there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from blobfuse_dysk.azure.credential.resolve import Credential, credential_from_config, resolve
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import CredentialError, DyskError, UsageError
from blobfuse_dysk.options import AttachOptions

KEY = "c2VjcmV0LXNlY3JldC1zZWNyZXQ="
SAS = "sv=2021-12-02&sp=rw&sig=SECRET"
SHORT = "acc/disks/data"
URL = "https://acc.blob.core.windows.net/disks/data"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a credential file into the configuration directory; no AZURE_STORAGE_* variable is set."""
    for name in ("ACCOUNT", "KEY", "SAS_TOKEN", "CONNECTION_STRING", "AUTH_MODE"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    monkeypatch.setenv("DYSK_CONFIG_DIR", str(tmp_path))

    def write(text: str, name: str = "acc.conf") -> Path:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


def find(disk: str = SHORT, **options: object) -> tuple[DiskAddress, Credential]:
    return resolve(DiskAddress.parse(disk), AttachOptions(**options))  # type: ignore[arg-type]


def test_the_nearest_credential_is_taken_in_the_order_of_the_manual(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"?{SAS}")
    assert find()[1].describe() == "SAS from AZURE_STORAGE_SAS_TOKEN"
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    assert find()[1].describe() == "account key from AZURE_STORAGE_KEY"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountName=acc;AccountKey={KEY}")
    assert find()[1].describe() == "account key from AZURE_STORAGE_CONNECTION_STRING"
    monkeypatch.setenv("AZURE_STORAGE_AUTH_MODE", "login")
    assert find()[1].describe() == "Entra ID token from AZURE_STORAGE_AUTH_MODE"
    path = write(f"account_key = {KEY}")
    assert find()[1].describe() == f"account key from {path}"
    assert find(f"{URL}?{SAS}")[1].describe() == "SAS from the disk's URL"
    explicit = write(f"sas = {SAS}", "other")
    assert find(f"{URL}?{SAS}", credentials=str(explicit))[1].describe() == f"SAS from {explicit}"


def test_a_key_given_with_the_disk(write: Write) -> None:
    address = DiskAddress("acc", "disks", "data", account_key=KEY)
    resolved, credential = resolve(address, AttachOptions())
    assert resolved.account_key is None
    assert credential.describe() == "account key from the command line"


@pytest.mark.parametrize(
    ("disk", "conf", "options", "expected"),
    [
        (SHORT, "", {}, "https://acc.blob.core.windows.net"),
        (SHORT, "", {"realm": "core.chinacloudapi.cn"}, "https://acc.blob.core.chinacloudapi.cn"),
        (SHORT, "realm = core.usgovcloudapi.net", {}, "https://acc.blob.core.usgovcloudapi.net"),
        (SHORT, "endpoint = http://127.0.0.1:10000", {}, "http://127.0.0.1:10000/acc"),
        (SHORT, "endpoint = http://127.0.0.1:1", {"endpoint": "https://e.example"}, "https://e.example"),
        (URL, "endpoint = http://127.0.0.1:1", {"endpoint": "https://e.example"}, "https://acc.blob.core.windows.net"),
    ],
)
def test_the_endpoint_comes_from_the_disk_the_option_or_the_file(
    write: Write, disk: str, conf: str, options: dict[str, str], expected: str
) -> None:
    write(f"account_key = {KEY}\n{conf}")
    assert str(find(disk, **options)[0].endpoint) == expected


def test_a_file_may_have_the_endpoint_only(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("endpoint = https://e.example\nca_file = /ca.pem")
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    address, credential = find()
    assert str(address.endpoint) == "https://e.example"
    assert credential.describe() == "account key from AZURE_STORAGE_KEY"
    assert credential.ca_file == "/ca.pem"
    with pytest.raises(CredentialError, match="has no credential"):
        find(credentials=str(path))


def test_connection_strings_bring_their_endpoint(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "UseDevelopmentStorage=true")
    address, credential = find("devstoreaccount1/disks/data")
    assert str(address.endpoint) == "http://127.0.0.1:10000/devstoreaccount1"
    assert credential.kind == "key"
    write(f"connection_string = BlobEndpoint=https://b.example;SharedAccessSignature={SAS}")
    address, credential = find()
    assert (str(address.endpoint), credential.kind) == ("https://b.example", "sas")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "no credential for account acc"),
        ({"CONNECTION_STRING": "UseDevelopmentStorage=true"}, "is for account devstoreaccount1"),
        ({"ACCOUNT": "other", "KEY": KEY}, "AZURE_STORAGE_ACCOUNT is other"),
        ({"AUTH_MODE": "key"}, "AZURE_STORAGE_AUTH_MODE is 'key'"),
        ({"KEY": "SECRET!"}, "AZURE_STORAGE_KEY: the account key is not base64"),
        ({"SAS_TOKEN": "SECRET"}, "AZURE_STORAGE_SAS_TOKEN: the SAS has no signature"),
    ],
)
def test_variables_that_are_no_credential_are_told_without_their_secret(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    with pytest.raises(CredentialError, match=message) as caught:
        find()
    assert "SECRET" not in caught.value.line()
    if message.startswith("no credential"):
        assert f"{tmp_path}/acc.conf" in (caught.value.remedy or "")


def test_a_connection_string_for_another_account(write: Write) -> None:
    write(f"connection_string = AccountName=other;AccountKey={KEY}")
    with pytest.raises(CredentialError, match="is for account other, the disk is in acc"):
        find()


def test_plain_http_is_for_this_machine_or_by_permission(write: Write) -> None:
    write(f"account_key = {KEY}")
    assert find(endpoint="http://localhost:10000")[0].endpoint is not None
    assert find(endpoint="http://[::1]:10000")[0].endpoint is not None
    with pytest.raises(UsageError, match="plain HTTP") as caught:
        find(endpoint="http://10.0.0.5")
    assert "allow_http" in (caught.value.remedy or "")
    assert find(endpoint="http://10.0.0.5", allow_http=True)[1].allow_http
    write(f"account_key = {KEY}\nallow_http = yes")
    assert find(endpoint="http://10.0.0.5")[1].allow_http


@pytest.mark.parametrize("conf", ["account_key = \0", "endpoint"])
def test_a_bad_file_is_an_error_even_if_the_url_has_a_sas(write: Write, conf: str) -> None:
    write(conf)
    with pytest.raises(DyskError, match="line 1"):
        find(f"{URL}?{SAS}")


@pytest.mark.parametrize(
    "conf", [f"account_key = {KEY}", f"sas = {SAS}", "token_command = a b", "auth = anonymous", "auth = entra"]
)
def test_a_credential_survives_json_and_never_shows_its_secret(write: Write, conf: str) -> None:
    write(f"{conf}\nca_file = /ca.pem\nallow_http = yes")
    address, credential = find(f"{URL}")
    text = json.dumps(credential.to_config())
    copy = credential_from_config(json.loads(text))
    assert copy.to_config() == credential.to_config()
    assert copy.describe() == credential.describe()
    for shown in (repr(credential), credential.describe(), repr(address), str(address)):
        assert "SECRET" not in shown
        assert KEY not in shown


@pytest.mark.parametrize("variable", [True, False])
def test_who_may_not_read_roots_file_has_his_own_variables(
    variable: bool, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(f"account_key = {KEY}")
    if variable:
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", SAS)
    monkeypatch.setattr(os, "access", lambda of, mode: of != path)
    assert find()[1].describe() == ("SAS from AZURE_STORAGE_SAS_TOKEN" if variable else f"account key from {path}")
