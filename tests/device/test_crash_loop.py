"""Workers that die again and again, and disks that cannot be opened any more: seen, told of, and over by io-timeout."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from tests.conftest import entries
from tests.device.conftest import MIB, Node, fill, wait_for
from tests.device.programs import use_worker
from tests.device.test_worker_death import direct_read


def kill(node: Node) -> None:
    os.kill(node.state("data")["worker"]["pid"], signal.SIGKILL)


def test_workers_that_die_at_once(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each restart is counted, the reason shown; the pauses grow; I/O waits and goes on when one lives."""
    flag = tmp_path / "broken"
    use_worker(monkeypatch, tmp_path, f"if os.path.exists({str(flag)!r}): sys.exit('a broken build')")
    attached = node.attach(node.create())
    written = fill(attached.device, 1, MIB)
    wait_for(lambda: node.blob()["allocated"] == MIB, "the write")
    flag.touch()
    kill(node)
    answers: list[bytes] = []
    reader = threading.Thread(target=lambda: answers.append(direct_read(attached.device, MIB)))
    reader.start()
    wait_for(lambda: attachment.get("data").restarts >= 5, "restarts", 60)
    found = attachment.get("data")
    assert found.state == "recovering"
    assert "a broken build" in str(found.detail)
    assert reader.is_alive()
    flag.unlink()
    reader.join(30)
    assert answers == [written]
    wait_for(lambda: attachment.get("data").state == "attached", "the state attached")
    assert attachment.get("data").detail is None
    assert attachment.status("data")["worker_restarts"] >= 5
    attachment.detach("data")
    node.assert_nothing_left()


@pytest.mark.parametrize("what", ["the blob is gone", "the credential is revoked"])
def test_a_disk_that_cannot_be_opened_again(node: Node, what: str) -> None:
    """The reason is shown while I/O waits; it fails after io-timeout, at once if it is for good, and detach works."""
    attached = node.attach(node.create(), io_timeout_s=4.0)
    if what == "the blob is gone":
        node.server.remove(node.container, "data")
        says = "does not exist"
    else:
        node.server.configure(accounts={node.server.account: "b3RoZXIta2V5LW9mLXRoZS1hY2NvdW50LS0tLS0tLS0tLS0="})
        says = "AuthenticationFailed"
    kill(node)
    wait_for(lambda: says in str(attachment.get("data").detail), "the reason")
    assert attachment.get("data").state == ("failed" if what == "the blob is gone" else "recovering")
    with pytest.raises(subprocess.CalledProcessError):
        direct_read(attached.device, 4096)
    attachment.detach("data", force=True)
    assert entries(node.dirs.run) == []
    assert list(node.dirs.dev.iterdir()) == []
