"""The holder as a service: what it says to systemd, what it gets back, and when systemd is asked to start one."""

from __future__ import annotations

import array
import os
import socket
from pathlib import Path

import pytest

from blobfuse_dysk.device.attacher import systemd
from blobfuse_dysk.device.holder.sdnotify import Notify, kept
from blobfuse_dysk.errors import AttachedError
from tests.conftest import entries


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    """The service manager's end."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(5)
    return listener


def receive(manager: socket.socket) -> tuple[list[str], list[int]]:
    text, rights, _, _ = manager.recvmsg(4096, 1024)
    fds = array.array("i")
    for _, _, data in rights:
        fds.frombytes(data)
    return text.decode().split("\n"), list(fds)


def test_a_descriptor_is_kept_and_forgotten(manager: socket.socket, tmp_path: Path) -> None:
    notify = Notify(str(tmp_path / "notify"))
    ring = os.memfd_create("ring")
    with manager:
        notify.keep("ring", ring)
        lines, (copy,) = receive(manager)
        assert lines == ["FDSTORE=1", "FDNAME=ring", "FDPOLL=0"]
        assert os.path.sameopenfile(ring, copy)
        notify.keep("channel-7", ring, watch=True)
        lines, (second,) = receive(manager)
        assert lines == ["FDSTORE=1", "FDNAME=channel-7"]
        notify.forget("ring")
        assert receive(manager) == (["FDSTOREREMOVE=1", "FDNAME=ring"], [])
        notify.ready()
        assert receive(manager) == (["READY=1"], [])
    for fd in (ring, copy, second):
        os.close(fd)


def test_without_a_manager_nothing_is_said() -> None:
    Notify(None).ready()


def test_kept_descriptors_come_back_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(os, "set_inheritable", lambda fd, inheritable: made.append(fd))
    pid = str(os.getpid())
    variables = {"LISTEN_PID": pid, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "fuse:ring"}
    assert kept(variables) == {"fuse": 3, "ring": 4}
    assert made == [3, 4]
    assert kept({**variables, "LISTEN_PID": "1"}) == {}
    assert kept({}) == {}


def test_only_the_unit_of_this_installation_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(systemd, "_DIRECTORIES", (str(tmp_path / "none"), str(tmp_path)))
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setattr(systemd, "_sees_what_systemd_sees", lambda: True)
    assert not systemd.usable("/run/dysk")
    file = tmp_path / "dysk-holder@.service"
    file.write_text("ExecStart=/usr/bin/python3 -I -S /elsewhere/blobfuse_dysk/device/holder/systemd.py --name %i\n")
    assert not systemd.usable("/run/dysk")
    file.write_text(f"ExecStart=/usr/bin/python3 -I -S {systemd.SERVICE} --name %i\n")
    assert systemd.usable("/run/dysk")
    assert not systemd.usable("/run/elsewhere")
    monkeypatch.setattr(systemd, "_sees_what_systemd_sees", lambda: False)
    assert not systemd.usable("/run/dysk")


def test_systemd_is_asked_again_while_the_last_holder_of_that_name_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, ...]] = []
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def systemctl(*arguments: str) -> None:
        asked.append(arguments)
        if len(asked) == 2:
            holder.connect(str(tmp_path / ".data.launch"))

    monkeypatch.setattr(systemd, "systemctl", systemctl)
    monkeypatch.setattr(systemd, "_AGAIN_S", 0.05)
    with holder, systemd.start("data", str(tmp_path)) as channel:
        channel.sendall(b"order")
        assert holder.recv(16) == b"order"
    assert asked == [("start", "--no-block", "dysk-holder@data.service")] * 2
    assert not entries(tmp_path)


def test_a_name_that_is_being_attached_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def systemctl(*arguments: str) -> None:
        with pytest.raises(AttachedError, match="the name data is taken"):
            systemd.start("data", str(tmp_path))
        raise AttachedError("enough")

    monkeypatch.setattr(systemd, "systemctl", systemctl)
    with pytest.raises(AttachedError, match="enough"):
        systemd.start("data", str(tmp_path))


def test_a_socket_that_a_killed_process_left_is_in_nobodys_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(tmp_path / ".data.launch"))

    def systemctl(*arguments: str) -> None:
        raise AttachedError("got that far")

    monkeypatch.setattr(systemd, "systemctl", systemctl)
    with pytest.raises(AttachedError, match="got that far"):
        systemd.start("data", str(tmp_path))
