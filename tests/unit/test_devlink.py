"""Links to devices: which disk a link names, and that it never comes to name another one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfuse_dysk.device.kernel import devlink, loop
from blobfuse_dysk.device.kernel.devlink import Links, stable_path
from blobfuse_dysk.errors import AttachedError, DeviceError


class Machine:
    """Loop devices: what is behind them, and their partitions."""

    def __init__(self, dev: Path) -> None:
        self.dev = dev
        self.files: dict[str, str] = {}
        self.partitions: dict[str, list[str]] = {}

    def use(self, device: str, name: str) -> None:
        self.files[device] = f"/run/dysk/{name}/fs/disk"

    def links(self, name: str, disk: str | None = None) -> Links:
        return Links(str(self.dev / "dysk"), name, f"acct/disks/{name}" if disk is None else disk)

    def attach(self, device: str, name: str, disk: str | None = None, *, original: bool = False) -> list[str]:
        self.use(device, name)
        return self.links(name, disk).make(device, original=original)

    def shown(self) -> dict[str, str]:
        """{link below /dev: name of the device that it leads to}"""
        paths = [path for path in self.dev.rglob("*") if path.is_symlink()]
        return {str(path.relative_to(self.dev)): path.readlink().name for path in sorted(paths)}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path / "dev")
    machine.dev.mkdir()
    # Links lead to /dev itself, and are relative, so they are the same from anywhere.
    monkeypatch.setattr(loop, "backing_file", machine.files.get)
    monkeypatch.setattr(loop, "partitions", lambda device: machine.partitions.get(device, []))
    return machine


def test_a_device_has_a_link_by_name_and_one_by_its_disk(machine: Machine) -> None:
    assert machine.attach("/dev/loop7", "db", "acct/disks/dir/data") == []
    assert machine.shown() == {"dysk/db": "loop7", "dysk/by-blob/acct/disks/dir%2Fdata": "loop7"}
    machine.files.clear()
    machine.links("db", "acct/disks/dir/data").remove("/dev/loop7")
    assert list((machine.dev / "dysk").iterdir()) == [], "directories go as they become empty"


def test_a_link_by_disk_does_not_depend_on_the_order_of_attaching(machine: Machine) -> None:
    for order in itertools.permutations(["a/one/data", "a/two/data", "b/one/data"]):
        for number, disk in enumerate(order):
            machine.attach(f"/dev/loop{number}", f"name{number}", disk)
        for number, disk in enumerate(order):
            assert (machine.dev / "dysk" / "by-blob" / disk).readlink().name == f"loop{number}"
        machine.files.clear()
        for number, disk in enumerate(order):
            machine.links(f"name{number}", disk).remove(f"/dev/loop{number}")
        assert machine.shown() == {}


NAMES = st.text(min_size=1, max_size=12, alphabet="ab/.-%~@+ é?part1=:snhot") | st.text(min_size=1, max_size=400)


@given(NAMES, NAMES)
def test_no_two_disks_share_a_link_nor_one_with_anothers_partition(one: str, other: str) -> None:
    first, second = stable_path("/d", f"a/c/{one}"), stable_path("/d", f"a/c/{other}")
    assert (first == second) is (one == other)
    assert not (first.startswith(f"{second}-part") and first[len(second) + 5 :].isdigit())
    assert first.count("/") == 5 and len(Path(first).name) < 240
    assert Path(first).name not in (".", "..")


@pytest.mark.parametrize(
    ("disk", "leaf"),
    [
        ("data.vhd", "data.vhd"),
        ("data@", "data%40"),
        ("data%40", "data%2540"),
        ("a b/é", "a%20b%2F%C3%A9"),
        ("data-part1", "data%2Dpart1"),
        ("$x", "%24x"),
        ("data?snapshot=2026-01-31T12:00:00.0000000Z", "data@2026-01-31T12:00:00.0000000Z"),
    ],
)
def test_what_a_link_by_disk_looks_like(disk: str, leaf: str) -> None:
    assert stable_path("/dev/dysk", f"acct/disks/{disk}") == f"/dev/dysk/by-blob/acct/disks/{leaf}"


@pytest.mark.parametrize("disk", ["", "a", "a/b", "../../../etc/x", "a/../x", "a/b/..", "a/b/../../../x"])
def test_no_state_however_wrong_makes_a_link_elsewhere(disk: str) -> None:
    """state.json is root's, but who reads it does not rely on what stands there."""
    parts = stable_path("/dev/dysk", disk).split("/")
    assert parts[:4] == ["", "dev", "dysk", "by-blob"] and len(parts) <= 7
    assert not {".", ".."} & {*parts}


def test_names_that_look_like_one_that_is_being_made_are_other_names(machine: Machine) -> None:
    """`x` was made as `x.new`, which took the link of an attachment of that name away."""
    machine.attach("/dev/loop1", "x.new")
    machine.attach("/dev/loop2", "x")
    assert machine.shown() == {
        "dysk/x.new": "loop1",
        "dysk/x": "loop2",
        "dysk/by-blob/acct/disks/x.new": "loop1",
        "dysk/by-blob/acct/disks/x": "loop2",
    }


def test_a_name_that_leads_to_a_disk_that_is_in_use_is_refused(machine: Machine) -> None:
    """As that of an attachment in a container which shares /dev, but not /run."""
    machine.attach("/dev/loop1", "data")
    with pytest.raises(AttachedError, match="dysk/data leads to /dev/loop1, which is in use"):
        machine.attach("/dev/loop2", "data", "acct/others/data")
    machine.links("data", "acct/others/data").remove("/dev/loop2")
    assert machine.shown()["dysk/data"] == "loop1"


def test_a_second_reader_of_a_disk_has_a_link_of_its_own_name_and_inherits_the_other(machine: Machine) -> None:
    machine.attach("/dev/loop1", "one", "a/disks/data")
    warnings = machine.attach("/dev/loop2", "two", "a/disks/data")
    assert len(warnings) == 1 and "stays a link to /dev/loop1" in warnings[0]
    assert machine.shown() == {"dysk/one": "loop1", "dysk/two": "loop2", "dysk/by-blob/a/disks/data": "loop1"}
    del machine.files["/dev/loop1"]
    machine.links("one", "a/disks/data").remove("/dev/loop1", heir="/dev/loop2")
    assert machine.shown() == {"dysk/two": "loop2", "dysk/by-blob/a/disks/data": "loop2"}


def test_links_that_a_dead_attachment_left_do_not_lead_to_the_next_disk_of_the_device(machine: Machine) -> None:
    machine.partitions["/dev/loop1"] = ["/dev/loop1p1"]
    machine.attach("/dev/loop1", "old")
    machine.attach("/dev/loop11", "other")
    machine.partitions.clear()
    machine.attach("/dev/loop1", "new")
    assert machine.shown() == {
        "dysk/new": "loop1",
        "dysk/other": "loop11",
        "dysk/by-blob/acct/disks/new": "loop1",
        "dysk/by-blob/acct/disks/other": "loop11",
    }


def test_links_follow_the_partitions_that_the_kernel_knows(machine: Machine) -> None:
    machine.partitions["/dev/loop1"] = ["/dev/loop1p1", "/dev/loop1p12"]
    machine.attach("/dev/loop1", "vm")
    assert machine.shown() == {
        "dysk/vm": "loop1",
        "dysk/vm-part1": "loop1p1",
        "dysk/vm-part12": "loop1p12",
        "dysk/by-blob/acct/disks/vm": "loop1",
        "dysk/by-blob/acct/disks/vm-part1": "loop1p1",
        "dysk/by-blob/acct/disks/vm-part12": "loop1p12",
    }
    machine.partitions["/dev/loop1"] = ["/dev/loop1p2"]
    machine.links("vm").follow("/dev/loop1")
    assert [path for path in machine.shown() if "-part" in path] == [
        "dysk/by-blob/acct/disks/vm-part2",
        "dysk/vm-part2",
    ]
    machine.links("vm").remove("/dev/loop1")
    assert machine.shown() == {}


def test_partitions_of_a_device_that_is_another_disks_by_now_are_not_linked(machine: Machine) -> None:
    machine.attach("/dev/loop1", "vm")
    machine.attach("/dev/loop1", "next")
    machine.partitions["/dev/loop1"] = ["/dev/loop1p1"]
    machine.links("vm").follow("/dev/loop1")
    assert not any("vm" in path for path in machine.shown())


def test_the_original_link_leads_through_the_one_by_name_and_goes_with_it(machine: Machine) -> None:
    machine.attach("/dev/loop1", "dysk01", original=True)
    assert str((machine.dev / "dysk01").readlink()) == "dysk/dysk01"
    machine.attach("/dev/loop1", "dysk01", original=True)
    machine.links("dysk01").remove("/dev/loop1")
    assert machine.shown() == {}


def test_the_original_link_takes_nobodys_place(machine: Machine) -> None:
    (machine.dev / "sda").touch()
    (machine.dev / "cdrom").symlink_to("sr0")
    for name in ("sda", "cdrom"):
        with pytest.raises(AttachedError, match=f"/{name} exists and is not a link of ours"):
            machine.attach("/dev/loop1", name, original=True)
        machine.links(name).remove(None)
    assert (machine.dev / "sda").exists() and (machine.dev / "cdrom").is_symlink()


def test_what_is_no_link_of_ours_is_neither_replaced_nor_removed(machine: Machine) -> None:
    (machine.dev / "dysk").mkdir()
    (machine.dev / "dysk" / "file").write_text("")
    with pytest.raises(AttachedError, match="not a link of ours"):
        machine.attach("/dev/loop1", "file")
    machine.links("file").remove(None)
    assert (machine.dev / "dysk" / "file").exists()
    with pytest.raises(DeviceError, match="cannot make"):
        Links(str(machine.dev / "dysk" / "file"), "db", None).make("/dev/loop1")


def test_only_links_that_lead_to_no_disk_are_left_over(machine: Machine) -> None:
    machine.attach("/dev/loop1", "known")
    machine.attach("/dev/loop2", "elsewhere")  # of another /run
    machine.attach("/dev/loop3", "gone")
    del machine.files["/dev/loop3"]
    directory = str(machine.dev / "dysk")
    found = [path for path, _ in devlink.of_others(directory, ["known"], ["acct/disks/known"])]
    assert found == [f"{directory}/by-blob/acct/disks/gone", f"{directory}/gone"]


def test_disks_with_long_names_have_links_of_their_own() -> None:
    blobs = ["x" * 300, "x" * 301, "é" * 200, "é" * 201, "x" * 300 + "?snapshot=2026-01-31T12:00:00.0000000Z"]
    paths = {stable_path("/dev/dysk", f"a/disks/{blob}") for blob in blobs}
    assert len(paths) == len(blobs)
    assert max(len(Path(path).name) for path in paths) < 240
