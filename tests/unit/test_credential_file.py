"""conffile.py: every mistake in a credential file is named with its line, and no message shows a secret."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from blobfuse_dysk.azure.credential import file
from blobfuse_dysk.azure.credential.file import DEVELOPMENT_KEY, Conf, ConnectionString, read_conf
from blobfuse_dysk.azure.credential.sas import Sas
from blobfuse_dysk.azure.tls import check_ca_file
from blobfuse_dysk.disk import Endpoint
from blobfuse_dysk.diskfile import read_disk_file
from blobfuse_dysk.errors import CredentialError, DyskError
from tests.conftest import need

KEY = "c2VjcmV0LXNlY3JldC1zZWNyZXQ="
SAS = "sv=2021-12-02&se=2030-01-01T00%3A00%3A00Z&sp=rw&sig=SECRET%2Bx"


def write(directory: Path, text: str, mode: int = 0o600) -> Path:
    path = directory / "acc.conf"
    path.write_text(text)
    path.chmod(mode)
    return path


def conf(directory: Path, text: str) -> Conf:
    return read_conf(write(directory, text))


def test_every_key_of_a_file_is_read(tmp_path: Path) -> None:
    found = conf(
        tmp_path,
        f"# the key\n\naccount_key = {KEY}\nendpoint=http://127.0.0.1:10000\n realm = core.chinacloudapi.cn \n"
        "ca_file = '/etc/ca.pem'\nALLOW_HTTP = Yes\nauth = key\n",
    )
    assert (found.auth, found.account_key, found.endpoint) == ("key", KEY, "http://127.0.0.1:10000")
    assert (found.realm, found.ca_file, found.allow_http) == ("core.chinacloudapi.cn", "/etc/ca.pem", True)


@pytest.mark.parametrize(
    ("text", "auth"),
    [
        (f"account_key = {KEY}", "key"),
        (f"sas = ?{SAS}", "sas"),
        (f"connection_string = AccountName=acc;AccountKey={KEY}", "connection"),
        ("auth = entra\nclient_id = 1234", "entra"),
        ('token_command = /usr/bin/get-token --for "a b"', "entra"),
        ("auth = anonymous", "anonymous"),
        ("endpoint = https://acc.example", ""),
        ("", ""),
    ],
)
def test_what_a_file_holds_says_which_kind_of_credential_it_is(tmp_path: Path, text: str, auth: str) -> None:
    found = conf(tmp_path, text)
    assert found.auth == auth
    assert "SECRET" not in repr(found)
    assert KEY not in repr(found)
    assert found.sas in ("", SAS)
    assert found.token_command in ((), ("/usr/bin/get-token", "--for", "a b"))


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("account_key", "line 1: expected 'key = value'", "account_key"),
        ("c2VjcmV0SECRET==", "line 1: expected 'key = value'", None),
        ("\n\nbad key! = 1", "line 3: expected 'key = value'", None),
        ("acount_key = x", "line 1: unknown key 'acount_key'", "did you mean account_key?"),
        ("zzz = x", "line 1: unknown key 'zzz'", "keys are account_key"),
        ("# x\naccount_key =", "line 2: expected a value", None),
        (f"account_key = {KEY}\naccount_key = {KEY}", "line 2: account_key is given in line 1", None),
        ("account_key = SECRET!", "line 1: the account key is not base64", "88 characters"),
        ("sas = SECRET", "line 1: the SAS has no signature", "sv="),
        ("sas = sig=SECRET SECRET", "line 1: the SAS holds blanks", None),
        ("connection_string = SECRET", "line 1: part 1 of the connection string", None),
        ("connection_string = AccountName=acc", "neither AccountKey nor SharedAccessSignature", None),
        ("connection_string = AccountKey=SECRET!", "line 1: the account key is not base64", None),
        (
            f"account_key = {KEY}\nsas = {SAS}",
            "line 2: expected one credential, but account_key and sas",
            "all but one",
        ),
        ("auth = magic", "line 1: expected auth = key, sas, entra or anonymous", None),
        (f"auth = entra\naccount_key = {KEY}", "line 1: auth = entra does not go with account_key", None),
        ("auth = key", "line 1: auth = key, but there is no account_key", None),
        ("endpoint = ftp://x", "line 1: endpoint 'ftp://x'", None),
        ("endpoint = https://h:99999", "line 1: endpoint", "port"),
        ("allow_http = maybe", "line 1: expected yes or no", None),
        ("token_command = 'x", "line 1: token_command cannot be split", None),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_place_and_without_the_secret(
    tmp_path: Path, text: str, message: str, remedy: str | None
) -> None:
    with pytest.raises(CredentialError) as caught:
        conf(tmp_path, text)
    line = caught.value.line().replace(str(tmp_path), "DIR")
    assert "DIR/acc.conf" in line
    assert message in line
    assert caught.value.remedy and (remedy or "") in caught.value.remedy
    assert "SECRET" not in line
    assert KEY not in line


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path, f"account_key = {KEY}", mode)
    with pytest.raises(CredentialError, match=f"mode {mode:04o}") as caught:
        read_conf(path)
    assert caught.value.remedy == f"run: chmod 600 {path}"
    path.chmod(0o400)
    assert read_conf(path).auth == "key"


def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "it gives a file away, which takes root")
    path = write(tmp_path, f"account_key = {KEY}")
    os.chown(path, 12345, 0)
    with pytest.raises(CredentialError, match="belongs to user id 12345") as caught:
        read_conf(path)
    assert caught.value.remedy == f"run: chown root {path}"


def test_what_is_no_credential_file(tmp_path: Path) -> None:
    (tmp_path / "binary.conf").write_bytes(b"\xff\xfe\0\0")
    (tmp_path / "binary.conf").chmod(0o600)
    for path, message in (
        (tmp_path / "missing.conf", "No such file"),
        (tmp_path, "cannot be read"),
        (Path("/dev/null"), "not a regular file"),
        (tmp_path / "binary.conf", "not text"),
    ):
        with pytest.raises(CredentialError, match=message) as caught:
            read_conf(path)
        assert caught.value.remedy


def test_a_file_that_may_not_be_read_takes_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(file, "open_text", refuse)
    with pytest.raises(CredentialError) as caught:
        read_conf(tmp_path / "acc.conf")
    assert caught.value.remedy == "run it as root"


def test_a_connection_string_gives_account_proof_and_endpoint() -> None:
    full = ConnectionString.parse(
        f"DefaultEndpointsProtocol=https;AccountName=acc;AccountKey={KEY};EndpointSuffix=core.usgovcloudapi.net", "here"
    )
    assert (full.account, full.key) == ("acc", KEY)
    assert full.endpoint == Endpoint("https", "acc.blob.core.usgovcloudapi.net", 443)
    shared = ConnectionString.parse(f"BlobEndpoint=https://b.example/;SharedAccessSignature={SAS};", "here")
    assert (shared.account, shared.key, shared.sas) == ("", "", SAS)
    assert shared.endpoint == Endpoint("https", "b.example", 443)
    assert ConnectionString.parse(f"accountname=acc;accountkey={KEY}", "here").endpoint is None
    assert KEY not in repr(full)
    assert "SECRET" not in repr(shared)
    with pytest.raises(CredentialError, match="here: endpoint"):
        ConnectionString.parse(f"AccountKey={KEY};BlobEndpoint=nonsense://x", "here")


def test_the_development_account() -> None:
    local = ConnectionString.parse("UseDevelopmentStorage=true", "here")
    assert (local.account, local.key) == ("devstoreaccount1", DEVELOPMENT_KEY)
    assert str(local.endpoint) == "http://127.0.0.1:10000/devstoreaccount1"
    proxied = ConnectionString.parse("UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://azurite", "here")
    assert str(proxied.endpoint) == "http://azurite:10000/devstoreaccount1"


def test_what_a_sas_tells_about_itself() -> None:
    sas = Sas.parse(f"?{SAS}&st=2026-01-31", "here")
    assert sas.text == f"{SAS}&st=2026-01-31"
    assert (sas.starts_at, sas.expires_at, sas.rights) == (1769817600.0, 1893456000.0, "rw")
    assert sas.has("w")
    assert not sas.has("d")
    assert "SECRET" not in repr(sas)
    policy = Sas.parse("sv=1&si=policy&sig=x&se=nonsense", "here")
    assert (policy.expires_at, policy.starts_at) == (None, None)
    assert policy.has("w")


@pytest.mark.parametrize("read", [read_conf, read_disk_file])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """Opening one waits for who writes to it, for ever."""
    path = tmp_path / "acc.conf"
    os.mkfifo(path, 0o600)
    with pytest.raises(DyskError, match="is not a regular file"):
        read(path)


def test_a_ca_file_that_is_a_fifo_is_refused_likewise(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ca.pem")
    with pytest.raises(CredentialError, match="it is not a regular file"):
        check_ca_file(str(tmp_path / "ca.pem"))


def test_a_path_with_a_zero_byte_is_an_error_of_ours() -> None:
    with pytest.raises(CredentialError, match="cannot be read"):
        read_conf(Path("/etc/dysk/a\0b"))


@pytest.mark.parametrize(
    ("sas", "says", "remedy"),
    [
        ("https://acc.blob.core.windows.net/disks/data?sv=1&sig=SECRET", "is a whole URL", "behind the '?'"),
        ("sv=1&sig=a+SECRET=", "a '+' in sig", "%2B"),
        ("sv=1&se=2030-01-01T00:00:00+01:00&sig=SECRET", "a '+' in se", "%2B"),
    ],
)
def test_a_sas_that_was_copied_wrong_is_told_how(sas: str, says: str, remedy: str) -> None:
    with pytest.raises(CredentialError) as caught:
        Sas.parse(sas, "acc.conf, line 1")
    assert says in str(caught.value) and "acc.conf, line 1" in str(caught.value)
    assert remedy in str(caught.value.remedy) and "SECRET" not in caught.value.line()


def test_a_plus_that_is_encoded_or_is_a_blank_of_a_name_is_taken() -> None:
    assert Sas.parse("?sv=1&si=my+policy&sig=a%2Bb%3D", "x").text == "sv=1&si=my+policy&sig=a%2Bb%3D"
