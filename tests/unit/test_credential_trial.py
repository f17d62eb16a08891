"""credential.py: what is new is tried, and what is in use stays if the service refuses it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from blobfuse_dysk.azure.credential import credential as identity
from blobfuse_dysk.azure.credential import watch
from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.azure.credential.file import read_conf
from blobfuse_dysk.device.worker import operations
from blobfuse_dysk.disk import Endpoint
from blobfuse_dysk.errors import CredentialError, TransportError
from tests.unit.test_credential import KEYS, until
from tests.unit.test_credential_watch import write

REFUSED = CredentialError("the key is not the account's", remedy="copy it again")
NO_NETWORK = TransportError("no route to host", sent=False)


class Service:
    """What a trial says, and what was tried."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.tried: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None

    async def __call__(self, new: Credential) -> None:
        self.tried.append(new.describe())
        self.meanwhile()
        await trio.lowlevel.checkpoint()
        assert not await new.renew_refused(new.signer()), "a trial renews nothing"
        if self.error:
            raise self.error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "acc.conf"
    write(path, f"account_key = {KEYS[0]}\n")
    return path


def of(path: Path, trial: Service) -> Credential:
    proof = Proof.from_conf(read_conf(path))
    assert proof
    credential = Credential("acc", proof, endpoint=Endpoint.of_account("acc"))
    credential.trial = trial
    return credential


def key(credential: Credential) -> object:
    return credential.to_config()["proof"]["account_key"]


def token_file(path: Path, text: str, life_s: float) -> str:
    """The text of a credential file whose token_command prints this token."""
    path.write_text(json.dumps({"access_token": text, "expires_on": time.time() + life_s}))
    return f"token_command = cat {path}\n"


@pytest.mark.parametrize("error", [REFUSED, NO_NETWORK])
async def test_what_is_refused_or_cannot_be_tried_changes_nothing(
    path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(error)
    credential = of(path, service)
    switched: list[bool] = []
    credential.on_switch = lambda: switched.append(True)
    signer, config = credential.signer(), credential.to_config()
    write(path, f"account_key = {KEYS[1]}\n")
    for _ in range(3):
        with pytest.raises(CredentialError, match="the old credential stays in use") as caught:
            await credential.reload()
        assert str(error) in str(caught.value) and caught.value.remedy
    assert (credential.signer(), credential.to_config()) == (signer, config) and not switched
    assert credential.problem and str(error) in credential.problem
    assert len(service.tried) == 3 and len(caplog.records) == 1, "it is in the log once"
    service.error = None
    await credential.reload()
    assert (key(credential), switched) == (KEYS[1], [True]) and credential.problem is None


async def test_what_is_on_trial_is_one_thing(path: Path) -> None:
    """A file that changes once more meanwhile is for the next trial; that one is made, too (watch.py)."""
    service = Service()
    credential = of(path, service)
    write(path, f"account_key = {KEYS[1]}\n")
    service.meanwhile = lambda: write(path, "account_key = dGhpcmQ=\n")
    await credential.reload()
    assert key(credential) == KEYS[1]
    await credential.reload()
    assert (key(credential), len(service.tried)) == ("dGhpcmQ=", 2)


async def test_another_file_that_is_refused_is_not_read_from_then_on(path: Path, tmp_path: Path) -> None:
    service = Service(REFUSED)
    credential = of(path, service)
    write(tmp_path / "other.conf", f"account_key = {KEYS[1]}\n")
    with pytest.raises(CredentialError, match="not the account's"):
        await credential.reload(str(tmp_path / "other.conf"))
    assert credential.file == str(path)
    service.error = None
    await credential.reload()
    assert (credential.file, key(credential), credential.problem) == (str(path), KEYS[0], None)


@pytest.mark.parametrize("and_key", [False, True])
async def test_a_changed_ca_file_or_allow_http_is_said_to_wait_for_the_next_attach(
    path: Path, caplog: pytest.LogCaptureFixture, and_key: bool
) -> None:
    """reload said that all was well, and went on with the authorities that it had, without a word."""
    credential = of(path, Service())
    write(path, f"account_key = {KEYS[and_key]}\nca_file = /etc/ca.pem\nallow_http = yes\n")
    says = f"ca_file and allow_http as at the attach, not as in {path} now: attach it anew for that"
    for _ in range(2):
        await credential.reload()
        assert operations._describe(credential)["what"] == f"account key from {path}; {says}"
    assert [record.message for record in caplog.records].count(says) == 1
    write(path, f"account_key = {KEYS[0]}\n")
    await credential.reload()
    assert operations._describe(credential)["what"] == f"account key from {path}"


async def test_what_has_expired_is_not_worth_waiting_for_the_network(path: Path) -> None:
    """A refusal counts all the same."""
    write(path, "sas = sv=1&sig=x&se=2020-01-01T00:00:00Z\n")
    service = Service(REFUSED)
    credential = of(path, service)
    write(path, f"account_key = {KEYS[1]}\n")
    with pytest.raises(CredentialError, match="not the account's"):
        await credential.reload()
    assert credential.kind == "sas"
    service.error = NO_NETWORK
    await credential.reload()
    assert credential.kind == "key"


async def test_the_first_token_is_not_tried_and_a_renewed_one_is(path: Path, tmp_path: Path) -> None:
    """Without a token there is nothing to lose. One that the service refuses does not take the place of one that it
    takes, be it of the same program."""
    write(path, token_file(tmp_path / "token", "one", 3600))
    service = Service(REFUSED)
    credential = of(path, service)
    await credential.freshen()
    assert service.tried == [] and credential.to_config()["token"]["text"] == "one"
    token_file(tmp_path / "token", "two", 3600)
    with pytest.raises(CredentialError, match="not the account's"):
        await credential.refresh(force=True)
    assert credential.to_config()["token"]["text"] == "one"
    assert time.time() < credential.renew_at, "and it is not tried again at once"
    service.error = None
    await credential.refresh(force=True)
    assert credential.to_config()["token"]["text"] == "two"


async def test_a_program_that_keeps_its_token_is_not_asked_each_minute(path: Path, tmp_path: Path) -> None:
    """As the Azure CLI does until shortly before the end."""
    write(path, token_file(tmp_path / "token", "one", 4000))
    service = Service()
    credential = of(path, service)
    await credential.freshen()
    credential.renew_at = 0.0
    await credential.refresh()
    assert credential.renew_at == pytest.approx(time.time() + 2000, abs=60)
    assert service.tried == []


async def test_a_program_without_a_token_leaves_the_key_in_use(path: Path) -> None:
    """The old one was lost before the new one was there."""
    credential = of(path, Service())
    signer = credential.signer()
    write(path, f"token_command = {sys.executable} -c \"print('{{}}')\"\n")
    with pytest.raises(CredentialError, match="printed no token"):
        await credential.reload()
    assert (credential.kind, credential.signer()) == ("key", signer)


async def test_a_file_that_became_anothers_is_refused_without_asking(path: Path) -> None:
    service = Service()
    credential = of(path, service)
    write(path, f"connection_string = AccountName=other;AccountKey={KEYS[1]}\n")
    with pytest.raises(CredentialError, match="is for account other"):
        await credential.reload()
    write(path, f"account_key = {KEYS[1]}\n")
    credential.endpoint = Endpoint.parse("https://elsewhere.example")
    with pytest.raises(CredentialError, match="is not sent to https://elsewhere"):
        await credential.reload()
    assert (key(credential), service.tried) == (KEYS[0], [])


async def test_a_reload_reads_the_file_though_a_renewal_is_under_way(path: Path, tmp_path: Path) -> None:
    """It must not be answered with the outcome of one that began before the file was written."""
    service = Service()
    credential = of(path, service)
    write(path, f"account_key = {KEYS[1]}\n")
    new = tmp_path / "new.conf"
    write(new, "account_key = dGhpcmQ=\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(credential.refresh, True)
        await trio.testing.wait_all_tasks_blocked()
        await credential.reload(str(new))
    assert (key(credential), credential.file) == ("dGhpcmQ=", str(new))


async def test_the_watch_tries_again_what_could_not_be_tried(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file does not change any more; the network comes back."""
    monkeypatch.setattr(watch, "LOOK_S", 0.01)
    monkeypatch.setattr(watch, "AGAIN_S", 0.05)
    service = Service(NO_NETWORK)
    credential = of(path, service)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.watch, credential)
        await trio.testing.wait_all_tasks_blocked()
        write(path, f"account_key = {KEYS[1]}\n")
        await until(lambda: len(service.tried) > 2)
        assert key(credential) == KEYS[0] and len(caplog.records) == 1
        service.error = None
        await until(lambda: key(credential) == KEYS[1])
        tried = len(service.tried)
        await trio.sleep(0.2)
        assert len(service.tried) == tried
        nursery.cancel_scope.cancel()


async def test_a_worker_that_begins_looks_what_the_file_has_now(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It begins with what the one before it used; that one may have died before it could take what is new."""
    caplog.set_level("INFO")
    monkeypatch.setattr(watch, "LOOK_S", 0.01)
    service = Service()
    credential = of(path, service)
    write(path, f"account_key = {KEYS[1]}\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.watch, credential)
        await until(lambda: key(credential) == KEYS[1])
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert len(service.tried) == 1 and len(caplog.messages) == 1
    caplog.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.watch, credential)
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert len(service.tried) == 1 and caplog.messages == [], "the same one is no news"


async def test_a_refused_old_one_has_the_new_one_tried(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the key is rotated after the file was written: refused at first, and then the only one that works."""
    monkeypatch.setattr(identity, "_REFUSED_S", 0.0)
    service = Service(REFUSED)
    credential = of(path, service)
    signer = credential.signer()
    write(path, f"account_key = {KEYS[1]}\n")
    assert not await credential.renew_refused(signer)
    service.error = None
    assert await credential.renew_refused(signer)
    assert key(credential) == KEYS[1]
