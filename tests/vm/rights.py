"""What holder and worker may do in a machine, whichever unit started them."""

from __future__ import annotations

import re

from tests.vm.machine import Machine
from tests.vm.place import Place, require

__all__ = ["holder_is_confined", "worker_only_locks_memory"]

MOST_EXPOSED = 4.5  # of 10, by systemd-analyze security; 9.5 is a unit that says nothing
CAP_IPC_LOCK = 14
HOLDER_CAPABILITIES = sum(1 << each for each in (2, 5, 6, 7, CAP_IPC_LOCK, 21, 24))  # as in the unit


def holder_is_confined(place: Place, node: Machine, unit: str) -> None:
    """systemd's score of the holder's unit, and what the kernel says of the one holder that runs."""
    score = node.ask(f"systemd-analyze security --no-pager '{unit}' | tail -n 1")
    place.say(score.strip())
    level = re.search(r": ([0-9.]+) ", score)
    require(level and float(level[1]) < MOST_EXPOSED, f"the holder's unit is too open: {score}")
    holder = _status(node, "dysk-holder")
    require(holder["NoNewPrivs"] == "1" and holder["Seccomp"] == "2", f"the holder may gain rights: {holder}")
    require(int(holder["CapBnd"], 16) & ~HOLDER_CAPABILITIES == 0, f"the holder's capabilities: {holder['CapBnd']}")


def worker_only_locks_memory(node: Machine, uid: str) -> None:
    """The worker has a user of its own and CAP_IPC_LOCK, and not even that user may look into it."""
    worker = _status(node, "dysk-worker")
    require(uid != "0" and worker["Uid"].split() == [uid] * 4, f"the worker's user ids: {worker['Uid']}")
    for name in ("CapPrm", "CapEff"):
        require(int(worker[name], 16) == 1 << CAP_IPC_LOCK, f"{name} of the worker: {worker[name]}")
    require(worker["NoNewPrivs"] == "1", "the worker may gain rights")
    owner = node.ask("stat -c %u /proc/$(pgrep -x dysk-worker)/environ").strip()
    require(owner == "0", "the worker can be traced by its own user")
    reads = f"setpriv --reuid {uid} --clear-groups cat /proc/$(pgrep -x dysk-worker)/mem"
    require(node.code(reads) != 0, "it is read")


def _status(node: Machine, program: str) -> dict[str, str]:
    """/proc/PID/status of a process."""
    lines = node.ask(f"cat /proc/$(pgrep -x {program})/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
