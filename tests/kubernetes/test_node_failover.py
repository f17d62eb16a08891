"""Two nodes and one volume: each node plugin in a network and with directories of its own, and a fence between them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.fence import fence
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing import PageBlobServer
from tests.conftest import need
from tests.e2e.hosts import Host, network
from tests.e2e.kit import Node
from tests.e2e.loads import unsafe_writes
from tests.kubernetes.conftest import MIB, take_down
from tests.kubernetes.nodes import CallFailed, Plugin, Pod, capability, refused, until
from tests.leaks import RunDirs


@dataclass
class Two:
    """The volume as two kubelets see it, and the server that both nodes reach by HTTPS."""

    hosts: list[Host]
    plugins: list[Plugin]
    server: PageBlobServer
    container: str
    disk: str

    def pod(self, number: int, access: str = "SINGLE_NODE_WRITER") -> Pod:
        root = self.hosts[number].node.dirs.run.parent / "kubelet"
        secrets = {"accountname": self.server.account, "accountkey": self.server.key, "endpoint": self.server.endpoint}
        return Pod(self.plugins[number], root, self.disk, secrets, how=capability(access), at_publish=True)

    def fence(self, node: str) -> bool:
        conf = self.hosts[1].node.dirs.config / f"{self.server.account}.conf"
        return fence(DiskAddress.parse(self.disk), AttachOptions(credentials=str(conf)), node=node)


@pytest.fixture
def two(run_dirs: RunDirs, container: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    need(shutil.which("ip"), "iproute2 is not installed")
    with network() as net:
        for name in run_dirs.environment:
            monkeypatch.delenv(name)  # the server must not look like a process of the nodes'
        with PageBlobServer(https=True, host=net.address) as server:
            template = Node(run_dirs, server, container, run_dirs.root)
            hosts = [net.host(name, n, run_dirs, template) for n, name in enumerate(("node-a", "node-b"), 1)]
            server.create(container, "data", 64 * MIB)
            plugins = []
            for host in hosts:
                own = host.node.dirs
                dirs = RunDirs(own.run.parent, own.run, own.config, own.log, own.dev)
                plugins.append(Plugin(dirs, host.name, host.words()))
            found = Two(hosts, plugins, server, container, f"{server.account}/{container}/data")
            try:
                for plugin in plugins:
                    plugin.start()
                yield found
            finally:
                for host, plugin in zip(hosts, plugins, strict=True):
                    host.link("up")
                    plugin.stop()
                    for name, value in host.node.dirs.environment.items():
                        monkeypatch.setenv(name, value)
                    take_down(RunDirs(host.node.dirs.run.parent, *host_dirs(host)))


def host_dirs(host: Host) -> tuple[Path, Path, Path, Path]:
    own = host.node.dirs
    return own.run, own.config, own.log, own.dev


def test_a_volume_moves_to_another_node_when_its_own_is_fenced(two: Two) -> None:
    here, there = two.pod(0), two.pod(1)
    (here.up() / "file").write_text("kept")
    with (here.target() / "file").open() as file:
        os.fsync(file.fileno())
    subprocess.run(["sync", "-f", here.target()], check=True)
    with refused("FAILED_PRECONDITION", "node-a"):
        there.stage()
    assert not two.fence("node-b")
    two.hosts[0].link("down")
    began = time.monotonic()
    assert two.fence("node-a")
    target = there.up()
    print(f"writable elsewhere after {time.monotonic() - began:.1f} s")
    assert (target / "file").read_text() == "kept"
    (target / "file").write_text("of node-b")
    subprocess.run(["sync", "-f", target], check=True)
    words = ["dd", "if=/dev/zero", f"of={here.target()}/file", "bs=4096", "count=1", "conv=notrunc,fsync"]
    late = subprocess.Popen(words, stderr=subprocess.DEVNULL)  # it waits for as long as its node does not know better
    two.hosts[0].link("up")
    assert late.wait(60) != 0
    until(lambda: here.stats().volume_condition.abnormal, "the condition of the volume on the fenced node", 60)
    until(lambda: "fenced" in here.stats().volume_condition.message, "that it is fenced", 60)
    assert "delete the pod" in here.stats().volume_condition.message
    with refused("FAILED_PRECONDITION", "node-b"):
        here.publish()  # as requiresRepublish has it
    assert mounted(here.target()), "a pod of the fenced node must not come to write into the node's own directory"
    here.down()
    assert (target / "file").read_text() == "of node-b"
    there.down()
    (here.up() / "file").read_text()
    assert (here.target() / "file").read_text() == "of node-b"
    here.down()
    assert unsafe_writes(two.server) == {}


def mounted(path: Path) -> bool:
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def test_readers_on_two_nodes_and_no_writer_beside_them(two: Two) -> None:
    writer = two.pod(0)
    (writer.up() / "file").write_text("kept")
    reader = two.pod(1, "MULTI_NODE_READER_ONLY")
    with refused("FAILED_PRECONDITION", "node-a", "which writes to it", "take a snapshot"):
        reader.stage()
    writer.down()
    readers = [two.pod(number, "MULTI_NODE_READER_ONLY") for number in (0, 1)]
    for each in readers:
        assert (each.up() / "file").read_text() == "kept"
    for each in readers:
        each.down()


def test_one_node_writes_and_the_others_read(two: Two) -> None:
    """MULTI_NODE_SINGLE_WRITER: whoever has the lease writes, the others have it readonly."""
    first, second = (two.pod(number, "MULTI_NODE_SINGLE_WRITER") for number in (0, 1))
    (first.up() / "file").write_text("kept")
    first.down()
    first.up()
    second.how = capability("MULTI_NODE_SINGLE_WRITER", flags=["noload"])
    second.stage()
    with refused("FAILED_PRECONDITION", "for reading only", "publish it readonly here"):
        second.publish()
    assert (second.publish(readonly=True) / "file").read_text() == "kept"
    second.down()
    first.down()


def test_a_node_that_comes_back_after_its_power_failed_waits_for_its_own_lease(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes are gone, and nobody released the lease: it is this node's, so staging waits for its end."""
    pod = two.pod(0)
    (pod.up() / "file").write_text("kept")
    subprocess.run(["sync", "-f", pod.target()], check=True)
    two.plugins[0].kill()
    two.hosts[0].link("down")
    run = str(two.hosts[0].node.dirs.run)
    (name,) = state.names(run)
    found = state.read(run, name)
    assert found and found["worker"]
    for process in (found["worker"], found["holder"]):
        os.kill(process["pid"], signal.SIGKILL)
    subprocess.run(["umount", "-l", pod.target(), pod.staged], check=True)
    for name, value in two.hosts[0].node.dirs.environment.items():
        monkeypatch.setenv(name, value)
    take_down(RunDirs(two.hosts[0].node.dirs.run.parent, *host_dirs(two.hosts[0])))
    two.hosts[0].link("up")
    two.plugins[0].stop()
    two.plugins[0].start()
    two.server.elapse_leases(30)
    try:
        pod.stage()
    except CallFailed as error:
        pytest.fail(str(error))
    assert (pod.publish() / "file").read_text() == "kept"
    pod.down()
