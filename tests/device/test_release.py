"""Every way in which a device is let go ends its attachment: all written, lease released, nothing left."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.kernel import loop
from blobfuse_dysk.errors import BusyError
from tests.conftest import entries
from tests.device.conftest import MIB, Node, fill, wait_end, wait_for


def test_losetup_d_ends_the_attachment_when_all_is_written(node: Node) -> None:
    attached = node.attach(node.create())
    fill(attached.device, 1, 4 * MIB)
    subprocess.run(["losetup", "-d", attached.device], check=True)
    wait_end()
    assert node.blob()["allocated"] == 4 * MIB
    node.assert_nothing_left()


def test_losetup_d_of_a_device_in_use_takes_effect_on_its_last_close(node: Node) -> None:
    attached = node.attach(node.create())
    user = os.open(attached.device, os.O_RDWR)
    subprocess.run(["losetup", "-d", attached.device], check=True)
    with pytest.raises(BusyError, match="not detached after"):
        wait_end(timeout_s=0.2)
    assert attachment.get("data").state == "attached"
    os.close(user)
    wait_end()
    node.assert_nothing_left()


def test_bare_umount2_of_an_autoclear_device(node: Node, tmp_path: Path) -> None:
    attached = node.attach(node.create(), autoclear=True)
    subprocess.run(["mkfs.ext4", "-q", attached.device], check=True)
    subprocess.run(["mount", attached.device, str(tmp_path)], check=True)
    attachment.let_go("data")
    assert attachment.get("data").mountpoints == [str(tmp_path)]
    (tmp_path / "file").write_bytes(b"x" * MIB)
    assert ctypes.CDLL(None).umount2(os.fsencode(tmp_path), 0) == 0
    wait_end()
    node.assert_nothing_left()


def test_an_autoclear_device_goes_with_the_process_that_attached_it(node: Node) -> None:
    script = (
        "import sys; from blobfuse_dysk.attachment import attach; from blobfuse_dysk.options import AttachOptions;"
        "attach(sys.argv[1], AttachOptions(autoclear=True)); print('attached', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, node.create()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"attached\n"
        assert attachment.get("data").state == "attached"
        process.kill()
    node.wait_gone()
    node.assert_nothing_left()


def test_sigterm_of_the_holder_detaches(node: Node) -> None:
    attached = node.attach(node.create())
    fill(attached.device, 1, MIB)
    os.kill(node.state("data")["holder"]["pid"], signal.SIGTERM)
    node.wait_gone()
    assert node.blob()["allocated"] == MIB
    node.assert_nothing_left()


def test_sigterm_of_the_holder_never_cuts_a_mounted_file_system_off(node: Node, tmp_path: Path) -> None:
    attached = node.attach(node.create())
    subprocess.run(["mkfs.ext4", "-q", attached.device], check=True)
    subprocess.run(["mount", attached.device, str(tmp_path)], check=True)
    pid = node.state("data")["holder"]["pid"]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    wait_for(lambda: "told to stop" in node.log("data"), "the signal's arrival")
    os.kill(node.state("data")["worker"]["pid"], signal.SIGTERM)
    (tmp_path / "file").write_bytes(b"x" * MIB)
    subprocess.run(["sync", "-f", tmp_path], check=True)
    assert attachment.get("data").restarts == 0
    subprocess.run(["umount", str(tmp_path)], check=True)
    node.wait_gone()
    node.assert_nothing_left()


# Where an attaching process may die: patched to kill itself there.
DEATHS = {
    "before the holder gets its order": "blobfuse_dysk.device.ipc.message.send",
    "while the worker starts": "blobfuse_dysk.device.attacher.launch.Launch.wait_ready",
    "before it opens the file": "blobfuse_dysk.device.attacher.setup._open_disk",
    "between open and configure": "blobfuse_dysk.device.kernel.loop.configure",
    "after configure": "blobfuse_dysk.device.kernel.loop.tune",
    "before the commit": "blobfuse_dysk.device.attacher.launch.Launch.commit",
}
DYING = """
import importlib, os, signal, sys
from blobfuse_dysk import attachment
path, disk = sys.argv[1:]
names = path.split(".")
for depth in range(len(names), 0, -1):
    try:
        home = importlib.import_module(".".join(names[:depth]))
        break
    except ImportError:
        pass
for name in names[depth:-1]:
    home = getattr(home, name)
setattr(home, names[-1], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
attachment.attach(disk)
"""


@pytest.mark.parametrize("place", DEATHS)
def test_an_attaching_process_that_dies_leaves_nothing(node: Node, place: str) -> None:
    disk = node.create()
    process = subprocess.run([sys.executable, "-c", DYING, DEATHS[place], disk], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    node.wait_gone()
    wait_for(lambda: loop.bound_to(state.disk_path(str(node.dirs.run), "data")) is None, "the loop device's release")
    node.assert_nothing_left()
    node.attach(disk)
    attachment.detach("data")


def test_an_attaching_process_that_is_interrupted_leaves_nothing(node: Node) -> None:
    """Ctrl-C while the service does not answer."""
    disk = node.create()
    node.server.outage("silent")
    script = "import sys; from blobfuse_dysk.attachment import attach; attach(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", script, disk], stderr=subprocess.PIPE) as process:
        wait_for(lambda: (node.dirs.run / "data" / "control.sock").exists(), "the start of the attach")
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode != 0
    assert entries(node.dirs.run) == []
    node.server.outage(None)
    node.assert_nothing_left()
