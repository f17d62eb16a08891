"""A node's driver on its way out of its container: what it checks, its units, its control group."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobfuse_dysk import installed
from blobfuse_dysk.device.attacher import systemd
from blobfuse_dysk.device.holder import program
from blobfuse_dysk.device.ipc.messages import Program
from blobfuse_dysk.device.kernel import cgroup, privileges
from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.kubernetes.host import entry, units

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("path", "tree"),
    [
        ("/var/lib/dysk/0.1.0-abc/bin/python3", "0.1.0-abc"),
        ("/var/lib/dysk/0.1.0-abc/../0.2.0-def/bin/python3", "0.2.0-def"),
        ("/var/lib/dysk/0.1.0-abc", None),
        ("/var/lib/dysk/.new-0.1.0-abc-1/bin/python3", None),
        ("/var/lib/dysk/0.1.0-abc/../../../../tmp/python3", None),
        ("/tmp/var/lib/dysk/0.1.0-abc/bin/python3", None),
        ("/usr/lib/blobfuse-dysk/blobfuse_dysk", None),
    ],
)
def test_which_tree_a_path_lies_in(path: str, tree: str | None) -> None:
    assert installed.tree_of(path) == tree


class TestContainer:
    def test_one_that_shares_the_nodes_processes_and_may_reach_it(self, tmp_path: Path) -> None:
        self.make(tmp_path, "/usr/lib/systemd/systemd", reachable=True)
        entry.check_container(1, str(tmp_path))

    def test_of_a_pod_that_shares_its_own_processes_only(self, tmp_path: Path) -> None:
        self.make(tmp_path, "/pause", reachable=True)
        with pytest.raises(DeviceError, match="does not share its node's processes") as caught:
            entry.check_container(1, str(tmp_path))
        assert "hostPID: true" in (caught.value.remedy or "")

    def test_one_that_is_not_privileged(self, tmp_path: Path) -> None:
        self.make(tmp_path, "/usr/lib/systemd/systemd", reachable=False)
        with pytest.raises(DeviceError, match="may not reach its node") as caught:
            entry.check_container(1, str(tmp_path))
        assert "privileged: true" in (caught.value.remedy or "")

    def make(self, proc: Path, first: str, *, reachable: bool) -> None:
        (proc / "1" / "root").mkdir(parents=True)
        (proc / "1" / "exe").symlink_to(first)
        if reachable:
            (proc / "1" / "root" / "proc").mkdir()

    def test_outside_a_tree_the_second_step_is_refused(self) -> None:
        with pytest.raises(DeviceError, match="does not run from /var/lib/dysk"):
            entry.begin()


class TestUnits:
    @pytest.fixture
    def machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The root of one that systemd runs; what systemctl is called for is in self.asked."""
        (tmp_path / "run/systemd/system").mkdir(parents=True)
        asked: list[tuple[str, ...]] = []
        monkeypatch.setattr(systemd, "systemctl", lambda *words: asked.append(words))
        self.asked = asked
        monkeypatch.setattr(units, "_version", lambda: 255)
        monkeypatch.setattr(systemd, "own_tree", lambda: "0.1.0-abc")
        return tmp_path

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        (tmp_path / "tree/share").mkdir(parents=True)
        (tmp_path / "tree/share/systemd").symlink_to(ROOT / "packaging/systemd")
        return tmp_path / "tree"

    def test_the_holder_of_a_tree_is_its_own_units(self, machine: Path, tree: Path) -> None:
        units.install_units(tree, machine)
        text = (machine / "run/systemd/system/dysk-holder-0.1.0-abc@.service").read_text()
        assert f"ExecStart={tree}/bin/python3 -I -S {systemd.SERVICE} --run /run/dysk --name %i" in text
        assert "@" not in text.replace("@system-service", "").replace("dysk@", "")
        assert self.asked == [("daemon-reload",), ("start", "dysk-shutdown.service")]
        assert (machine / "run/systemd/system/dysk-holder-0.1.0-abc@.service.d/survive.conf").exists()

    def test_what_the_machines_package_has_is_not_made_again(self, machine: Path, tree: Path) -> None:
        (machine / "lib/systemd/system").mkdir(parents=True)
        (machine / "lib/systemd/system/dysk-shutdown.service").write_text("")
        units.install_units(tree, machine)
        assert not (machine / "run/systemd/system/dysk-shutdown.service").exists()

    def test_what_a_removed_tree_had_is_removed(self, machine: Path, tree: Path) -> None:
        units.install_units(tree, machine)
        units.remove_units("0.1.0-abc", machine)
        assert sorted(path.name for path in (machine / "run/systemd/system").iterdir()) == [
            "dysk-shutdown.service",
            "run-dysk-.mount.d",
        ]

    def test_without_systemd_there_are_none(self, tmp_path: Path, tree: Path) -> None:
        units.install_units(tree, tmp_path)
        assert not (tmp_path / "run").exists()

    def test_an_attachment_of_a_tree_is_a_service_of_that_trees_unit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert systemd.name_of("data") == "dysk-holder@data.service"
        monkeypatch.setattr(systemd, "own_tree", lambda: "0.1.0-abc")
        assert systemd.name_of("data") == "dysk-holder-0.1.0-abc@data.service"

    def test_a_version_between_releases_has_a_unit_that_systemd_takes(
        self, machine: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(systemd, "own_tree", lambda: "0.1.0+1-abc")
        assert systemd.name_of("data") == "dysk-holder-0.1.0_1-abc@data.service"
        units.install_units(tree, machine)
        made = machine / "run/systemd/system/dysk-holder-0.1.0_1-abc@.service"
        assert made.exists()
        units.remove_units("0.1.0+1-abc", machine)
        assert not made.exists() and not Path(f"{made}.d").exists()


class TestProgram:
    """A holder of one tree is asked to start a worker of another."""

    @pytest.fixture(autouse=True)
    def holder_of_a_tree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(program, "OWN", "/var/lib/dysk/0.1.0-abc/lib/python3.11/dist-packages")
        monkeypatch.setattr(program, "_problem", lambda path: None)

    def command(self, interpreter: str, tree: str) -> Program:
        packages = f"/var/lib/dysk/{tree}/lib/python3.11/dist-packages"
        worker = f"{packages}/blobfuse_dysk/device/worker/worker.py"
        argv = [interpreter, "-S", "-P", "-s", worker, "--name", "data"]
        return {"worker": argv, "environment": {"PYTHONPATH": packages}}

    def test_that_trees_interpreter_runs_it(self) -> None:
        program.check(self.command("/var/lib/dysk/0.2.0-def/bin/python3", "0.2.0-def"), "data")

    @pytest.mark.parametrize(
        "interpreter",
        [
            "/var/lib/dysk/0.3.0-no/bin/python3",
            "/var/lib/dysk/0.2.0-def/bin/mkfs.ext4",
            "/usr/bin/python3.9",
            "/bin/sh",
        ],
    )
    def test_no_other_program_does(self, interpreter: str) -> None:
        with pytest.raises(PermissionError, match="another interpreter"):
            program.check(self.command(interpreter, "0.2.0-def"), "data")

    def test_a_holder_that_is_of_no_tree_starts_its_own_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(program, "OWN", "/usr/lib/blobfuse-dysk")
        with pytest.raises(PermissionError, match="another interpreter"):
            program.check(self.command("/var/lib/dysk/0.2.0-def/bin/python3", "0.2.0-def"), "data")

    def test_its_path_is_judged_as_any_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(program, "_problem", lambda path: f"{path} is anybody's")
        with pytest.raises(PermissionError, match="anybody's"):
            program.check(self.command("/var/lib/dysk/0.2.0-def/bin/python3", "0.2.0-def"), "data")


class TestControlGroup:
    def test_each_hierarchy_is_joined_where_process_1_is(self, tmp_path: Path) -> None:
        (tmp_path / "proc/1").mkdir(parents=True)
        (tmp_path / "proc/1/cgroup").write_text("3:memory:/\n2:cpu,cpuacct:/init\n1:name=systemd:/a\n0::/init.scope\n")
        joined = ["memory", "cpu,cpuacct/init", "systemd/a", "init.scope"]
        for group in [*joined, "memory/kubepods"]:
            (tmp_path / "cgroup" / group).mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / group / "cgroup.procs").write_text("")
        assert cgroup.join(proc=str(tmp_path / "proc"), root=str(tmp_path / "cgroup")) == []
        for group in joined:
            assert (tmp_path / "cgroup" / group / "cgroup.procs").read_text() == "0"
        assert (tmp_path / "cgroup/memory/kubepods/cgroup.procs").read_text() == ""

    def test_a_group_that_cannot_be_joined_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "proc/1").mkdir(parents=True)
        (tmp_path / "proc/1/cgroup").write_text("0::/\n")
        (tmp_path / "cgroup/cgroup.procs").mkdir(parents=True)
        [warning] = cgroup.join(proc=str(tmp_path / "proc"), root=str(tmp_path / "cgroup"))
        assert warning.startswith("it stays in its control group: ")


def test_a_tree_has_a_user_for_workers_where_the_machine_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.1.0-abc").mkdir()
    (tmp_path / "0.1.0-abc/passwd").write_text("_dysk:x:60986:60986::/nonexistent:/usr/sbin/nologin\n")
    (tmp_path / "machine").write_text("root:x:0:0::/root:/bin/sh\n")
    monkeypatch.setattr(
        privileges, "_passwd_files", lambda: (str(tmp_path / "machine"), f"{tmp_path}/0.1.0-abc/passwd")
    )
    assert privileges.find_user() == privileges.User(60986, 60986)
