"""dyskctl as users run it, against both services: every verb, on real devices."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.e2e.kit import Node, node, partition_table, service_node, until

__all__ = ["node", "service_node"]

GIB = 1 << 30


def test_the_life_of_a_disk(service_node: Node) -> None:
    node = service_node
    disk = node.disk()
    assert node.ok("create", disk, "--size", "1GiB") == f"created {disk}, 1GiB\n"
    device = node.ok("attach", disk).strip()
    assert int(Path("/sys/block", Path(device).name, "size").read_text()) * 512 == GIB
    assert os.path.realpath(node.dirs.dev / "data") == device

    shown = json.loads(node.ok("-o", "json", "get", "data"))
    expected = {"name": "data", "device": device, "disk": disk, "size": GIB, "read_only": False, "state": "attached"}
    assert {key: shown[key] for key in expected} == expected
    assert (shown["mountpoints"], shown["vhd"], shown["cache"]) == ([], False, "readwrite")
    assert json.loads(node.ok("list", "-o", "json")) == [shown]
    assert json.loads(node.ok("-o", "json", "get", device)) == json.loads(node.ok("-o", "json", "get", disk)) == shown
    lines = node.ok("list").splitlines()
    assert lines[0].split() == ["NAME", "DEVICE", "SIZE", "MODE", "STATE", "MOUNTPOINT", "DISK"]
    assert lines[1].split() == ["data", device, "1GiB", "rw", "attached", "-", disk]

    data = os.urandom(1 << 20)
    write_direct(device, 4096, data)
    assert read_direct(device, 4096, len(data)) == data
    status = json.loads(node.ok("status", "data", "-o", "json"))
    assert status["state"] == "attached"
    assert status["io"]["bytes"]["write"] >= len(data)
    assert "latency ms" in node.ok("status", "data", "--verbose")

    container = f"{node.service.account}/{node.container}"
    remote = json.loads(node.ok("list", "--remote", container, "--allocated", "-o", "json"))
    assert [(row["disk"], row["size"], row["allocated"]) for row in remote] == [(disk, GIB, len(data))]
    assert remote[0]["lease_state"] == "leased" and remote[0]["holder"]

    assert node.ok("detach", "data") == ""
    assert node.nothing_left()
    remote = json.loads(node.ok("list", "--remote", f"{node.service.account}/{node.container}", "-o", "json"))
    assert (remote[0]["lease_state"], remote[0]["holder"]) == ("available", None)
    assert node.ok("delete", disk, "--yes") == f"deleted {disk}\n"
    assert node.ok("list", "--remote", f"{node.service.account}/{node.container}").count("\n") == 1


def test_detach_by_device_and_by_disk(node: Node) -> None:
    disk = node.create()
    node.ok("detach", node.ok("attach", disk).strip())
    assert node.nothing_left()
    node.ok("attach", disk)
    node.ok("detach", disk)
    assert node.nothing_left()


def test_attach_creates_what_is_missing_and_keeps_what_is_there(node: Node) -> None:
    first = json.loads(node.ok("attach", node.disk("new"), "--create", "--size", "64MiB", "-o", "json"))
    assert first["size"] == 64 << 20
    write_direct(first["device"], 0, b"x" * 4096)
    node.ok("detach", "new")
    again = json.loads(node.ok("attach", node.disk("new"), "--create", "--size", "128MiB", "-o", "json"))
    assert again["size"] == 64 << 20
    assert read_direct(again["device"], 0, 4096) == b"x" * 4096
    node.ok("detach", "new")


def test_options_of_attach_reach_the_device(node: Node) -> None:
    disk = node.create()
    done = node.ok("attach", disk, "--name", "web", "--sector-size", "4096", "--lease", "infinite", "-o", "json")
    shown = json.loads(done)
    queue = Path("/sys/block", Path(shown["device"]).name, "queue")
    assert (shown["name"], shown["sector_size"]) == ("web", 4096)
    assert (queue / "logical_block_size").read_text().strip() == "4096"
    assert os.path.realpath(node.dirs.dev / "web") == shown["device"]
    node.ok("detach", "web")


def test_a_read_only_attachment_refuses_writes_and_takes_no_lease(node: Node) -> None:
    disk = node.create()
    shown = json.loads(node.ok("attach", disk, "--read-only", "-o", "json"))
    assert (shown["read_only"], shown["lease"]) == (True, None)
    assert Path("/sys/block", Path(shown["device"]).name, "ro").read_text().strip() == "1"
    remote = json.loads(node.ok("list", "--remote", f"{node.service.account}/{node.container}", "-o", "json"))
    assert remote[0]["lease_state"] == "available"
    node.ok("detach", shown["name"])


def test_a_vhd_has_the_size_asked_for_and_its_footer_is_out_of_reach(service_node: Node) -> None:
    node = service_node
    disk = node.disk("vm.vhd")
    created = json.loads(node.ok("create", disk, "--size", "20MiB", "--vhd", "-o", "json"))
    assert created == {"disk": disk, "size": 20 << 20, "blob_size": (20 << 20) + 512, "vhd": True}
    shown = json.loads(node.ok("attach", disk, "-o", "json"))
    assert (shown["size"], shown["vhd"]) == (20 << 20, True)
    write_direct(shown["device"], (20 << 20) - 4096, b"\xff" * 4096)
    node.ok("detach", shown["name"])
    assert json.loads(node.ok("attach", disk, "-o", "json"))["vhd"]
    node.ok("detach", shown["name"])
    raw = json.loads(node.ok("attach", disk, "--vhd", "no", "--read-only", "-o", "json"))
    assert (raw["size"], raw["vhd"]) == ((20 << 20) + 512, False)
    node.ok("detach", raw["name"])


def test_partitions_of_a_vhd_made_for_a_virtual_machine(node: Node) -> None:
    disk = node.disk("vm.vhd")
    node.ok("create", disk, "--size", "64MiB", "--vhd")
    device = node.ok("attach", disk).strip()
    write_direct(device, 0, partition_table((2048, 16384), (18432, 32768)))
    node.ok("detach", disk)
    shown = json.loads(node.ok("attach", disk, "--partscan", "-o", "json"))
    assert shown["partitions"] == [f"{shown['device']}p1", f"{shown['device']}p2"]
    until(lambda: Path(shown["partitions"][1]).exists(), "the partitions' nodes")
    node.ok("detach", disk)


def test_delete_refuses_what_is_attached_here(node: Node) -> None:
    disk = node.create()
    node.ok("attach", disk)
    done = node.dyskctl("delete", disk, "--yes", "--break-lease")
    assert (done.code, done.out) == (1, "")
    assert "is attached here" in done.err and "dyskctl detach data" in done.err
    node.ok("detach", disk)


def test_delete_without_a_terminal_needs_yes(node: Node) -> None:
    disk = node.create()
    done = node.dyskctl("delete", disk, stdin="y\n")
    assert done.code == 2
    assert done.err == "dyskctl: delete asks on a terminal, and there is none: add --yes if you mean it\n"
    assert node.ok("list", "--remote", f"{node.service.account}/{node.container}").count("\n") == 2


def test_blobs_of_one_name_have_links_of_their_own_and_share_no_name_in_silence(node: Node) -> None:
    disks = [node.create(f"d{number}/data", "16MiB") for number in range(3)]
    first = json.loads(node.ok("attach", disks[0], "-o", "json"))
    done = node.dyskctl("attach", disks[1])
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"dyskctl: the name data is taken by {disks[0]}: choose another: --name NAME, or --any-")
    assert done.err.count("\n") == 1
    others = [json.loads(node.ok("attach", disk, "--any-name", "-o", "json")) for disk in disks[1:]]
    found = [first, *others]
    assert [each["name"] for each in found] == ["data", "data-2", "data-3"]
    for number, each in enumerate(found):
        assert each["by_blob"].endswith(f"/d{number}%2Fdata")
        assert os.path.realpath(each["by_blob"]) == os.path.realpath(each["link"]) == each["device"]
    for each in found:
        node.ok("detach", each["by_blob"])


def test_doctor_of_machine_account_container_and_disk(service_node: Node) -> None:
    node = service_node
    disk = node.create()
    for target in (node.service.account, f"{node.service.account}/{node.container}", disk):
        done = node.dyskctl("doctor", target, "-o", "json")
        found = {finding["check"]: finding for finding in json.loads(done.out)}
        assert done.code == 0, done
        for check in ("credential", "name service", "connection", "TLS", "clock", "rights"):
            assert found[check]["level"] == "ok", found[check]
    assert "512MiB, not leased" in found["disk"]["found"]
    done = node.dyskctl("doctor", f"{node.service.account}/{node.container}", "--write-test")
    assert "ok    write test: made, leased, wrote and deleted a page blob" in done.out
    assert node.ok("list", "--remote", f"{node.service.account}/{node.container}").count("\n") == 2


def test_doctor_fails_where_something_fails(node: Node) -> None:
    done = node.dyskctl("doctor", f"{node.service.account}/no-such-container/x")
    assert done.code == 1
    assert "fail  disk: " in done.out and "-> " in done.out
    node.write_credentials("# the account\nacount_key = x\n")
    done = node.dyskctl("doctor", node.service.account)
    assert done.code == 1
    assert "line 2" in done.out


def write_direct(device: str, offset: int, data: bytes) -> None:
    """Write and sync, so that it is on the disk when this returns."""
    with Path(device).open("r+b", buffering=0) as file:
        file.seek(offset)
        assert file.write(data) == len(data)
        os.fsync(file.fileno())


def read_direct(device: str, offset: int, length: int) -> bytes:
    """Read past the page cache (dd has O_DIRECT)."""
    done = subprocess.run(
        ["dd", f"if={device}", "iflag=direct,skip_bytes,count_bytes", f"skip={offset}", f"count={length}", "bs=4096"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return done.stdout
