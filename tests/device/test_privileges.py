"""What a worker may do, and that the rest goes on working: what takes root is done by its monitor."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from blobfuse_dysk import attachment, live
from blobfuse_dysk.device.attacher.launch import worker_path
from blobfuse_dysk.device.kernel import privileges
from blobfuse_dysk.options import AttachOptions
from tests.conftest import need
from tests.device.conftest import MIB, Node, fill, flush, wait_for
from tests.device.programs import use_worker
from tests.device.test_worker_death import direct_read

CAP_DAC_READ_SEARCH, CAP_IPC_LOCK = 2, 14


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def monitor_of(worker: int) -> int:
    """The process id."""
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


def assert_powerless(pid: int, uid: int, capabilities: int) -> None:
    found = status(pid)
    assert found["Uid"].split() == [str(uid)] * 4
    for name in ("CapInh", "CapAmb"):
        assert int(found[name], 16) == 0, name
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(found[name], 16) == capabilities, name
    assert found["NoNewPrivs"] == "1"
    for task in Path(f"/proc/{pid}/task").iterdir():
        assert status(int(task.name))["CapEff"] == found["CapEff"]
        assert status(int(task.name))["Uid"] == found["Uid"]
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0, "it can be dumped and traced by its own user"


def test_a_worker_is_a_user_who_owns_nothing_and_may_lock_memory(node: Node) -> None:
    user = privileges.find_user()
    need(user is not None, f"the user {privileges.USER} exists: tools/setup makes it")
    assert user is not None
    capabilities = 1 << CAP_IPC_LOCK
    if privileges.unreadable(worker_path().split(":")):
        capabilities |= 1 << CAP_DAC_READ_SEARCH
    attached = node.attach(node.create())
    for change in ("attached", "killed", "upgraded"):
        before = node.state("data")["worker"]
        if change == "killed":
            os.kill(before["pid"], signal.SIGKILL)
            wait_for(lambda: node.state("data")["worker"] not in (None, before), "the next worker")  # noqa: B023
            wait_for(lambda: attachment.get("data").state == "attached", "the take-over")
        elif change == "upgraded":
            live.upgrade("data")
        written = fill(attached.device, 1, MIB)
        flush(attached.device)
        assert_powerless(node.state("data")["worker"]["pid"], user.uid, capabilities)
        assert status(node.state("data")["worker"]["pid"])["VmLck"] != "0 kB"
        assert direct_read(attached.device, MIB) == written
    assert status(node.state("data")["holder"]["pid"])["Uid"].split()[0] == "0"
    live.grow("data", 65 * MIB)
    attachment.detach("data")
    node.assert_nothing_left()
    assert "is detached" in node.log("data")


def test_without_that_user_a_worker_can_read_and_lock_memory(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_worker(
        monkeypatch,
        tmp_path,
        "from blobfuse_dysk.device.kernel import privileges; privileges.find_user = lambda: None",
    )
    node.attach(node.create())
    assert_powerless(node.state("data")["worker"]["pid"], 0, 1 << CAP_IPC_LOCK | 1 << CAP_DAC_READ_SEARCH)
    assert "it has root's user id: there is no user _dysk" in node.log("data")
    attachment.detach("data")


def test_the_monitor_has_no_descriptor_of_the_disk_and_ends_with_its_worker(node: Node) -> None:
    node.attach(node.create())
    worker = node.state("data")["worker"]["pid"]
    monitor = monitor_of(worker)
    wait_for(lambda: status(monitor)["Name"] == "dysk-monitor", "its start")
    assert status(monitor)["Uid"].split() == ["0"] * 4

    def open_files() -> list[str]:
        files = [str(each.readlink()) for each in Path(f"/proc/{monitor}/fd").iterdir()]
        return sorted(each.partition(":")[0] for each in files)

    wait_for(lambda: open_files() == ["/dev/null"] * 3 + ["socket"], "the end of its start")
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{monitor}").exists(), "the monitor's end")
    attachment.detach("data")


def test_a_worker_serves_on_without_its_monitor(node: Node, tmp_path: Path) -> None:
    attached = node.attach(node.create())
    os.kill(monitor_of(node.state("data")["worker"]["pid"]), signal.SIGKILL)
    fill(attached.device, 2, MIB)
    flush(attached.device)
    path = tmp_path / "new.conf"
    path.write_text(f"account_key = {node.server.key}\nendpoint = {node.server.endpoint}\n")
    path.chmod(0o600)
    with pytest.raises(Exception, match="the process that reads credentials is gone") as caught:
        live.reload_credential("data", str(path))
    assert "dyskctl upgrade" in str(getattr(caught.value, "remedy", ""))
    live.upgrade("data")
    assert live.reload_credential("data", str(path))["what"] == f"account key from {path}"
    attachment.detach("data")


def test_a_token_of_a_program_that_only_root_can_run(node: Node, tmp_path: Path) -> None:
    """As long as it runs, detach does not wait for it; it is ended with the worker."""
    ran = tmp_path / "ran"
    program = tmp_path / "login"
    program.write_text(
        f"#!/bin/sh\nid -u >{ran}\ngrep ^CapEff /proc/self/status >>{ran}\necho $$ >>{ran}\nexec sleep 1000\n"
    )
    program.chmod(0o700)
    conf = tmp_path / "entra.conf"
    endpoint = node.server.endpoint.replace("http:", "https:")  # it asks for the token first
    conf.write_text(f"auth = entra\ntoken_command = {program}\nendpoint = {endpoint}\n")
    conf.chmod(0o600)
    disk = node.create()
    pid = os.fork()
    if pid == 0:
        try:
            attachment.attach(disk, AttachOptions(credentials=str(conf)))
        finally:
            os._exit(0)
    wait_for(lambda: ran.exists() and len(ran.read_text().splitlines()) == 3, "the program")
    uid, capabilities, login = ran.read_text().splitlines()
    assert uid == "0"
    assert int(capabilities.split()[1], 16) == int(status(os.getpid())["CapEff"], 16)
    # On a pipe nobody is told; the log has what is waited for, from the worker and from who attaches.
    waiting = (f"waiting for token_command {program}", "waiting for the service to let data be attached")
    wait_for(lambda: all(each in node.log("data") for each in waiting), "a word of what is waited for")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_for(lambda: not Path(f"/proc/{login}").exists(), "the program's end")
    node.wait_gone()
