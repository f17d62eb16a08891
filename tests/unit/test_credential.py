"""identity.py and tokencommand.py: a credential renews itself, without delaying anybody who has one that holds."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from blobfuse_dysk.azure.credential import credential as identity
from blobfuse_dysk.azure.credential import token, tokencommand
from blobfuse_dysk.azure.credential.credential import Credential, Proof, check_transport
from blobfuse_dysk.azure.credential.file import read_conf
from blobfuse_dysk.azure.credential.tokencommand import Token, fetch_token, own_command
from blobfuse_dysk.azure.signing import BearerSigner, SasSigner, SharedKeySigner
from blobfuse_dysk.azure.wire import Request
from blobfuse_dysk.device.ipc.state import alive
from blobfuse_dysk.device.ipc.state import identity as identity_of
from blobfuse_dysk.disk import Endpoint
from blobfuse_dysk.errors import CredentialError, UsageError

KEYS = ["Zmlyc3Q=", "c2Vjb25k"]
REQUEST = Request("GET", "/x", "", "/x", "", "", "Host:h\n")


def printing(text: str, *, exit_code: int = 0, error: str = "") -> tuple[str, ...]:
    """A token command that prints this."""
    program = f"import sys; print({text!r}); print({error!r}, file=sys.stderr); sys.exit({exit_code})"
    return (sys.executable, "-c", program)


def token_json(text: str, life_s: float) -> str:
    return json.dumps({"access_token": text, "expires_on": int(time.time() + life_s)})


def token_credential(command: tuple[str, ...], token: Token | None = None) -> Credential:
    return Credential("acc", Proof("token", "a test", token_command=command), token=token)


def authorization(credential: Credential) -> str:
    head = credential.signer().head(REQUEST).decode()
    return head.partition("Authorization:")[2].partition("\r\n")[0]


def is_running(pid_file: Path) -> bool:
    return pid_file.exists() and Path("/proc", pid_file.read_text()).exists()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 (it waits for a process)
            await trio.sleep(0.01)


async def test_fetching_a_token() -> None:
    found = await fetch_token(printing(token_json("abc.def", 3600)))
    assert found.text == "abc.def"
    assert found.expires_at == pytest.approx(time.time() + 3600, abs=30)
    assert "abc" not in repr(found)
    like_the_cli = json.dumps({"accessToken": "x", "expiresOn": "2030-01-01 00:00:00", "expires_on": "1893456000"})
    assert (await fetch_token(printing(like_the_cli))).expires_at == 1893456000.0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (printing("SECRET"), "printed no token"),
        (printing("[]"), "printed no token"),
        (printing('{"access_token": "SECRET"}'), "printed no token"),
        (printing(token_json("SECRET\nX: y", 60)), "printed no token"),
        (printing('{"access_token": "SECRET", "expires_on": NaN}'), "printed no token"),
        (printing('{"access_token": "SECRET", "expires_on": "1e999"}'), "printed no token"),
        (printing('{"access_token": "SECRET", "expires_on": 1%s}' % ("0" * 400)), "printed no token"),
        (printing('{"access_token": "SECRET", "expires_on": 1%s}' % ("0" * 5000)), "printed no token"),
        (printing("SECRET" * 20_000), "printed more than 64 KiB"),
        ((sys.executable, "-c", "while True: print('SECRET' * 1000)"), "printed more than 64 KiB"),
        ((sys.executable, "-c", "import sys; sys.stderr.write('x' * 300000 + chr(10) + 'why'); sys.exit(1)"), ": why$"),
        (printing(token_json("SECRET", 60), exit_code=3, error="first\nno identity"), "failed: no identity"),
        (printing("SECRET", exit_code=3), "failed: exit status 3"),
        (("/no/such/program",), "cannot be run: No such file"),
    ],
)
async def test_a_token_command_that_fails(command: tuple[str, ...], message: str) -> None:
    with pytest.raises(CredentialError, match=message) as caught:
        await fetch_token(command)
    assert "SECRET" not in caught.value.line()
    assert caught.value.remedy


async def test_a_token_command_that_hangs_is_ended(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    program = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(CredentialError, match="gave no token within 1 s"):
        await fetch_token((sys.executable, "-c", program), timeout_s=1)
    assert not is_running(started)


async def test_a_token_command_that_ignores_signals_is_ended_with_what_it_started(tmp_path: Path) -> None:
    """A worker ignores SIGTERM, and so does what it starts: that took five seconds more, and left a warning."""
    started = tmp_path / "pid"
    program = f"trap '' TERM; sleep 60 & printf %s $! > {started}.new; mv {started}.new {started}; wait"
    with pytest.raises(CredentialError, match="gave no token within 1 s"):
        await fetch_token(("sh", "-c", program), timeout_s=1)
    assert started.exists()
    await until(lambda: not alive(identity_of(int(started.read_text()))))


def test_our_own_program_takes_no_secret() -> None:
    assert own_command()[1:] == ("-I", str(Path(token.__file__)))
    assert own_command("id-1")[-2:] == ("--client-id", "id-1")


async def test_the_first_token_is_waited_for_and_shared() -> None:
    credential = token_credential(printing(token_json("one", 3600)))
    with pytest.raises(CredentialError):
        credential.signer()
    assert credential.renew_at <= time.time()
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(credential.freshen)
    assert authorization(credential) == "Bearer one"
    assert credential.expires_at == pytest.approx(time.time() + 3600, abs=30)
    assert credential.renew_at == pytest.approx(time.time() + 1800, abs=30)


async def test_a_token_that_still_holds_is_renewed_behind() -> None:
    old = Token("old", time.time() + 1000)
    credential = token_credential(printing(token_json("new", 3600)), old)
    credential.renew_at = 0.0
    await credential.freshen()
    assert authorization(credential) == "Bearer old"
    await until(lambda: authorization(credential) == "Bearer new")


async def test_a_failed_renewal_keeps_the_old_token_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    credential = token_credential(
        printing("", exit_code=1, error="identity server is down"), Token("old", time.time() + 1000)
    )
    credential.renew_at = 0.0
    await credential.freshen()
    await until(lambda: bool(caplog.records))
    assert "identity server is down" in caplog.text
    assert authorization(credential) == "Bearer old"
    assert time.time() < credential.renew_at <= time.time() + 60


async def test_no_token_at_all_is_an_error_with_the_reason() -> None:
    credential = token_credential(printing("", exit_code=1, error="no identity"))
    with pytest.raises(CredentialError, match="no identity"):
        await credential.freshen()
    with pytest.raises(CredentialError, match="no identity"):
        credential.signer()
    with pytest.raises(CredentialError, match="no identity"):
        await credential.refresh(force=True)


async def test_cancelling_who_waits_does_not_cancel_the_renewal() -> None:
    credential = token_credential(printing(token_json("one", 3600)))
    with trio.move_on_after(0):
        await credential.freshen()
    await until(lambda: credential.expires_at is not None)
    assert authorization(credential) == "Bearer one"


async def test_a_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "acc.conf"

    def write(text: str) -> None:
        path.write_text(text)
        path.chmod(0o600)

    write(f"account_key = {KEYS[0]}")
    proof = Proof.from_conf(read_conf(path))
    assert proof is not None
    credential = Credential("acc", proof)
    first = credential.signer()
    await credential.refresh(force=True)
    assert credential.signer() is first
    write(f"account_key = {KEYS[1]}")
    await credential.refresh()  # not due
    assert credential.signer() is first
    monkeypatch.setattr(identity, "_REFUSED_S", 0.0)
    assert await credential.renew_refused(first)
    assert isinstance(credential.signer(), SharedKeySigner)
    write("sas = sig=x")
    await credential.refresh(force=True)
    assert isinstance(credential.signer(), SasSigner)
    assert credential.kind == "sas"
    write(f"token_command = {sys.executable} -c \"print('{{}}')\"")
    with pytest.raises(CredentialError, match="printed no token"):
        await credential.refresh(force=True)


async def test_a_broken_file_leaves_what_was_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    credential = Credential("acc", Proof("key", "a file", account_key=KEYS[0], file=str(tmp_path / "gone.conf")))
    signer = credential.signer()
    with pytest.raises(CredentialError, match="cannot be read"):
        await credential.refresh(force=True)
    credential._renewed_at = -1e9
    assert not await credential.renew_refused(signer)
    assert "gone.conf" in caplog.text
    assert credential.signer() is signer


async def test_refusals_in_a_row_cause_one_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    credential = token_credential(printing(token_json("new", 3600)), Token("old", time.time() + 1000))
    signer = credential.signer()
    renewals: list[tuple[str, ...]] = []

    async def fetch(command: tuple[str, ...]) -> Token:
        renewals.append(command)
        await trio.sleep(0.01)
        return Token(f"new{len(renewals)}", time.time() + 3600)

    monkeypatch.setattr(identity, "fetch_token", fetch)
    results: list[bool] = []

    async def refused() -> None:
        results.append(await credential.renew_refused(signer))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(refused)
    assert results == [True] * 50
    assert len(renewals) == 1
    assert isinstance(credential.signer(), BearerSigner)
    assert not await credential.renew_refused(credential.signer())  # the new one is refused, too: not again at once
    assert len(renewals) == 1


def test_when_a_sas_from_a_file_is_looked_at_again() -> None:
    ends = time.time() + 4000
    text = f"sig=x&se={time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(ends))}"
    assert Credential("acc", Proof("sas", "file", sas=text, file="/f")).renew_at == pytest.approx(ends - 300, abs=1)
    assert Credential("acc", Proof("sas", "url", sas=text)).renew_at == float("inf")


@pytest.mark.parametrize("left_s", [3600.0, -5.0])
def test_what_ends_soon_is_warned_of(left_s: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    text = f"sig=SECRET&se={time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(time.time() + left_s))}"
    Credential("acc", Proof("sas", "url", sas=text)).warn()
    assert ("expires at" if left_s > 0 else "expired at") in caplog.text
    assert "SECRET" not in caplog.text
    caplog.clear()
    Credential("acc", Proof("sas", "url", sas="sig=SECRET&se=2999-01-01")).warn()
    Credential("acc", Proof("key", "url", account_key=KEYS[0])).warn()
    assert not caplog.records


async def test_a_bug_in_the_renewal_ends_neither_the_program_nor_the_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fetch(command: tuple[str, ...]) -> Token:
        raise RuntimeError("a bug")

    monkeypatch.setattr(identity, "fetch_token", fetch)
    with pytest.raises(CredentialError, match="RuntimeError"):
        await token_credential(()).freshen()
    assert "a bug" in caplog.text


async def test_a_token_that_is_waited_for_is_spoken_of_before_it_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokencommand, "SILENT_S", 0.05)
    slow = (sys.executable, "-c", f"import time; time.sleep(0.5); print({token_json('abc', 60)!r})")
    assert (await fetch_token(slow)).text == "abc"
    assert caplog.messages == [f"waiting for token_command {sys.executable}, for 60 s at most"]
    caplog.clear()
    monkeypatch.setattr(tokencommand, "SILENT_S", 30.0)
    await fetch_token(printing(token_json("abc", 60)))
    assert caplog.messages == []
    with pytest.raises(CredentialError, match="cannot be run"):
        await fetch_token(("/no/such/program",))


def test_a_token_is_not_sent_in_the_clear() -> None:
    """The SDK raised a ValueError of its own, which nobody expected."""
    entra = token_credential(("true",))
    for text in ("http://127.0.0.1:10000/acc", "http://acc.blob.core.windows.net"):
        entra.allow_http = True
        with pytest.raises(UsageError, match="is sent over HTTPS only"):
            check_transport(Endpoint.parse(text), entra)
    check_transport(Endpoint.parse("https://127.0.0.1:10000/acc"), entra)
