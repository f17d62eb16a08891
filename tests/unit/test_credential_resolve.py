"""credentials.py: which credential and endpoint is found, in which order, and what is said if there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from blobfuse_dysk import environment
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
        (SHORT, "realm = cloud.example", {}, "https://acc.blob.cloud.example"),
        (SHORT, "endpoint = http://127.0.0.1:10000", {}, "http://127.0.0.1:10000/acc"),
        (SHORT, "endpoint = https://e.example", {"realm": "core.chinacloudapi.cn"}, "https://e.example"),
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


def test_plain_http_is_for_this_machine_or_by_permission(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    assert find(endpoint="http://localhost:10000")[0].endpoint is not None
    assert find(endpoint="http://[::1]:10000")[0].endpoint is not None
    with pytest.raises(UsageError, match="plain HTTP") as caught:
        find(endpoint="http://10.0.0.5")
    assert "allow_http" in (caught.value.remedy or "")
    assert find(endpoint="http://10.0.0.5", allow_http=True)[1].allow_http
    write(f"account_key = {KEY}\nendpoint = http://10.0.0.5/acc")
    with pytest.raises(UsageError, match="plain HTTP"):
        find()
    write(f"account_key = {KEY}\nendpoint = http://10.0.0.5\nallow_http = yes")
    assert find()[1].allow_http


OWN = [
    "https://acc.blob.core.windows.net",
    "https://acc-secondary.blob.core.windows.net",
    "https://acc.privatelink.blob.core.windows.net",
    "https://acc.blob.core.chinacloudapi.cn",
    "https://acc.blob.core.usgovcloudapi.net",
    "https://acc.z22.blob.storage.azure.net",
]
FOREIGN = [
    "https://acc.evil.example",
    "https://acc.blob.core.windows.net.evil.example",
    "https://acc.blob.core.windows.net:8443",
    "https://acc.blob.core.windows.net/proxy",
    "https://other.blob.core.windows.net",
    "https://acc.evil.blob.core.windows.net",
    "https://acc.file.core.windows.net",
    "http://localhost:10000",
    "http://127.0.0.1:10000/acc",
    "https://10.0.0.5/acc",
]
PROOFS = [
    f"account_key = {KEY}",
    f"sas = {SAS}",
    "auth = entra",
    f"connection_string = AccountName=acc;AccountKey={KEY}",
]


@pytest.mark.parametrize("proof", PROOFS)
@pytest.mark.parametrize("explicit", [False, True])
def test_the_credential_of_a_file_goes_to_its_own_account_only(write: Write, proof: str, explicit: bool) -> None:
    path = write(proof)
    options = {"credentials": str(path)} if explicit else {}
    for endpoint in OWN:
        assert find(endpoint=endpoint, **options)[1].file == str(path)
    for endpoint in FOREIGN:
        with pytest.raises(CredentialError, match=r"acc\.conf is not sent to http") as caught:
            find(endpoint=endpoint, **options)
        assert "endpoint = http" in (caught.value.remedy or "")
    for disk in ("https://acc.evil.example/disks/data", "http://localhost:10000/acc/disks/data"):
        with pytest.raises(CredentialError, match="is not sent to"):
            find(disk, **options)
    with pytest.raises(CredentialError, match="is not sent to"):
        find(realm="evil.example", **options)


@pytest.mark.parametrize(
    ("names", "disk"),
    [
        ("endpoint = https://acc.intern.example", "https://acc.intern.example/disks/data"),
        ("endpoint = http://localhost:10000", "http://localhost:10000/acc/disks/data"),
        ("realm = intern.example", "https://acc.blob.intern.example/disks/data"),
    ],
)
def test_what_the_file_names_is_its_accounts_own(write: Write, names: str, disk: str) -> None:
    path = write(f"account_key = {KEY}\n{names}")
    assert find(disk)[1].file == str(path)


def test_what_is_given_with_an_endpoint_goes_there(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SAS in the disk's URL, a key on the command line: no file's, though a file may say whom to trust there."""
    write(f"account_key = {KEY}")
    url = "https://acc.intern.example/disks/data"
    assert find(f"{url}?{SAS}")[1].describe() == "SAS from the disk's URL"
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    write("ca_file = /ca.pem")
    assert find(endpoint="https://acc.intern.example")[1].describe() == "account key from AZURE_STORAGE_KEY"
    assert find(url, endpoint="https://acc.intern.example")[1].describe() == "account key from AZURE_STORAGE_KEY"


@pytest.mark.parametrize(
    "variables", [{"AUTH_MODE": "login"}, {"KEY": KEY}, {"SAS_TOKEN": SAS}, {"CONNECTION_STRING": f"AccountKey={KEY}"}]
)
def test_what_variables_hold_goes_to_no_host_that_a_url_brings(
    write: Write, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    url = "https://acc.evil.example/disks/data"
    with pytest.raises(CredentialError, match="is not sent to https://acc") as caught:
        find(url)
    assert caught.value.remedy and "--endpoint" in caught.value.remedy
    with pytest.raises(CredentialError, match="is not sent to"):
        find(url, endpoint="https://acc.intern.example")
    assert find(URL)[1].file == ""
    write("endpoint = https://acc.evil.example")
    assert find(url)[1].file == ""


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


async def test_a_path_that_is_typed_holds_wherever_the_worker_runs(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's directory is the root directory; a relative path found the file at the attach and never again."""
    write(f"account_key = {KEY}", "other")
    write(f"account_key = {KEY}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYSK_CONFIG_DIR", ".")
    for credential in (find(credentials="other")[1], find(credentials=".//other")[1], find()[1]):
        monkeypatch.chdir("/")
        await credential.reload()
        assert credential.file in (f"{tmp_path}/other", f"{tmp_path}/acc.conf")
        monkeypatch.chdir(tmp_path)


def test_the_directories_are_absolute_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, directory in (
        ("RUN", environment.run_dir),
        ("CONFIG", environment.config_dir),
        ("LOG", environment.log_dir),
        ("DEV", environment.dev_dir),
    ):
        monkeypatch.setenv(f"DYSK_{variable}_DIR", "sub//x")
        assert directory() == tmp_path / "sub" / "x"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ca_file = certs/ca.pem", "ca_file"),
        ("token_command = ./token --json", "token_command"),
        ("token_command = bin/token", "token_command"),
    ],
)
def test_a_file_names_other_files_by_their_whole_path(write: Write, line: str, says: str) -> None:
    write(f"account_key = {KEY}\n{line}" if says == "ca_file" else line)
    with pytest.raises(CredentialError, match=f"line [12]: {says} is a relative path"):
        find()


@pytest.mark.parametrize("variable", [True, False])
def test_who_may_not_read_roots_file_has_his_own_variables(
    variable: bool, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(f"account_key = {KEY}")
    if variable:
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", SAS)
    monkeypatch.setattr(os, "access", lambda of, mode: of != path)
    assert find()[1].describe() == ("SAS from AZURE_STORAGE_SAS_TOKEN" if variable else f"account key from {path}")
