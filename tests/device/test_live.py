"""What is changed of an attachment in use holds at once, and over the death of its worker."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from blobfuse_dysk import attachment, live
from blobfuse_dysk.errors import CredentialError, UsageError
from tests.device.conftest import MIB, Node, fill, wait_for
from tests.device.test_worker_death import direct_read, kill_worker


def test_limits_change_while_the_disk_is_in_use(node: Node) -> None:
    node.attach(node.create(), iops=1000)
    assert attachment.status("data")["limits"] == {"iops": 1000, "mbps": None}
    live.change("data", iops=None, mbps=5.5)
    live.change("data", io_timeout_s=70)
    for _ in range(2):
        found = attachment.status("data")
        assert (found["limits"], found["io_timeout_s"]) == ({"iops": None, "mbps": 5.5}, 70)
        kill_worker(node)
    with pytest.raises(UsageError, match="iops of 0"):
        live.change("data", iops=0)
    attachment.detach("data")


def reading(device: str) -> tuple[threading.Thread, list[bytes | None]]:
    """Begin to read; the answer is None for an I/O error."""
    answers: list[bytes | None] = []

    def read() -> None:
        try:
            answers.append(direct_read(device, MIB))
        except subprocess.CalledProcessError:
            answers.append(None)

    thread = threading.Thread(target=read)
    thread.start()
    return thread, answers


def test_io_that_waits_is_shown_and_can_be_ended(node: Node) -> None:
    """`never` waits for ever; a time that is set later counts from when the I/O began."""
    attached = node.attach(node.create(), io_timeout_s=None)
    fill(attached.device, 1, MIB)
    wait_for(lambda: node.blob()["allocated"] == MIB, "the write")
    node.server.outage("refuse")
    reader, answers = reading(attached.device)
    wait_for(lambda: attachment.get("data").state == "recovering", "the state")
    found = attachment.status("data")["waiting"]
    assert found["calls"] >= 1 and found["since_s"] > 0 and found["fails_in_s"] is None and found["reason"]
    live.change("data", io_timeout_s=600)
    assert 0 < attachment.status("data")["waiting"]["fails_in_s"] < 600
    assert reader.is_alive()
    live.change("data", io_timeout_s=1)
    reader.join(20)
    assert answers == [None]
    assert attachment.status("data")["waiting"] is None
    node.server.outage(None)
    assert direct_read(attached.device, 4096)
    wait_for(lambda: attachment.get("data").state == "attached", "the state attached")
    attachment.detach("data")


def test_how_long_io_waits_for_a_disk_that_is_opened_again(node: Node) -> None:
    """The credential was revoked while no worker lived: the reason is shown, and the time that is left."""
    node.attach(node.create(), io_timeout_s=300)
    node.server.fault("error", status=403, code="AuthorizationFailure")
    old = node.state("data")["worker"]
    os.kill(old["pid"], signal.SIGKILL)
    wait_for(lambda: "AuthorizationFailure" in str(attachment.get("data").detail), "the reason")
    assert attachment.get("data").state == "recovering"
    found = attachment.status("data")
    assert found["state"] == "recovering" and found["worker_restarts"] == 1
    assert 0 < found["waiting"]["fails_in_s"] <= 300
    assert found["waiting"]["reason"]
    node.server.clear_faults()
    wait_for(lambda: attachment.get("data").state == "attached", "the state attached")
    assert attachment.get("data").detail is None
    attachment.detach("data")


def test_reload_from_a_file_outlives_the_worker(node: Node) -> None:
    """The key came from a variable, so there is nothing to read again, until a file is named."""
    attached = node.attach(node.create())
    with pytest.raises(CredentialError, match="cannot be read again"):
        live.reload_credential("data")
    path = Path(node.dirs.root / "new.conf")
    path.write_text(f"endpoint = {node.server.endpoint}\naccount_key = {OTHER_KEY}\n")
    path.chmod(0o644)
    with pytest.raises(CredentialError, match="can be read or written by others"):
        live.reload_credential("data", str(path))
    path.chmod(0o600)
    node.server.configure(accounts={node.server.account: [node.server.key, OTHER_KEY]})
    assert live.reload_credential("data", str(path))["what"] == f"account key from {path}"
    path.unlink()  # a later worker has it from memory
    node.server.configure(accounts={node.server.account: OTHER_KEY})
    node.server.reset_stats()
    kill_worker(node)
    written = fill(attached.device, 1, MIB)
    assert direct_read(attached.device, MIB) == written
    assert "AuthenticationFailed" not in node.server.stats()["codes"]
    seen = attachment.status("data")["credential"]
    problem = seen.pop("problem")  # it looks for the file after a while
    assert problem is None or "cannot be read" in problem
    assert seen == {"what": f"account key from {path}", "expires": None, "expires_in_s": None}
    attachment.detach("data")


def test_reload_from_a_descriptor_is_tried_and_outlives_the_worker_and_no_file_has_it(node: Node) -> None:
    attached = node.attach(node.create())
    scope = f"endpoint = {node.server.endpoint}\n"
    for text, says in (
        (f"{scope}account_key = {OTHER_KEY}\n", "the old credential stays in use"),
        (f"account_key = {OTHER_KEY}\n", "is not sent to"),
        (f"{scope}token_command = /bin/true\n", "token_command, client_id"),
        (scope, "has no credential"),
        ("what = ever\n", "the descriptor, line 1"),
    ):
        with pytest.raises(CredentialError, match=says):
            live.reload_credential("data", text=text)
    node.server.configure(accounts={node.server.account: [node.server.key, OTHER_KEY]})
    seen = live.reload_credential("data", text=f"{scope}account_key = {OTHER_KEY}\n")
    assert seen["what"] == "account key from the descriptor"
    node.server.configure(accounts={node.server.account: OTHER_KEY})
    kill_worker(node)
    written = fill(attached.device, 1, MIB)
    assert direct_read(attached.device, MIB) == written
    files = [path for path in node.dirs.root.rglob("*") if path.is_file()]
    assert files and not any(OTHER_KEY.encode() in path.read_bytes() for path in files if "/fs/" not in str(path))
    attachment.detach("data")


OTHER_KEY = "c2Vjb25kLWtleS1vZi10aGUtYWNjb3VudC13aGljaC1pcy1sb25nLWVub3VnaC10by1iZS1hLWtleS0tLS0tLQ=="


def test_the_end_of_a_credential_is_shown(node: Node) -> None:
    from tests.wire.sas import account_sas

    sas = account_sas(node.server.account, node.server.key, "rw", "o")
    path = node.dirs.config / f"{node.server.account}.conf"
    path.write_text(f"sas = {sas}\nendpoint = {node.server.endpoint}\n")
    path.chmod(0o600)
    node.attach(node.create())
    found = attachment.status("data")["credential"]
    assert found["what"] == f"SAS from {path}"
    assert found["expires_in_s"] > 0
    assert time.strptime(found["expires"], "%Y-%m-%dT%H:%M:%SZ")
    attachment.detach("data")
