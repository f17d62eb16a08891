"""A new credential is tried before it is used: one that the service refuses changes nothing for the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.checker import Checker
from tests.e2e.kit import Node, faulty_node, until
from tests.e2e.loads import attached
from tests.e2e.test_credential_rotation import OTHER_KEY, finish, put, shown
from tests.wire.sas import account_sas

__all__ = ["faulty_node"]


@pytest.fixture
def node(faulty_node: Node) -> Iterator[Node]:
    """A node that uses `server`."""
    yield faulty_node


WRONG: dict[str, tuple[Callable[[PageBlobServer], str], str]] = {
    "a wrong key": (lambda server: f"account_key = {OTHER_KEY}", "is not the key of account"),
    "a SAS that may only read, for a disk that is written": (
        lambda server: f"sas = {account_sas(server.account, server.key, 'r', 'o')}",
        "has no write right",
    ),
    "the connection string of another account": (
        lambda server: f"connection_string = AccountName=another;AccountKey={OTHER_KEY}",
        "is for account another",
    ),
    "a SAS for another service": (
        lambda server: f"sas = {account_sas(server.account, server.key, 'rw', 's')}",
        "does not allow this",
    ),
    "a credential with another endpoint": (
        lambda server: (
            f"connection_string = AccountName={server.account};AccountKey={OTHER_KEY};"
            "BlobEndpoint=https://elsewhere.example"
        ),
        "is not sent to",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("how", ["watched", "reload", "reload --credentials"])
def test_a_credential_that_the_service_refuses_is_not_taken(
    node: Node, server: PageBlobServer, wrong: str, how: str
) -> None:
    """The old one goes on, without one I/O error; reload, log and status say why."""
    text, says = WRONG[wrong]
    conf = node.dirs.config / f"{server.account}.conf"
    endpoint = "" if "endpoint" in wrong else f"endpoint = {server.endpoint}\n"
    checker = Checker(attached(node))
    checker.start()
    until(checker.progress(20), "I/O with the old one")
    if how == "reload --credentials":
        other = node.dirs.root / "other.conf"
        put(other, f"{endpoint}{text(server)}\n")
        done = node.dyskctl("reload", "data", "--credentials", str(other))
    else:
        put(conf, f"{endpoint}{text(server)}\n")
        if how == "reload":
            done = node.dyskctl("reload", "data")
    if how == "watched":
        until(lambda: "the old credential stays in use" in (node.dirs.log / "data.log").read_text(), "a look", 30)
    else:
        assert done.code == 1 and says in done.err, done
        assert done.err.count("\n") == 1
    log = (node.dirs.log / "data.log").read_text().splitlines()
    assert any("the old credential stays in use" in line and says in line for line in log)
    if how != "reload --credentials":  # there the watch finds the file of before, which is right, within seconds
        assert says in shown(node)["credential"]["problem"]  # type: ignore[index]
    until(checker.progress(100), "I/O with the old one still")
    node.write_credentials()
    assert node.dyskctl("reload", "data").code == 0
    assert shown(node)["credential"]["problem"] is None  # type: ignore[index]
    finish(node, server, checker)
