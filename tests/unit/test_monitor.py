"""What a worker gets from its monitor, and what it does not get whatever it asks."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from blobfuse_dysk.azure.credential import access
from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.azure.credential.file import read_conf
from blobfuse_dysk.azure.credential.tokencommand import fetch_token, own_command
from blobfuse_dysk.azure.credential.watch import watch
from blobfuse_dysk.azure.tls import check_ca_file, tls_context
from blobfuse_dysk.device.ipc import message
from blobfuse_dysk.device.ipc.config import Config
from blobfuse_dysk.device.worker import delegate
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import CredentialError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing.server.certificates import make_certificates
from tests.polling import eventually

KEY = "dGVzdA=="
CONFIG = Config(
    DiskAddress("acct", "disks", "data"),
    Credential("acct", Proof("key", "test", account_key=KEY)).to_config(),
    AttachOptions(),
    "node",
    variables={"AZURE_CLIENT_ID": "me"},
)


@pytest.fixture
def asked() -> Iterator[delegate.Monitor]:
    """A monitor that this process asks for everything."""
    yield from _start(CONFIG)


def _start(config: Config) -> Iterator[delegate.Monitor]:
    memfd = os.memfd_create("config")
    os.write(memfd, config.encode())
    asked = delegate.start(delegate.spawn("data"), memfd)
    os.close(memfd)
    access.use(asked)
    yield asked
    access.use(None)
    asked._channel.close()
    os.wait()


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


def test_a_credential_file(asked: delegate.Monitor, tmp_path: Path) -> None:
    conf = read_conf(put(tmp_path / "a.conf", f"account_key = {KEY}\n"))
    assert conf.account_key == KEY
    put(tmp_path / "b.conf", "account_key = no base64\n")
    with pytest.raises(CredentialError, match=r"b.conf, line 1: the account key is not base64") as caught:
        read_conf(tmp_path / "b.conf")
    assert caught.value.remedy == "copy it again; it has 88 characters"


@pytest.mark.parametrize("text", ["root:$6$secret:19000:0:99999:7:::", "-----BEGIN PRIVATE KEY-----\nsecret\n", ""])
def test_nothing_comes_out_of_another_file(asked: delegate.Monitor, tmp_path: Path, text: str) -> None:
    """An empty file has no credential, but is one in order."""
    path = put(tmp_path / "shadow", text)
    if not text:
        assert asked.credential_text(path) == ""
        return
    with pytest.raises(CredentialError) as caught:
        asked.credential_text(path)
    assert "secret" not in f"{caught.value}{caught.value.remedy}"
    with pytest.raises(ssl.SSLError):
        asked.authorities(str(path))


def test_a_file_that_others_can_read(asked: delegate.Monitor, tmp_path: Path) -> None:
    put(tmp_path / "a.conf", f"account_key = {KEY}\n").chmod(0o640)
    with pytest.raises(CredentialError, match="can be read or written by others"):
        read_conf(tmp_path / "a.conf")


def test_certificates_and_nothing_else_of_a_file_of_authorities(asked: delegate.Monitor, tmp_path: Path) -> None:
    made = make_certificates(tmp_path, ["localhost"])
    key, ca = Path(made.key_file), Path(made.ca_file)
    both = put(tmp_path / "both.pem", f"{key.read_text()}# \u00e9\n{ca.read_text()}")
    assert "PRIVATE" not in asked.authorities(str(both))
    assert len(tls_context(str(both)).get_ca_certs()) == 1
    for path, reason in (
        (tmp_path / "none", "No such file"),
        (key, "it holds no certificate"),
        (tmp_path, "Is a directory|not a regular file"),
    ):
        with pytest.raises(CredentialError, match=reason):
            check_ca_file(str(path))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(CredentialError, match="it holds no certificate"):
        check_ca_file(str(fifo))


def test_a_program_that_a_credential_file_names(asked: delegate.Monitor, tmp_path: Path) -> None:
    """In the environment of the attachment, and whatever else is asked meanwhile."""
    login = program(tmp_path / "login", 'echo "{\\"access_token\\": \\"$AZURE_CLIENT_ID\\", \\"expires_on\\": 4e9}"')
    conf = read_conf(put(tmp_path / "a.conf", f"auth = entra\ntoken_command = {login} a 'b c'\n"))
    token = trio.run(fetch_token, conf.token_command)
    assert (token.text, token.expires_at) == ("me", 4e9)


def test_a_program_that_fails_or_is_not_there(asked: delegate.Monitor, tmp_path: Path) -> None:
    login = program(tmp_path / "login", "exec >&-; sleep 0.1; echo not today >&2; exit 3")
    conf = read_conf(put(tmp_path / "a.conf", f"auth = entra\ntoken_command = {login}\n"))
    with pytest.raises(CredentialError, match="failed: not today"):
        trio.run(fetch_token, conf.token_command)
    login.unlink()
    with pytest.raises(CredentialError, match="cannot be run: No such file"):
        trio.run(fetch_token, conf.token_command)


def test_no_other_program_runs(asked: delegate.Monitor, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    login = program(tmp_path / "login", f"touch {ran}")
    put(tmp_path / "a.conf", f"auth = entra\ntoken_command = {login} --only\n")
    read_conf(tmp_path / "a.conf")
    for command in ((str(login),), (str(login), "--more"), (str(login), "--only", "--more"), (*own_command(), "-c")):
        with pytest.raises(CredentialError, match="no credential file names the program"):
            trio.run(fetch_token, command)
    assert not ran.exists()


def test_what_a_worker_before_left_in_its_configuration_is_not_believed(tmp_path: Path) -> None:
    """But its file is read, so that a token can be renewed first of all."""
    named, other = (program(tmp_path / name, "echo {}") for name in ("named", "other"))
    path = put(tmp_path / "a.conf", f"auth = entra\ntoken_command = {named}\n")
    proof = Proof("token", "test", token_command=(str(other),), file=str(path))
    for _ in _start(replace(CONFIG, credential=Credential("acct", proof).to_config())):
        with pytest.raises(CredentialError, match="printed no token"):
            trio.run(fetch_token, (str(named),))
        with pytest.raises(CredentialError, match="no credential file names"):
            trio.run(fetch_token, (str(other),))


@pytest.mark.parametrize("does", ["sleep 1000 & echo $! >P.new; mv P.new P; wait", "@exec >&- 2>&-; exec sleep 1000"])
def test_a_program_is_ended_when_nobody_waits_for_it(asked: delegate.Monitor, tmp_path: Path, does: str) -> None:
    pid = tmp_path / "pid"
    """Nor does what it has started go on."""
    does = does.replace("@", "echo $$ >P.new; mv P.new P; ").replace("P", str(pid))
    login = program(tmp_path / "login", does)
    conf = read_conf(put(tmp_path / "a.conf", f"auth = entra\ntoken_command = {login}\n"))

    async def give_up() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch_token, conf.token_command)
                await trio.to_thread.run_sync(eventually, pid.exists)
                read_conf(tmp_path / "a.conf")  # and nobody else waits for it
                scope.cancel()

    trio.run(give_up)
    eventually(lambda: not Path("/proc", pid.read_text().strip()).exists())


def test_a_program_that_writes_without_end(asked: delegate.Monitor, tmp_path: Path) -> None:
    login = program(tmp_path / "login", "yes | head -c 1000000 >&2; exec yes")
    conf = read_conf(put(tmp_path / "a.conf", f"auth = entra\ntoken_command = {login}\n"))
    with pytest.raises(CredentialError, match="printed more than 64 KiB, which is no token"):
        trio.run(fetch_token, conf.token_command)


def test_a_file_that_is_replaced_is_seen(
    asked: delegate.Monitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "a.conf", f"account_key = {KEY}\n")
    assert asked.signature(str(path)) == access.signature_of(str(path))
    assert asked.signature(str(tmp_path / "none")) is None
    credential = Credential("acct", Proof("key", "test", account_key=KEY, file=str(path)))
    switched = trio.Event()
    taken = credential.reload

    async def reload(file: str = "") -> None:
        await taken(file)
        switched.set()

    monkeypatch.setattr(credential, "reload", reload)
    monkeypatch.setattr("blobfuse_dysk.azure.credential.watch.LOOK_S", 0.01)

    async def rotate() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, credential)
            while not switched.is_set():
                put(path, f"account_key = bmV3\n# {trio.current_time()}\n")  # until the first look is over
                with trio.move_on_after(0.1):
                    await switched.wait()
            nursery.cancel_scope.cancel()

    trio.run(rotate)
    assert credential.to_config()["proof"]["account_key"] == "bmV3"


def test_a_file_that_is_replaced_before_anybody_could_look_is_seen(tmp_path: Path) -> None:
    """A monitor takes a moment to start; from then on it is asked."""
    path = put(tmp_path / "a.conf", f"account_key = {KEY}\n")
    proof = Proof("key", "test", account_key=KEY, file=str(path))
    before = access.signature_of(str(path))
    for asked in _start(replace(CONFIG, credential=Credential("acct", proof).to_config())):
        put(path, "account_key = bmV3Cg==\n")
        assert asked.signature(str(path)) == before
        assert asked.signature(str(path)) == access.signature_of(str(path)) != before


@pytest.mark.parametrize("packet", [b"{", b"[]", b'{"op":"credential"}', b'{"op":"run","command":7}', b"\xff"])
def test_a_question_that_is_none_is_passed_over(asked: delegate.Monitor, packet: bytes, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(asked._channel, [packet], [theirs.fileno()])
        asked._channel.send(packet)  # with nothing to answer on
        theirs.close()
        ours.settimeout(10)
        assert ours.recv(100) == b""
    assert asked.credential_text(put(tmp_path / "a.conf", f"account_key = {KEY}\n"))


def test_nobody_is_left_to_ask(asked: delegate.Monitor, tmp_path: Path) -> None:
    assert asked.signature("/")  # it has its name by then
    mine = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    for pid in mine:
        if Path(f"/proc/{pid}/comm").read_text() == "dysk-monitor\n":
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not message.send(asked._channel, {}, wait=False))
    with pytest.raises(CredentialError, match="the process that reads credentials is gone"):
        read_conf(put(tmp_path / "a.conf", f"account_key = {KEY}\n"))
    with pytest.raises(CredentialError, match="the process that reads credentials is gone"):
        trio.run(fetch_token, own_command())
    assert asked.signature("/") is None
