"""Through an HTTP proxy to both services: disks are read and written, made, listed and deleted, and doctor says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from blobfuse_dysk.azure.credential.resolve import resolve
from blobfuse_dysk.cli.doctor.account import account_checks
from blobfuse_dysk.cli.doctor.findings import Finding
from blobfuse_dysk.device.ipc.config import Config
from blobfuse_dysk.disk import Endpoint
from blobfuse_dysk.disks.create import create_disk
from blobfuse_dysk.disks.delete import delete_disk
from blobfuse_dysk.disks.look import list_disks
from blobfuse_dysk.errors import TransportError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store.open import open_stack
from blobfuse_dysk.store.stack import StackOptions
from blobfuse_dysk.testing import PageBlobServer
from tests.conftest import Service
from tests.connectproxy import ConnectProxy
from tests.wire.clients import address_of

pytestmark = pytest.mark.usefixtures("way")

LOGIN = "user:secret"


def write_conf(server: PageBlobServer, directory: Path, *lines: str) -> Path:
    file = directory / "account.conf"
    file.write_text("\n".join([f"account_key = {server.key}", f"endpoint = {server.endpoint}", *lines, ""]))
    file.chmod(0o600)
    return file


def findings(target: str, options: AttachOptions) -> dict[str, Finding]:
    return {found.check: found for found in account_checks(target, options, write_test=True)}


def place(endpoint: str) -> str:
    found = Endpoint.parse(endpoint)
    return f"{found.host}:{found.port}"


@pytest.mark.parametrize("login", ["", LOGIN])
def test_all_goes_through_the_proxy(service: Service, container: str, login: str) -> None:
    disk = replace(address_of(service, container), account_key=service.key)
    with ConnectProxy(login) as proxy:
        options = AttachOptions(proxy=proxy.url)
        create_disk(disk, 1 << 20, options)
        assert [row.size for row in list_disks(disk, options)] == [1 << 20]
        made = len(proxy.targets)
        assert made > 0, "the SDK's calls"
        address, credential = resolve(disk, options)
        handed_on = Config.decode(Config(address, credential.to_config(), options, "here").encode()).address
        assert handed_on == address

        async def use() -> None:
            async with open_stack(handed_on, credential, StackOptions(node="here", cache="none")) as stack:
                await stack.store.write(0, b"x" * 512)
                assert bytes(await stack.store.read(0, 512)) == b"x" * 512
                await stack.release()

        trio.run(use)
        assert len(proxy.targets) > made, "the data path"
        delete_disk(disk, options)
        assert set(proxy.targets) == {place(service.endpoint)}


def test_https_goes_through_it_as_well(container: str, tmp_path: Path) -> None:
    with PageBlobServer(https=True) as server, ConnectProxy(LOGIN) as proxy:
        file = write_conf(server, tmp_path, f"ca_file = {server.ca_file}", f"proxy = {proxy.url}")
        options = AttachOptions(credentials=str(file))
        disk = address_of(server, container)
        create_disk(disk, 1 << 20, options)
        found = findings(f"{server.endpoint}/{container}/data", options)
        assert {each.level for each in found.values()} == {"ok"}, found
        assert found["proxy"].found.startswith(f"http://127.0.0.1:{proxy.port}, named by {file}")
        assert "secret" not in str(found)
        assert set(proxy.targets) == {place(server.endpoint)}


def test_doctor_tells_of_a_direct_way_and_of_a_proxy_that_refuses(
    server: PageBlobServer, container: str, tmp_path: Path
) -> None:
    server.create(container, "data", 1 << 20)
    file = write_conf(server, tmp_path, "proxy = none")
    options = AttachOptions(credentials=str(file))
    found = findings(f"{server.endpoint}/{container}/data", options)
    assert found["proxy"].found == "none, the way is direct"
    assert {each.level for each in found.values()} <= {"ok", "warn"}
    with ConnectProxy(refuse="403 Forbidden") as proxy:
        options = replace(options, proxy=proxy.url)
        with pytest.raises(TransportError, match="HTTP 403"):
            list_disks(address_of(server, container), options)
        found = findings(f"{server.endpoint}/{container}/data", options)
    assert found["connection"].level == "fail"
    assert "403 Forbidden" in found["connection"].found
    assert "proxy=none" in (found["connection"].remedy or "")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "http://nobody.invalid:3128"])
def test_a_proxy_that_cannot_be_reached_is_not_taken_for_the_service(
    proxy: str, server: PageBlobServer, container: str, tmp_path: Path
) -> None:
    """The account does not exist, was said, or: is Azurite running there?"""
    options = AttachOptions(credentials=str(write_conf(server, tmp_path, f"proxy = {proxy}")))
    with pytest.raises(TransportError, match="through the proxy") as caught:
        list_disks(address_of(server, container), options)
    assert "check the proxy's name and port" in (caught.value.remedy or "")
