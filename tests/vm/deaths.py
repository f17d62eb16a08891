"""A worker is killed again and again under load, in a machine whose kernel cannot send its requests again."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

from tests.vm.machine import Machine
from tests.vm.place import ACCOUNT, MIB, Place, require

__all__ = ["worker_killed"]

_HAMMER = Path(__file__).with_name("hammer.py")
_DISK = f"{ACCOUNT}/disks/raw"
_LOADS = ((1, "none"), (8, "readwrite"), (32, "none"), (128, "readwrite"))  # depth, cache
_TOLD = "that were taken before are served first"


def worker_killed(place: Place, node: Machine) -> None:
    """SIGKILL of worker, or worker and holder, 300 times, under 1 to 128 reads and writes at once: no wrong byte"""
    place.new_disk()
    place.server.create("disks", "raw", 64 * MIB)
    place.boot(node)
    node.ask("umount /data")
    node.ask(f"cat >/root/hammer.py <<'END'\n{_HAMMER.read_text()}END")
    place.say(f"the kernel is {node.ask('uname -r').strip()}")
    for depth, cache in _LOADS:
        operations, served = _under_load(place, node, depth, cache)
        place.say(f"depth {depth}, cache={cache}: {operations} operations, {served} workers found requests")
        place.count("verified operations under kills of the worker", operations)
    node.shut_down()
    place.server.remove("disks", "raw")


def _under_load(place: Place, node: Machine, depth: int, cache: str) -> tuple[int, int]:
    """How many operations there were, and how many workers found requests that one before had taken."""
    chance = random.Random(depth)
    node.ask(f"dyskctl attach {_DISK} --cache {cache}")
    before = _served(node)
    node.ask(
        "rm -f /root/said && systemd-run --quiet --unit=hammer --property=StandardOutput=append:/root/said "
        f"--property=StandardError=append:/root/said python3 /root/hammer.py /dev/dysk/raw {depth}"
    )
    for number in range(place.kills // len(_LOADS)):
        time.sleep(0.3 + 2 * chance.random())
        _kill(place, node, with_holder=number % 8 == 7)
        if number % 10 == 9:
            place.say(f"depth {depth}: {number + 1} kills, {_served(node) - before} workers found requests")
        require(node.code("systemctl is-active --quiet hammer") == 0, f"the load ended: {node.ask('cat /root/said')}")
    node.ask("systemctl stop hammer", timeout_s=300)
    said = node.ask("cat /root/said; systemctl reset-failed hammer 2>/dev/null; true").strip()
    require(said.startswith("DONE "), f"the load found: {said}")
    served = _served(node) - before
    require(served, "no worker found a request that one before had taken")
    node.ask("dyskctl detach raw", timeout_s=180)
    return int(said.split()[1]), served


def _kill(place: Place, node: Machine, *, with_holder: bool) -> None:
    """And wait until the next one serves."""
    dead = _state(node)["worker"]["pid"]
    node.ask(f"kill -KILL {dead} $(pgrep -x dysk-holder)" if with_holder else f"kill -KILL {dead}")

    def serves() -> bool:
        found = _state(node)
        return bool(found["worker"]) and found["worker"]["pid"] != dead and found["state"] == "attached"

    place.await_("a worker that serves", serves, 120)
    place.count("kills of holder and worker" if with_holder else "kills of a worker")


def _state(node: Machine) -> dict[str, Any]:
    """As `dyskctl get`, but that takes seconds in such a machine."""
    found: dict[str, Any] = json.loads(node.ask("cat /run/dysk/raw/state.json"))
    return found


def _served(node: Machine) -> int:
    return int(node.ask(f"journalctl -b --no-pager | grep -c '{_TOLD}'; true"))
