"""The FlexVolume driver azure/dysk as a kubelet runs it: its words, its one line, real disks and mounts."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.kubernetes import flexinstall
from blobfuse_dysk.testing import PageBlobServer
from tests.kubernetes.conftest import MIB, Cluster, mounts_below, take_down
from tests.kubernetes.nodes import Plugin
from tests.leaks import RunDirs


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Kubelet:
    """Runs the driver. The environment has nothing of an account."""

    def __init__(self, dirs: RunDirs, server: PageBlobServer, container: str) -> None:
        self.cluster = Cluster(dirs, server, container, Plugin(dirs))
        self.dirs = dirs
        self.server = server
        self.container = container
        conf = dirs.config / f"{server.account}.conf"
        conf.write_text(f"endpoint = {server.endpoint}\n")
        conf.chmod(0o600)

    def options(self, blob: str = "data", **more: str) -> dict[str, str]:
        key = encoded(self.server.key)
        return {
            "container": self.container,
            "blob": blob,
            "kubernetes.io/fsType": "",
            "kubernetes.io/readwrite": "rw",
            "kubernetes.io/pvOrVolumeName": "pv-1",
            "kubernetes.io/secret/accountname": encoded(f"{self.server.account}\n"),
            "kubernetes.io/secret/accountkey": f"{key[:20]}\n{key[20:]}",
            **{name.replace("__", "/"): value for name, value in more.items()},
        }

    def pod(self, name: str = "one") -> Path:
        return self.dirs.root / "pods" / name / "volumes" / "azure~dysk" / "data"

    def run(self, *words: str) -> tuple[dict[str, Any], int]:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("AZURE_")}
        done = subprocess.run(
            [str(Path(sys.executable).parent / "dysk-flexvolume"), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # as the kubelet reads it
            text=True,
            timeout=110,
            env={**variables, **self.dirs.environment},
        )
        assert done.stdout.count("\n") == 1 and done.stdout.endswith("\n"), done.stdout
        assert self.server.key not in done.stdout
        answer: dict[str, Any] = json.loads(done.stdout)
        assert (answer["status"] == "Success") == (done.returncode == 0)
        return answer, done.returncode

    def ok(self, *words: str) -> dict[str, Any]:
        answer, _ = self.run(*words)
        assert answer["status"] == "Success", answer
        return answer

    def mount(self, options: dict[str, str], name: str = "one") -> dict[str, Any]:
        return self.run("mount", str(self.pod(name)), json.dumps(options))[0]

    def unmount(self, name: str = "one") -> None:
        self.ok("unmount", str(self.pod(name)))


@pytest.fixture
def kubelet(server: PageBlobServer, run_dirs: RunDirs, container: str) -> Iterator[Kubelet]:
    found = Kubelet(run_dirs, server, container)
    try:
        yield found
        assert found.cluster.attachments() == []
    finally:
        take_down(run_dirs)


def test_what_the_kubelet_asks_first() -> None:
    program = str(Path(sys.executable).parent / "dysk-flexvolume")
    done = subprocess.run([program, "init"], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["capabilities"]["attach"] is False and done.returncode == 0
    for word in ("attach", "waitforattach", "getvolumename", "mountdevice", "expandvolume", "isattached", ""):
        done = subprocess.run([program, *word.split()], capture_output=True, text=True, timeout=60)
        assert (json.loads(done.stdout), done.stderr) == ({"status": "Not supported"}, "")


def test_a_volume_of_two_pods_is_kept_until_the_second_is_gone(kubelet: Kubelet) -> None:
    kubelet.cluster.disk()
    for _ in range(2):
        assert kubelet.mount(kubelet.options()) == {"status": "Success"}
    (kubelet.pod() / "file").write_text("kept")
    assert kubelet.mount(kubelet.options(), "two") == {"status": "Success"}
    kubelet.unmount()
    assert (kubelet.pod("two") / "file").read_text() == "kept"
    for _ in range(2):
        kubelet.unmount("two")
    assert kubelet.cluster.blob()["lease"]["state"] == "available"
    read_only = kubelet.options(kubernetes_io="", **{"kubernetes.io__readwrite": "ro"})
    read_only.pop("kubernetes_io")
    assert kubelet.mount(read_only)["status"] == "Success"
    assert (kubelet.pod() / "file").read_text() == "kept"
    assert kubelet.cluster.blob()["lease"]["state"] == "available"
    with pytest.raises(OSError, match="Read-only"):
        (kubelet.pod() / "file").write_text("changed")
    kubelet.unmount()


def test_a_file_system_that_is_there_is_mounted_as_it_is(kubelet: Kubelet) -> None:
    """The original mounted what blkid found, whatever fsType said."""
    kubelet.cluster.disk(size=512 * MIB)
    assert kubelet.mount(kubelet.options(**{"kubernetes.io__fsType": "xfs"}))["status"] == "Success"
    kubelet.unmount()
    assert kubelet.mount(kubelet.options(**{"kubernetes.io__fsType": "ext4"}))["status"] == "Success"
    assert f"{kubelet.pod()} rw" in Path("/proc/self/mountinfo").read_text()
    assert any(str(kubelet.pod()) in line and " xfs " in line for line in Path("/proc/mounts").read_text().splitlines())
    kubelet.unmount()


def test_a_volume_grows_while_a_pod_has_it(kubelet: Kubelet) -> None:
    """xfs, since ext4 takes CAP_SYS_RESOURCE for it, which containers often lack."""
    kubelet.cluster.disk(size=512 * MIB)
    kubelet.mount(kubelet.options(**{"kubernetes.io__fsType": "xfs"}))
    before = os.statvfs(kubelet.pod()).f_blocks
    options = json.dumps(kubelet.options())
    answer = kubelet.ok("expandfs", options, "", str(kubelet.pod()), str(1024 * MIB), str(512 * MIB))
    assert answer["volumeNewSize"] == 1024 * MIB == kubelet.cluster.blob()["size"]
    assert os.statvfs(kubelet.pod()).f_blocks > 1.8 * before
    kubelet.ok("expandfs", options, "", str(kubelet.pod()), str(1024 * MIB), str(512 * MIB))
    kubelet.unmount()
    answer, _ = kubelet.run("expandfs", options, "", str(kubelet.pod()), str(1024 * MIB), str(512 * MIB))
    assert "no volume of azure/dysk is mounted" in answer["message"]


def test_bad_input_is_one_line_and_leaves_nothing(kubelet: Kubelet) -> None:
    kubelet.cluster.disk()
    good = kubelet.options()
    cases: list[tuple[dict[str, str], str]] = [
        ({**good, "container": ""}, "the volume has no option container"),
        ({**good, "blob": "none"}, "none"),
        ({**good, "kubernetes.io/fsType": "zfs"}, "zfs"),
        ({**good, "kubernetes.io/secret/accountkey": "%"}, "kubernetes.io/secret/accountkey is not base64"),
        ({**good, "kubernetes.io/secret/accountkey": encoded("?")}, "not base64"),
        ({**good, "accountName": "another"}, "is of account devstoreaccount1"),
        ({**good, "contianer": "x"}, "contianer"),
    ]
    for options, says in cases:
        answer = kubelet.mount(options)
        assert answer["status"] == "Failure" and says in answer["message"], (says, answer)
        assert kubelet.cluster.attachments() == []
        assert not any(str(kubelet.pod()) == mount for mount in mounts_below(kubelet.dirs.root))
    for words in (
        ("mount", "relative", "{}"),
        ("mount", "/d", "[]"),
        ("mount", "/d", "?"),
        ("mount",),
        ("unmount", "d"),
    ):
        assert kubelet.run(*words)[0]["status"] == "Failure"


def test_what_another_has_mounted_there_is_left_alone(kubelet: Kubelet) -> None:
    kubelet.pod().mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", kubelet.pod()], check=True)
    kubelet.cluster.disk()
    assert "another file system" in kubelet.mount(kubelet.options())["message"]
    answer, _ = kubelet.run("unmount", str(kubelet.pod()))
    assert "is no volume of azure/dysk" in answer["message"]
    subprocess.run(["umount", kubelet.pod()], check=True)


def test_a_directory_without_a_name_is_not_the_one_that_we_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--directory is empty"):
        flexinstall.install(["aks", ""])
    assert list(tmp_path.iterdir()) == []


def test_the_installed_driver_is_what_the_kubelet_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flexinstall, "DIRECTORIES", (str(tmp_path / "aks"), str(tmp_path / "none")))
    (tmp_path / "aks").mkdir()
    (driver,) = flexinstall.install()
    assert driver == f"{tmp_path}/aks/azure~dysk/dysk" and flexinstall.install() == [driver]
    done = subprocess.run([driver, "init"], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["status"] == "Success"
    assert [path.name for path in Path(driver).parent.iterdir()] == ["dysk"]
