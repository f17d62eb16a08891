"""Attachments of a template: they are as all others, whatever becomes of it."""

from __future__ import annotations

import hmac
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blobfuse_dysk import attachment, live
from blobfuse_dysk.device.attacher import launch, template
from tests.device.conftest import MIB, Node, fill, wait_for
from tests.device.test_worker_death import direct_read, kill_worker

ATTACH = "import sys; from blobfuse_dysk.attachment import attach; attach(sys.argv[1])"


def templates(node: Node) -> list[int]:
    """Their process ids."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            ours = os.fsencode(node.dirs.root) in (entry / "environ").read_bytes()
            if ours and words[-1] == os.fsencode(template.TEMPLATE):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_fork(pid: int) -> bool:
    """Whether there is room left in its command line, which the template has for the names of its children."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0\0")


def processes(node: Node, name: str) -> tuple[int, int]:
    """The holder and the worker."""
    found = node.state(name)
    return found["holder"]["pid"], found["worker"]["pid"]


def test_holders_are_forked_and_fork_their_workers(node: Node) -> None:
    names = ["one", "two"]
    for name in names:
        node.attach(node.create(name))
    (pid,) = templates(node)
    for name in names:
        holder, worker = processes(node, name)
        (monitor,) = map(int, Path(f"/proc/{worker}/task/{worker}/children").read_text().split())
        assert [parent_of(each) for each in (holder, worker, monitor)] == [pid, holder, worker]
        for each, comm, script in ((holder, "dysk-holder", launch.HOLDER), (worker, "dysk-worker", launch.WORKER)):
            words = Path(f"/proc/{each}/cmdline").read_text().rstrip("\0").split("\0")
            assert (words[0][0], words[-3:]) == ("@", [script, "--name", name])
            assert Path(f"/proc/{each}/comm").read_text().strip() == comm
    for name in names:
        attachment.detach(name)
    for name in names:
        node.assert_nothing_left(name)
    assert templates(node) == [pid]


def test_its_death_harms_nobody(node: Node) -> None:
    attached = node.attach(node.create("one"))
    (pid,) = templates(node)
    written = fill(attached.device, 1, MIB)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not templates(node), "its end")
    kill_worker(node, "one")
    assert is_fork(processes(node, "one")[1])
    assert direct_read(attached.device, MIB) == written
    node.attach(node.create("two"))
    (other,) = templates(node)
    assert (other != pid, parent_of(processes(node, "two")[0])) == (True, other)
    for name in ("one", "two"):
        attachment.detach(name)


def test_one_that_stands_still_makes_an_attach_slower_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.attach(node.create("one"))
    (pid,) = templates(node)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(template, "_LIMIT_S", 0.5)
    node.attach(node.create("two"))
    holder, worker = processes(node, "two")
    assert (parent_of(holder) != pid, is_fork(holder), is_fork(worker)) == (True, False, False)
    monkeypatch.setattr(template, "_LIMIT_S", 30.0)
    node.attach(node.create("three"))
    (other,) = set(templates(node)) - {pid}
    assert parent_of(processes(node, "three")[0]) == other
    os.kill(pid, signal.SIGCONT)  # it hears now of the holder that nobody waits for any more
    for name in ("one", "two", "three"):
        attachment.detach(name)
    node.assert_nothing_left("three")


def test_who_hands_on_something_else_has_another(node: Node) -> None:
    """As it would be without: the holder has the limits of the process that attaches."""
    node.attach(node.create("one"))
    less = (1000, 4000)
    change = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, {less}); "
    subprocess.run([sys.executable, "-c", change + ATTACH, node.create("two")], check=True, timeout=60)
    assert len(templates(node)) == 2
    found = [resource.prlimit(processes(node, name)[0], resource.RLIMIT_NOFILE) for name in ("one", "two")]
    assert found == [resource.getrlimit(resource.RLIMIT_NOFILE), less]
    for name in ("one", "two"):
        attachment.detach(name)


def test_after_an_upgrade_of_the_package_nothing_of_before_is_forked(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither by a holder, whose next worker is what is installed, nor by the template: there is another.

    A module that workers load from a place of the test's own is in the place of the package's, which all tests have.
    """
    part = Path(shutil.copy(hmac.__file__, tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    time.sleep(0.02)  # what was written just now is not taken for what was loaded
    attached = node.attach(node.create("one"))
    (pid,) = templates(node)
    written = fill(attached.device, 1, MIB)
    assert is_fork(processes(node, "one")[1])
    live.upgrade("one")
    assert is_fork(processes(node, "one")[1])
    part.write_text(part.read_text())
    time.sleep(0.11)  # for which a look at all files counts
    live.upgrade("one")
    assert not is_fork(processes(node, "one")[1])
    kill_worker(node, "one")
    assert not is_fork(processes(node, "one")[1])
    assert direct_read(attached.device, MIB) == written
    node.attach(node.create("two"))
    holder, worker = processes(node, "two")
    (other,) = templates(node)
    assert (other != pid, parent_of(holder), is_fork(worker)) == (True, other, True)
    for name in ("one", "two"):
        attachment.detach(name)


def test_memory_is_shared(node: Node) -> None:
    """Less than half of what a holder and a worker have in memory is for one of them only."""
    for name in ("one", "two"):
        node.attach(node.create(name))

    def own(pid: int) -> tuple[int, int]:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        sizes = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
        return sizes["Private_Dirty:"], sizes["Rss:"]

    for pid in processes(node, "two"):
        private, resident = own(pid)
        assert private < resident // 2, (private, resident)
    for name in ("one", "two"):
        attachment.detach(name)
