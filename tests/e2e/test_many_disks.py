"""Thirty-two disks at once: each device is the disk that its name says, whatever the order in which they came."""

from __future__ import annotations

import json
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.checker import Checker
from tests.e2e.kit import BIN, Node, faulty_node
from tests.e2e.loads import MIB, blob_digest, server_of, unsafe_writes

__all__ = ["faulty_node"]

COUNT = 32
SIZE = 2 * MIB


def pattern(number: int) -> bytes:
    """What belongs on one disk, and on no other."""
    return random.Random(number).randbytes(SIZE)


def run_all(node: Node, commands: list[list[str]]) -> list[str]:
    """dyskctl so many times at once; all must succeed. Their outputs."""
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda words: node.run(str(BIN / "dyskctl"), *words), commands))
    assert [(each.code, each.err) for each in done] == [(0, "")] * len(commands)
    return [each.out.strip() for each in done]


def write(device: str, data: bytes) -> None:
    fd = os.open(device, os.O_WRONLY)
    try:
        assert os.pwrite(fd, data, 0) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


@pytest.mark.timeout(300)  # for a machine with other work
def test_each_device_is_its_disk(faulty_node: Node) -> None:
    node = faulty_node
    server = server_of(node)
    numbers = list(range(COUNT))
    for number in numbers:
        server.create(node.container, f"disk{number}", SIZE)
    random.Random(1).shuffle(numbers)
    devices = dict(zip(numbers, run_all(node, [["attach", node.disk(f"disk{n}")] for n in numbers]), strict=True))
    assert len(set(devices.values())) == COUNT
    assert max(int(device.removeprefix("/dev/loop")) for device in devices.values()) >= 8
    threads = [threading.Thread(target=write, args=(devices[n], pattern(n))) for n in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    shown = {entry["name"]: entry for entry in json.loads(node.ok("list", "-o", "json"))}
    assert sorted(shown) == sorted(f"disk{n}" for n in numbers)
    for number in numbers:
        entry = shown[f"disk{number}"]
        assert (entry["device"], entry["disk"], entry["state"]) == (
            devices[number], node.disk(f"disk{number}"), "attached",
        )  # fmt: skip
        assert os.path.realpath(node.dirs.dev / f"disk{number}") == devices[number]
        assert Path(devices[number]).read_bytes() == pattern(number)
    assert len({entry["lease"]["id"] for entry in shown.values()}) == COUNT

    checkers = [Checker(devices[number], tasks=2, seed=number) for number in numbers]
    for number, checker in zip(numbers, checkers, strict=True):
        checker.adopt(pattern(number)[: checker.size])
        checker.start(15)
    for checker in checkers:
        checker.join()
        checker.verify()

    some, rest = numbers[:6], numbers[6:]
    run_all(node, [["detach", f"disk{n}"] for n in some])
    for number in rest:  # the others stay what they are
        assert os.path.realpath(node.dirs.dev / f"disk{number}") == devices[number]
    again = dict(
        zip(some, run_all(node, [["attach", node.disk(f"disk{n}")] for n in reversed(some)])[::-1], strict=True)
    )
    devices.update(again)
    for number, checker in zip(numbers, checkers, strict=True):
        checker.verify(devices[number])
        assert Path(devices[number]).read_bytes()[checker.size :] == pattern(number)[checker.size :]
    run_all(node, [["detach", devices[n]] for n in numbers])
    assert node.nothing_left()
    for number, checker in zip(numbers, checkers, strict=True):
        assert blob_digest(node, f"disk{number}", checker.size) == checker.digest()
        assert server.blob(node.container, f"disk{number}")["lease"]["state"] == "available"
    assert unsafe_writes(server) == {}
