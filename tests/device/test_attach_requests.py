"""What an attach asks of the service, until there is a device."""

from __future__ import annotations

from pathlib import Path

from blobfuse_dysk import attachment
from tests.device.conftest import Node, fill, wait_for

CLAIM = {"get_blob_properties": 1, "lease_acquire": 1, "set_blob_properties": 1}
BESIDE = {"get_page_ranges": 1, "set_blob_metadata": 1}


def test_an_attach_of_a_blank_disk_is_five_requests_two_of_them_beside(node: Node) -> None:
    disk = node.create()
    node.server.reset_stats()
    node.attach(disk, name="data")
    wait_for(lambda: "dysk_node" in node.blob()["metadata"], "the holder's name")
    assert node.server.stats()["requests"] == {**CLAIM, **BESIDE}
    attachment.detach("data")


def test_of_a_disk_with_data_its_ends_are_read_besides(node: Node) -> None:
    disk = node.create()
    fill(Path(node.attach(disk, name="data").device), seed=1, size=64 << 20)
    attachment.detach("data")
    node.server.reset_stats()
    node.attach(disk, name="data")
    wait_for(lambda: "dysk_node" in node.blob()["metadata"], "the holder's name")
    requests = node.server.stats()["requests"]
    assert requests.pop("get_blob") <= 4
    assert requests == {**CLAIM, **BESIDE}
    attachment.detach("data")
