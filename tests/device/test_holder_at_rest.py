"""A holder has nothing to do while others have."""

from __future__ import annotations

import time

from blobfuse_dysk import attachment
from blobfuse_dysk.device.ipc import state
from tests.device.conftest import Node
from tools.benchlib.processes import cpu_seconds


def test_a_holder_sleeps_while_a_disk_is_attached_from_a_slow_service(node: Node) -> None:
    """What the kernel says meanwhile (of the holder's own mount, of any loop device) must not keep it awake."""
    disk = node.create()
    node.server.configure(latency_ms=1500)
    began = time.monotonic()
    attached = node.attach(disk)
    took_s = time.monotonic() - began
    node.server.configure(latency_ms=0)
    fields = state.read(str(node.dirs.run), attached.name)
    assert fields is not None
    used_s = cpu_seconds([fields["holder"]["pid"]])
    attachment.detach("data")
    assert took_s > 3
    assert used_s < took_s / 3, f"the holder used {used_s:.2f} of {took_s:.2f} s"
