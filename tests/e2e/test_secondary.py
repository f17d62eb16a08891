"""A disk at the secondary endpoint of its account: mounted read-only there, refused for writing."""

from __future__ import annotations

from tests.e2e.kit import Node, faulty_node

__all__ = ["faulty_node"]


def test_a_file_system_is_read_at_the_secondary(faulty_node: Node) -> None:
    node = faulty_node
    assert node.mount(node.create(), "fstype=ext4").code == 0
    (node.mountpoint / "file").write_text("kept")
    assert node.umount().code == 0
    endpoint = node.service.endpoint
    node.write_credentials(f"account_key = {node.service.key}\nendpoint = {endpoint}-secondary\n")
    disk = f"{endpoint}-secondary/{node.container}/data"
    assert node.mount(disk, "ro").code == 0
    assert (node.mountpoint / "file").read_text() == "kept"
    assert node.umount().code == 0
    for done in (node.mount(disk), node.dyskctl("attach", disk)):
        assert done.code in (1, 2), done
        assert f"{endpoint}-secondary is the secondary of account" in done.err
        assert "attach it read-only" in done.err
        assert done.err.count("\n") == 1
    assert node.dyskctl("delete", disk, "--yes").code == 2
    assert node.dyskctl("create", disk, "--size", "1MiB").code == 2
    assert node.nothing_left()
