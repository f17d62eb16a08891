"""Each kind of credential, from where a user puts it to bytes on the disk; and where none of them may be seen."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.checker import Checker
from tests.e2e.kit import Node, faulty_node, make_node, node, service_node, until
from tests.e2e.loads import MIB, server_of, unsafe_writes
from tests.leaks import RunDirs, find_leaks
from tests.wire.sas import account_sas, blob_sas, container_sas

__all__ = ["faulty_node", "node", "service_node"]

OTHER_KEY = "c2Vjb25kLWtleS1vZi10aGUtYWNjb3VudC13aGljaC1pcy1sb25nLWVub3VnaC10by1iZS1hLWtleS0tLS0tLQ=="


def exposed(node: Node, *secrets: str) -> list[str]:
    """Where a secret can be read by somebody else: all command lines, our processes' environments, logs, /run.

    The Entra ID login, a child that lives for a second, is left out: it takes what it needs from its environment.
    """
    found = []
    needles = {form.encode() for secret in secrets for form in (secret, unquote(secret)) if form}
    places = [*Path("/proc").glob("[0-9]*/cmdline")]
    places += [Path("/proc", str(pid), "environ") for pid in find_leaks(node.dirs).processes]
    places += [path for top in (node.dirs.log, node.dirs.run) for path in top.rglob("*") if path.is_file()]
    for path in places:
        if path.name == "disk":
            continue
        try:
            # Its command line is that of the worker until it executes, and empty when it has ended: ask both times.
            before = path.with_name("cmdline").read_bytes() if path.name == "environ" else b""
            content = path.read_bytes()
            after = path.with_name("cmdline").read_bytes() if path.name == "environ" else b""
            login = any(b"credential/token.py" in command for command in (before, after))
        except OSError:
            continue  # the process ended
        if not login and any(needle in content for needle in needles):
            found.append(str(path))
    assert any(str(path).endswith("/state.json") for path in places)  # there was something to look at
    assert any(str(path).endswith("/environ") for path in places)
    return found


def write_and_read(node: Node, *secrets: str, words: tuple[str, ...] = ()) -> None:
    """Attach, write, read, look for the secrets, detach; the service has what was written."""
    shown = node.ok("attach", node.disk(), "-o", "json", *words)
    checker = Checker(json.loads(shown)["device"], tasks=2)
    checker.run(20)
    checker.verify()
    assert exposed(node, *secrets) == []
    assert exposed_nowhere(shown, *secrets)
    node.ok("detach", "data")
    if isinstance(node.service, PageBlobServer):
        assert node.service.blob(node.container, "data")["lease"]["state"] == "available"
    assert node.nothing_left()


def exposed_nowhere(text: str, *secrets: str) -> bool:
    return not any(secret in text or unquote(secret) in text for secret in secrets)


def endpoint_only(node: Node, more: str = "") -> None:
    node.write_credentials(f"endpoint = {node.service.endpoint}\n{more}")


def signature(sas: str) -> str:
    """The part of a SAS that is a secret."""
    return sas.partition("sig=")[2].partition("&")[0]


def connection_string(node: Node, proof: str) -> str:
    account = node.service.account
    return f"DefaultEndpointsProtocol=http;AccountName={account};{proof};BlobEndpoint={node.service.endpoint};"


def test_account_key_in_the_file(service_node: Node) -> None:
    service_node.create(size="8MiB")
    write_and_read(service_node, service_node.service.key)


def test_account_key_in_another_file(node: Node) -> None:
    node.create(size="8MiB")
    path = node.dirs.root / "elsewhere.conf"
    node.write_credentials().rename(path)
    write_and_read(node, node.service.key, words=("--credentials", str(path)))


@pytest.mark.parametrize("kind", ["account", "container", "blob"])
def test_sas_in_the_file(service_node: Node, kind: str) -> None:
    node = service_node
    node.create(size="8MiB")
    account, key, place = node.service.account, node.service.key, node.container
    sas = {
        "account": lambda: account_sas(account, key, "rw", "o"),
        "container": lambda: container_sas(account, key, place, "rw"),
        "blob": lambda: blob_sas(account, key, f"{place}/data", "rw"),
    }[kind]()
    endpoint_only(node, f"sas = {sas}\n")
    write_and_read(node, signature(sas), key)


def test_a_read_only_sas(service_node: Node) -> None:
    node = service_node
    disk = node.create(size="8MiB")
    device = node.ok("attach", disk).strip()
    checker = Checker(device, tasks=2)
    checker.run(20)
    node.ok("detach", disk)
    sas = blob_sas(node.service.account, node.service.key, f"{node.container}/data", "r")
    endpoint_only(node, f"sas = {sas}\n")
    done = node.dyskctl("attach", disk)
    assert done.code == 1 and "attach read-only" in done.err and exposed_nowhere(done.err, signature(sas))
    device = node.ok("attach", disk, "--read-only").strip()
    checker.verify(device)
    assert exposed(node, signature(sas)) == []
    node.ok("detach", disk)


@pytest.mark.parametrize("where", ["file", "variable"])
@pytest.mark.parametrize("proof", ["key", "sas"])
def test_a_connection_string_is_enough_wherever_it_stands(node: Node, where: str, proof: str) -> None:
    node.create(size="8MiB")
    sas = account_sas(node.service.account, node.service.key, "rw", "o")
    text = f"AccountKey={node.service.key}" if proof == "key" else f"SharedAccessSignature={sas}"
    text = connection_string(node, text)
    if where == "file":
        node.write_credentials(f"connection_string = {text}\n")
    else:
        node.write_credentials().unlink()
        node.environment["AZURE_STORAGE_CONNECTION_STRING"] = text
    write_and_read(node, node.service.key, signature(sas))


@pytest.mark.parametrize("proof", ["KEY", "SAS_TOKEN"])
def test_the_variables_of_azure_s_own_tools_are_enough(node: Node, proof: str) -> None:
    node.create(size="8MiB")
    node.write_credentials().unlink()
    sas = account_sas(node.service.account, node.service.key, "rw", "o")
    node.environment["AZURE_STORAGE_ACCOUNT"] = node.service.account
    node.environment[f"AZURE_STORAGE_{proof}"] = node.service.key if proof == "KEY" else sas
    write_and_read(node, node.service.key, signature(sas), words=("--endpoint", node.service.endpoint))


def test_the_key_is_rotated_while_in_use(faulty_node: Node) -> None:
    """The old key ends first; I/O waits for the new one in the file."""
    node = faulty_node
    server = server_of(node)
    checker = Checker(node.ok("attach", node.create(size="8MiB")).strip())
    checker.start()
    until(checker.progress(50), "I/O with the first key")
    server.configure(accounts={server.account: OTHER_KEY})
    until(lambda: server.stats()["codes"].get("AuthenticationFailed", 0) > 3, "refused requests")
    node.write_credentials(f"endpoint = {server.endpoint}\naccount_key = {OTHER_KEY}\n")
    until(checker.progress(50), "I/O with the second key", 60)
    checker.stop()
    checker.verify()
    assert exposed(node, OTHER_KEY, server.key) == []
    node.ok("detach", "data")
    assert server.blob(node.container, "data")["lease"]["state"] == "available"


# Entra ID: tokens go over HTTPS only.


@dataclass
class Identity:
    """The managed identity of a machine, as App Service offers it to its programs: each request gets a new token.

    Source: https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference
    """

    server: PageBlobServer
    life_s: float = 3600.0
    secret: str = "the-identity-header-of-a-test"
    issued: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def issue(self) -> dict[str, Any]:
        """One more token, which the blob service takes beside the one before it."""
        self.issued.append(f"token-{len(self.issued)}-of-a-test")
        self.accept(self.issued[-2:])
        expires_on = int(time.time() + self.life_s)
        return {"access_token": self.issued[-1], "expires_on": str(expires_on), "resource": "-", "token_type": "Bearer"}

    def accept(self, tokens: list[str]) -> None:
        self.server.configure(tokens={token: {"permissions": "rwdlc"} for token in tokens})


def handler_for(identity: Identity) -> Callable[..., http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            identity.asked.append(query)
            if self.headers["X-IDENTITY-HEADER"] != identity.secret:
                self.send_error(401)
                return
            body = json.dumps(identity.issue()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def secure_node(run_dirs: RunDirs, container: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node with an HTTPS server of its own, and a disk that is there; the file has the endpoint and the authority."""
    with monkeypatch.context() as patch:
        for name in run_dirs.environment:
            patch.delenv(name)  # the server must not look like a process of the node's
        server = PageBlobServer(https=True)
        server.start()
    try:
        server.create(container, "data", 8 * MIB)
        for node in make_node(run_dirs, server, container):
            endpoint_only(node, f"ca_file = {server.ca_file}\n")
            yield node
    finally:
        server.__exit__(None, None, None)


@pytest.fixture
def identity(secure_node: Node) -> Iterator[Identity]:
    """The identity endpoint, known to the node's commands by the variables that App Service sets."""
    identity = Identity(server_of(secure_node))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler_for(identity)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        identity.url = f"http://127.0.0.1:{server.server_address[1]}/msi/token"
        secure_node.environment.update(IDENTITY_ENDPOINT=identity.url, IDENTITY_HEADER=identity.secret)
        yield identity
        server.shutdown()
        thread.join()


def conf_of(node: Node, more: str) -> None:
    ca_file = server_of(node).ca_file
    endpoint_only(node, f"ca_file = {ca_file}\n{more}")


def test_a_token_command_is_asked_again_before_a_token_ends(secure_node: Node) -> None:
    node = secure_node
    server = server_of(node)
    path = node.dirs.root / "token"

    def write_token(text: str, life_s: float) -> None:
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"access_token": text, "expires_on": int(time.time() + life_s)}))
        new.chmod(0o600)
        new.rename(path)

    server.configure(tokens={"first-token": {}})
    write_token("first-token", 6)
    conf_of(node, f"token_command = cat {path}\n")
    checker = Checker(node.ok("attach", node.disk()).strip())
    checker.start()
    until(checker.progress(20), "I/O with the first token")
    write_token("second-token", 3600)
    server.configure(tokens={"second-token": {}})
    until(checker.progress(40), "I/O with the second token", 30)
    checker.stop()
    checker.verify()
    assert exposed(node, "first-token", "second-token") == []
    node.ok("detach", "data")


def test_entra_id_by_managed_identity(secure_node: Node, identity: Identity) -> None:
    conf_of(secure_node, "auth = entra\nclient_id = 11111111-2222-3333-4444-555555555555\n")
    write_and_read(secure_node, identity.secret, "-of-a-test")
    assert identity.asked[0]["resource"] == "https://storage.azure.com"
    assert identity.asked[0]["client_id"] == "11111111-2222-3333-4444-555555555555"


def test_entra_id_by_variables(secure_node: Node, identity: Identity) -> None:
    secure_node.environment["AZURE_STORAGE_AUTH_MODE"] = "login"
    write_and_read(secure_node, identity.secret, "-of-a-test")
    assert len(identity.issued) == 1


def test_entra_id_tokens_are_renewed_while_in_use(secure_node: Node, identity: Identity) -> None:
    """Each token lives for some seconds, and ends at the service with the next but one."""
    node = secure_node
    identity.life_s = 6.0
    conf_of(node, "auth = entra\n")
    checker = Checker(node.ok("attach", node.disk()).strip(), tasks=2)
    checker.start()
    until(lambda: len(identity.issued) >= 4 or checker.errors, "four tokens", 60)
    until(checker.progress(20), "I/O with the last one")
    checker.stop()
    checker.verify()
    assert exposed(node, identity.secret, "-of-a-test") == []
    identity.life_s = 3600.0
    node.ok("detach", "data")
    server = server_of(node)
    assert unsafe_writes(server) == {}
    assert server.blob(node.container, "data")["lease"]["state"] == "available"


def test_entra_id_without_rights_to_write(secure_node: Node, identity: Identity) -> None:
    """Storage Blob Data Reader: refused with the reason; a read-only attach works."""
    node = secure_node
    identity.accept = lambda tokens: identity.server.configure(  # type: ignore[method-assign]
        tokens={token: {"permissions": "rl"} for token in tokens}
    )
    conf_of(node, "auth = entra\n")
    done = node.dyskctl("attach", node.disk())
    assert done.code == 1 and "Storage Blob Data Contributor" in done.err
    assert exposed_nowhere(done.err, "-of-a-test", identity.secret)
    device = node.ok("attach", node.disk(), "--read-only").strip()
    assert Path(device).read_bytes() == bytes(8 * MIB)
    node.ok("detach", "data")


def test_the_identity_endpoint_refuses(secure_node: Node, identity: Identity) -> None:
    node = secure_node
    conf_of(node, "auth = entra\n")
    node.environment["IDENTITY_HEADER"] = "another"
    done = node.dyskctl("attach", node.disk())
    assert done.code == 1 and "Entra ID" in done.err
    assert "Traceback" not in done.err
    assert node.nothing_left()
    assert identity.issued == []
