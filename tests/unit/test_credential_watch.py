"""credential/watch.py: a file that changes is read again, and an end that comes near is warned of."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from blobfuse_dysk.azure.credential import watch
from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.azure.credential.file import read_conf
from blobfuse_dysk.errors import CredentialError
from tests.unit.test_credential import KEYS, until


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """As an editor or a secret manager does: another file in its place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(mode)
    new.rename(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "acc.conf"
    write(path, f"account_key = {KEYS[0]}\n")
    return path


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a file takes a thread, which a clock of trio's own does not wait for."""
    monkeypatch.setattr(watch, "LOOK_S", 0.01)


def of(path: Path) -> Credential:
    proof = Proof.from_conf(read_conf(path))
    assert proof
    return Credential("acc", proof)


def key(credential: Credential) -> object:
    return credential.to_config()["proof"]["account_key"]


def remove(path: Path) -> None:
    path.unlink()


async def test_a_file_that_is_replaced(path: Path, often: None) -> None:
    credential = of(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.watch, credential)
        await trio.testing.wait_all_tasks_blocked()
        write(path, f"account_key = {KEYS[1]}\n")
        await until(lambda: key(credential) == KEYS[1])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (f"account_key = {KEYS[1]}", 0o644, "can be read or written by others"),
        ("account_key = %%%", 0o600, "not base64"),
        ("endpoint = https://x.blob.core.windows.net", 0o600, "no credential any more"),
        (None, 0, "cannot be read"),
    ],
)
async def test_a_file_that_cannot_be_taken(
    path: Path, often: None, caplog: pytest.LogCaptureFixture, text: str | None, mode: int, says: str
) -> None:
    """The old credential stays, the log says why, once; a better file is taken later."""
    credential = of(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.watch, credential)
        await trio.testing.wait_all_tasks_blocked()
        if text is None:
            remove(path)
        else:
            write(path, text, mode)
        await until(lambda: "stays in use" in caplog.text)
        assert key(credential) == KEYS[0]
        write(path, f"account_key = {KEYS[1]}\n")
        await until(lambda: key(credential) == KEYS[1])
        nursery.cancel_scope.cancel()
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and says in warnings[0]


async def test_the_end_of_a_sas_is_warned_of_in_stages(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.time()
    sas = f"sv=2021-08-06&se={time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(began + 2 * 86400))}&sp=rw&sig=secret"
    credential = Credential("acc", Proof("sas", "the disk's URL", sas=sas))
    monkeypatch.setattr(time, "time", lambda: began + 10 * trio.current_time())  # six simulated minutes are an hour
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.watch, credential)
        seen = []
        for hours in (12, 25, 47.5, 47.9, 48.5):
            await trio.sleep_until(hours * 360)
            seen.append(len(caplog.records))
        assert seen == [0, 1, 2, 3, 5]
        assert "expired at" in caplog.text and "secret" not in caplog.text
        nursery.cancel_scope.cancel()


async def test_reload_from_another_file(path: Path, tmp_path: Path) -> None:
    credential = Credential("acc", Proof("sas", "the disk's URL", sas="sv=1&sig=x"))
    with pytest.raises(CredentialError, match="the disk's URL cannot be read again") as caught:
        await credential.reload()
    assert "--credentials" in str(caught.value.remedy)
    with pytest.raises(CredentialError, match="cannot be read"):
        await credential.reload(str(tmp_path / "none.conf"))
    assert (credential.kind, credential.file) == ("sas", "")
    await credential.reload(str(path))
    assert (credential.kind, credential.file, key(credential)) == ("key", str(path), KEYS[0])
