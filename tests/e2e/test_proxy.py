"""A disk behind an HTTP proxy: attached, written, read and detached through it, by processes that have no variables."""

from __future__ import annotations

import os

from tests.connectproxy import ConnectProxy
from tests.e2e.kit import Node, faulty_node

__all__ = ["faulty_node"]


def test_a_disk_behind_a_proxy_is_used_and_the_service_is_not_asked_directly(faulty_node: Node) -> None:
    node = faulty_node
    with ConnectProxy("user:secret") as proxy:
        endpoint = node.service.endpoint
        node.write_credentials(f"account_key = {node.service.key}\nendpoint = {endpoint}\nproxy = {proxy.url}\n")
        disk = node.create()
        device = node.ok("attach", disk).strip()
        fd = os.open(device, os.O_RDWR)
        try:
            os.pwrite(fd, b"x" * 4096, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        made = len(proxy.targets)
        assert node.ok("detach", "data") == ""
        assert f"http://127.0.0.1:{proxy.port}, named by" in node.ok("doctor", disk)
        logs = "".join(path.read_text() for path in node.dirs.log.iterdir())
        assert "secret" not in logs
        assert made > 1
    refused = node.dyskctl("attach", disk)
    assert refused.code == 1
    assert "the proxy http://127.0.0.1:" in refused.err and "cannot be reached (" in refused.err
    assert "Connection refused" in refused.err
    assert node.dyskctl("attach", disk, "--proxy", "none").code == 0
    assert node.ok("detach", "data") == ""
