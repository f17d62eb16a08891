"""A disk is taken from an attachment on this machine, as a controller does it to a node that does not answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blobfuse_dysk import attachment, environment
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.fence import fence
from blobfuse_dysk.disks.look import get_disk
from blobfuse_dysk.options import AttachOptions
from tests.device.conftest import Node, fill, wait_for
from tests.device.test_worker_death import direct_read

MIB = 1 << 20


def test_the_node_that_has_it_can_write_no_more_and_the_next_attaches_at_once(node: Node) -> None:
    disk = node.create()
    attached = node.attach(disk)
    written = fill(attached.device, 1, MIB)
    with Path(attached.device).open("r+b", buffering=0) as file:
        os.fsync(file.fileno())
    address, me = DiskAddress.parse(disk), environment.node_name()
    assert get_disk(address, AttachOptions()).holder == me
    assert not fence(address, AttachOptions(), node=f"{me}-2")
    assert attachment.get("data").state == "attached"
    assert fence(address, AttachOptions(), node=me)
    assert node.blob()["lease"]["state"] == "available"
    with Path(attached.device).open("r+b", buffering=0) as file, pytest.raises(OSError):
        os.pwrite(file.fileno(), b"x" * 4096, 0)
        os.fsync(file.fileno())
    wait_for(lambda: attachment.get("data").state == "fenced", "the fencing")
    attachment.detach("data", force=True, lose_data=True)
    assert not fence(address, AttachOptions(), node=me)
    attached = node.attach(disk)
    assert direct_read(attached.device, MIB) == written
    attachment.detach("data")
    node.assert_nothing_left()
