"""Credentials are replaced while a disk is written to: no remount, no I/O error, and the old one is worth nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.checker import Checker
from tests.e2e.kit import Node, faulty_node, until
from tests.e2e.loads import attached, blob_digest, unsafe_writes
from tests.e2e.test_workloads_credentials import conf_of, secure_node
from tests.wire.sas import account_sas, blob_sas

__all__ = ["faulty_node", "secure_node"]

OTHER_KEY = "YS10aGlyZC1rZXktb2YtdGhlLWFjY291bnQtd2hpY2gtaXMtbG9uZy1lbm91Z2gtdG8tYmUtYS1rZXktLS0tLS0tLQ=="


@pytest.fixture
def node(faulty_node: Node) -> Iterator[Node]:
    """A node that uses `server`."""
    yield faulty_node


def put(path: Path, text: str) -> None:
    """Replace a file in one step, as whoever rotates secrets does."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    new.rename(path)


def proofs(node: Node, kind: str) -> Callable[[str], str]:
    """The lines of a credential file for a key of the account."""
    account, place = node.service.account, node.container

    def lines(key: str) -> str:
        proof = {
            "key": lambda: f"account_key = {key}",
            "account SAS": lambda: f"sas = {account_sas(account, key, 'rw', 'o')}",
            "blob SAS": lambda: f"sas = {blob_sas(account, key, f'{place}/data', 'rw')}",
        }[kind]()
        return f"endpoint = {node.service.endpoint}\n{proof}\n"

    return lines


def shown(node: Node) -> dict[str, object]:
    found: dict[str, object] = json.loads(node.ok("status", "data", "-o", "json"))
    return found


def finish(node: Node, server: PageBlobServer, checker: Checker) -> None:
    """The load saw no error, and everything is there."""
    checker.stop()
    checker.verify()
    node.ok("detach", "data")
    assert blob_digest(node, length=checker.size) == checker.digest()
    assert unsafe_writes(server) == {}


@pytest.mark.parametrize("how", ["watched", "dyskctl reload"])
@pytest.mark.parametrize("kind", ["key", "account SAS", "blob SAS"])
def test_a_key_that_is_rotated_costs_not_one_request(node: Node, server: PageBlobServer, kind: str, how: str) -> None:
    """As it is done well: both work for a while. Then not one request is refused."""
    lines = proofs(node, kind)
    conf = node.dirs.config / f"{node.service.account}.conf"
    put(conf, lines(node.service.key))
    server.configure(accounts={server.account: [server.key, OTHER_KEY]})
    checker = Checker(attached(node))
    checker.start()
    until(checker.progress(50), "I/O with the first one")
    put(conf, lines(OTHER_KEY))
    if how == "watched":
        until(lambda: "was read again" in (node.dirs.log / "data.log").read_text(), "the new one in use", 30)
    else:
        assert str(conf) in node.ok("reload", "data")
    server.configure(accounts={server.account: OTHER_KEY})
    until(checker.progress(200), "I/O with the second one")
    assert server.stats()["codes"].get("AuthenticationFailed", 0) == 0
    server.configure(accounts={server.account: [server.key, OTHER_KEY]})  # for what comes behind, with the first key
    finish(node, server, checker)


def test_a_file_that_others_can_read(node: Node, server: PageBlobServer) -> None:
    """It is refused, as at the attach, and the old key goes on."""
    checker = Checker(attached(node))
    checker.start()
    node.write_credentials(f"endpoint = {server.endpoint}\naccount_key = {OTHER_KEY}\n", 0o644)
    done = node.dyskctl("reload", "data")
    assert done.code == 1 and "chmod 600" in done.err
    until(checker.progress(50), "I/O with the old key")
    node.write_credentials()
    finish(node, server, checker)


def test_a_sas_that_expired_and_is_renewed(node: Node, server: PageBlobServer) -> None:
    """I/O waits, `status` says what for, and it goes on with the new one."""
    account, key = server.account, server.key
    conf = node.dirs.config / f"{account}.conf"
    put(conf, f"endpoint = {server.endpoint}\nsas = {account_sas(account, key, 'rw', 'o', end_s=6)}\n")
    checker = Checker(attached(node))
    checker.start()
    until(lambda: server.stats()["codes"].get("AuthenticationFailed", 0) > 3, "refused requests", 30)
    until(lambda: shown(node)["waiting"], "calls that wait", 30)
    found = shown(node)
    assert found["state"] == "recovering"
    assert isinstance(found["waiting"], dict) and 0 < found["waiting"]["fails_in_s"] <= 300
    until(lambda: "expired at" in (node.dirs.log / "data.log").read_text(), "the warning")
    put(conf, f"endpoint = {server.endpoint}\nsas = {account_sas(account, key, 'rw', 'o')}\n")
    until(checker.progress(200), "I/O with the new one", 40)
    until(lambda: shown(node)["state"] == "attached", "the state", 30)
    finish(node, server, checker)


def test_the_program_that_prints_tokens_is_replaced(secure_node: Node) -> None:
    node = secure_node
    server = node.service
    assert isinstance(server, PageBlobServer)
    for name in ("first", "second"):
        token = {"access_token": f"{name}-token", "expires_on": int(time.time() + 3600)}
        put(node.dirs.root / name, json.dumps(token))
    server.configure(tokens={"first-token": {}, "second-token": {}})
    conf_of(node, f"token_command = cat {node.dirs.root}/first\n")
    checker = Checker(node.ok("attach", node.disk()).strip())
    checker.start()
    until(checker.progress(50), "I/O with the first token")
    conf_of(node, f"token_command = cat {node.dirs.root}/second\n")
    node.ok("reload", "data")
    server.configure(tokens={"second-token": {}})
    server.reset_stats()
    until(checker.progress(100), "I/O with the second token")
    checker.stop()
    checker.verify()
    assert server.stats()["statuses"].get("401", 0) == 0
    node.ok("detach", "data")
