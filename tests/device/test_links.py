"""Links to real devices: by disk and by name, of partitions that come and go, and whose a name is."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.kernel import fuse, loop
from blobfuse_dysk.errors import AttachedError
from tests.device.conftest import MIB, Node, wait_for


def links(node: Node) -> dict[str, str]:
    """{link below the directory of links, without server and container: the device it leads to}"""
    paths = sorted(path for path in node.dirs.dev.rglob("*") if path.is_symlink())
    stem = f"by-blob/{node.server.account}/{node.container}/"
    return {str(path.relative_to(node.dirs.dev)).removeprefix(stem): os.path.realpath(path) for path in paths}


def other_container(node: Node) -> str:
    """A disk of the same name in another container; its address."""
    container = f"{node.container}-b"
    node.server.create(container, "data", 64 * MIB)
    return f"{node.server.account}/{container}/data"


def test_a_taken_name_is_refused_unless_any_will_do(node: Node) -> None:
    first = node.attach(node.create())
    disk = other_container(node)
    with pytest.raises(AttachedError, match=f"the name data is taken by {first.disk}") as caught:
        node.attach(disk)
    assert caught.value.remedy == "choose another: --name NAME, or --any-name (of mount: -o name=NAME, or -o any-name)"
    second = node.attach(disk, any_name=True)
    assert second.name == "data-2"
    for attached in (first, second):
        assert os.path.realpath(attached.by_blob) == attached.device
        assert attached.by_blob == f"{node.dirs.dev}/by-blob/{attached.disk}"
        assert attachment.get(attached.by_blob).name == attached.name
    for name in ("data", "data-2"):
        attachment.detach(name)
    node.assert_nothing_left()


def test_the_disk_that_is_attached_already_is_named_and_not_its_name(node: Node) -> None:
    disk = node.create()
    node.attach(disk)
    with pytest.raises(AttachedError, match="is attached here already, as data"):
        node.attach(disk)
    attachment.detach("data")


def test_readers_of_one_disk_share_its_link_and_inherit_it(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    disk = node.create()
    one = node.attach(disk, name="one", read_only=True)
    two = node.attach(disk, name="two", read_only=True)
    assert any(f"stays a link to {one.device}" in each for each in caplog.messages)
    assert links(node) == {"data": one.device, "one": one.device, "two": two.device}
    attachment.detach("one")
    assert links(node) == {"data": two.device, "two": two.device}
    attachment.detach("two")
    node.assert_nothing_left()


@pytest.mark.parametrize("partscan", [True, False])
def test_links_follow_a_partition_table_that_is_made_while_the_disk_is_attached(node: Node, partscan: bool) -> None:
    """Without udev, which is not here: the kernel tells the holder."""
    attached = node.attach(node.create(), name="vm", partscan=partscan)
    subprocess.run(["sfdisk", "-q", "--no-tell-kernel", attached.device], input=b",8M\n,8M\n", check=True)
    subprocess.run(["partx", "--update", attached.device], check=True)
    parts = {f"{base}-part{n}": f"{attached.device}p{n}" for base in ("data", "vm") for n in (1, 2)}
    wait_for(lambda: links(node) == {"data": attached.device, "vm": attached.device, **parts}, "the links")
    subprocess.run(["partx", "--delete", "--nr", "2", attached.device], check=True)
    wait_for(lambda: not any(name.endswith("part2") for name in links(node)), "the links of one that is gone")
    attachment.detach("vm")
    node.assert_nothing_left()
    again = node.attach(f"{node.server.account}/{node.container}/data", name="vm", partscan=True)
    assert links(node) == {
        "data": again.device,
        "vm": again.device,
        **{name: path.replace(attached.device, again.device) for name, path in parts.items()},
    }
    attachment.detach("vm")
    node.assert_nothing_left()


def test_partitions_of_one_disk_do_not_lie_in_the_next_one(node: Node) -> None:
    """The loop driver keeps them with the device's number; what is written to one would land in the next disk."""
    attached = node.attach(node.create(), partscan=False)
    subprocess.run(["sfdisk", "-q", "--no-tell-kernel", attached.device], input=b",8M\n,8M\n", check=True)
    subprocess.run(["partx", "--update", attached.device], check=True)
    assert len(loop.partitions(attached.device)) == 2
    attachment.detach("data")
    wait_for(lambda: not loop.partitions(attached.device), "partitions that go with the device")


@pytest.mark.parametrize("partscan", [False, True])
def test_partitions_that_others_left_are_not_in_a_disk(node: Node, partscan: bool) -> None:
    image = node.dirs.root / "image"
    image.write_bytes(bytes(20 * MIB))
    subprocess.run(["sfdisk", "-q", "--no-tell-kernel", image], input=b",8M\n", check=True)
    found = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True)
    left = found.stdout.strip()
    subprocess.run(["partx", "--add", left], check=True)
    subprocess.run(["losetup", "--detach", left], check=True)
    assert loop.partitions(left), "the driver does not keep them any more"
    names = [f"disk{number}" for number in range(4)]
    try:
        while names:
            name = names.pop()
            attached = node.attach(node.create(name), name=name, partscan=partscan)
            assert not loop.partitions(attached.device) and not attached.partitions
            if attached.device == left:
                break
    finally:
        if loop.backing_file(left) is None:
            subprocess.run(["partx", "--delete", left], capture_output=True, check=False)
        node.detach_all()


def test_links_go_when_the_device_does_and_not_when_all_is_written(node: Node) -> None:
    """Its number may be another disk's by then."""
    attached = node.attach(node.create(), write_delay_s=60.0)
    Path(attached.device).write_bytes(b"x" * MIB)
    node.server.outage("silent")
    loop.clear(attached.device)
    wait_for(lambda: loop.backing_file(attached.device) is None, "the release of the device")
    wait_for(lambda: links(node) == {}, "the end of the links")
    assert state.names(str(node.dirs.run)) == ["data"]
    node.server.outage(None)
    node.wait_gone()


def test_links_of_a_dead_attachment_never_lead_to_the_next_disk(node: Node) -> None:
    dead = node.attach(node.create())
    found = node.state("data")
    for process in ("holder", "worker"):
        os.kill(found[process]["pid"], signal.SIGKILL)
    wait_for(lambda: attachment.get("data").state == "dead", "its death")
    loop.clear(dead.device)
    fuse.unmount(state.mount_path(str(node.dirs.run), "data"))
    wait_for(lambda: loop.backing_file(dead.device) is None, "the release of the device")
    free = []
    other = node.attach(other_container(node), name="other")
    while other.device != dead.device:  # others on this machine take devices, too
        free.append(other.name)
        assert len(free) < 16, "the number does not come back"
        wait_for(lambda: loop.backing_file(dead.device) is None, "the end of who took the number", 60)
        other = node.attach(node.create(f"disk{len(free)}"), name=f"disk{len(free)}")
    assert "data" not in links(node)
    for name in [*free, other.name, "data"]:
        attachment.detach(name)
