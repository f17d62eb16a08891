"""The original's verbs on real devices, and where its account key goes: nowhere but into memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.e2e.kit import Node, node, service_node

__all__ = ["node", "service_node"]


def endpoint_only(node: Node) -> None:
    """Leave the node the service's place, but no credential."""
    node.write_credentials(f"endpoint = {node.service.endpoint}\n")


def account(node: Node) -> list[str]:
    return ["-a", node.service.account, "-k", "-", "-c", node.container]


def test_from_auto_create_to_delete(service_node: Node) -> None:
    node = service_node
    endpoint_only(node)
    key = f"{node.service.key}\n"
    done = node.dyskctl("mount", "auto-create", *account(node), "-d", "dysk01", "-n", "1", "-o", "json", stdin=key)
    assert done.code == 0, done
    dysk = json.loads(done.out)
    assert (dysk["Path"], dysk["SizeGB"], dysk["Vhd"], dysk["Sas"]) == (f"/{node.container}/dysk01.vhd", 1, True, "")
    device = node.dirs.dev / "dysk01"
    assert (os.major(device.stat().st_rdev), os.minor(device.stat().st_rdev)) == (dysk["Major"], dysk["Minor"])
    original = node.dirs.dev.parent / "dysk01"  # /dev/dysk01: where scripts written for it look
    assert os.path.realpath(original) == os.path.realpath(device) != str(original)
    size = int(Path("/sys/block", Path(os.path.realpath(device)).name, "size").read_text())
    assert size * 512 == (1 << 30) - 512  # the footer is inside the size, and out of reach

    done = node.dyskctl("unmount", "-d", "dysk01")
    assert (done.code, done.err) == (0, "Status:\nDevice:dysk01 unmounted\n")
    assert node.nothing_left() and not os.path.lexists(original)

    file = node.dirs.root / "dysk.json"
    file.write_text(json.dumps({**dysk, "Sas": node.service.key}))
    done = node.dyskctl("mount-file", "-f", str(file), "-o", "json")
    assert done.code == 0, done
    again = json.loads(done.out)
    assert (again["LeaseId"], again["Vhd"], again["Sas"]) == (dysk["LeaseId"], True, "")
    done = node.dyskctl("unmount", "-d", "dysk01")
    assert done.code == 0

    done = node.dyskctl("mount", *account(node), "-p", "dysk01.vhd", "-d", "dysk02", "-r", stdin=key)
    assert done.code == 0 and done.out.splitlines()[1].split()[:3] == ["R", "dysk02", "Yes"]
    assert node.dyskctl("unmount", "-d", "dysk02").code == 0
    done = node.dyskctl("delete", *account(node), "-p", "dysk01.vhd", stdin=key)
    assert done.code == 0, done


def test_the_key_is_nowhere_to_be_read(node: Node) -> None:
    endpoint_only(node)
    key = node.service.key
    done = node.dyskctl("mount", "auto-create", *account(node), "-d", "dysk01", "-n", "1", stdin=f"{key}\n")
    assert done.code == 0, done
    processes = [
        pid for pid in numbers(Path("/proc")) if str(node.dirs.run) in read(Path("/proc", str(pid), "environ"))
    ]
    assert len(processes) == 4  # holder, worker and monitor, and the template that forked them
    for pid in processes:
        for file in ("cmdline", "environ", "comm"):
            assert key not in read(Path("/proc", str(pid), file))
    for path in [*node.dirs.root.rglob("*"), *node.dirs.dev.rglob("*")]:
        if path.is_file() and path.name != "disk":
            assert key not in read(path), path
    for words in (["list"], ["get", "dysk01"], ["status", "dysk01"], ["get", "-d", "dysk01"]):
        assert key not in node.dyskctl("-o", "json", *words).out
    assert node.dyskctl("unmount", "-d", "dysk01").code == 0


def numbers(directory: Path) -> list[int]:
    return [int(entry.name) for entry in directory.iterdir() if entry.name.isdigit()]


def read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # the process has ended
        return ""
