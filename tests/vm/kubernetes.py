"""Scenarios of a node's Kubernetes driver, in a machine that has systemd and no package of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from blobfuse_dysk.device.attacher.systemd import template
from blobfuse_dysk.installed import TREES
from tests.vm.load import Load
from tests.vm.machine import Machine, VmError
from tests.vm.nodedriver import NodeDriver
from tests.vm.place import MIB, Place, require
from tests.vm.rights import holder_is_confined, worker_only_locks_memory

__all__ = ["driver_replaced", "node_reboots"]

_UID = "60986"  # of the user whom a tree brings along; packaging/container/collect.py


def driver_replaced(place: Place) -> None:
    """A Kubernetes node under systemd: its driver is killed and replaced by another version, I/O and volumes go on"""
    with _worker_node(place) as (worker, driver):
        old, new = place.images.trees
        driver.start(1)
        driver.stage_and_publish()
        holder_is_confined(place, worker, _unit(worker, old))
        worker_only_locks_memory(worker, _UID)
        load = Load(place, worker)
        load.start()
        serving = worker.ask("pgrep -x dysk-worker")
        driver.kill()
        load.more(3)
        driver.start(1)
        load.more(3)
        require(worker.ask("pgrep -x dysk-worker") == serving, "the worker was replaced with the driver")
        _grow(place, worker, driver)
        load.more(3)
        driver.stop()
        load.more(3)
        driver.start(2)
        place.count("drivers of a node that were killed or replaced", 2)
        require(new in worker.ask("cat /proc/$(pgrep -x dysk-worker)/cmdline"), "the worker is not the new version's")
        require(worker.code(f"test -d {TREES}/{old}") == 0, "the tree of a holder that runs was removed")
        load.more(3)
        load.stop()
        load.check(worker)
        _worker_dies(place, worker, driver)
        driver.unpublish_and_unstage()
        require(place.lease() == "available", f"the lease is {place.lease()} after the unstaging")
        driver.stop()
        driver.start(2)
        require(worker.ask(f"ls {TREES}").split() == [new], "the old tree is still there, though nothing runs from it")
        require(template(old) not in worker.ask("ls /run/systemd/system"), "the old tree's unit is still there")
        driver.stage_and_publish()
        load.check(worker)
        _unit(worker, new)
        driver.unpublish_and_unstage()
        worker.shut_down()


def node_reboots(place: Place) -> None:
    """A Kubernetes node reboots, then loses its power, with a volume: nothing stale is left, the data is there"""
    with _worker_node(place) as (worker, driver):
        driver.start(1)
        driver.stage_and_publish()
        for in_order in (True, False):
            load = Load(place, worker)
            load.start()
            load.more(10)
            if in_order:
                load.stop()  # as pods are before
                worker.shut_down("systemctl reboot")
                require(place.lease() == "available", f"the lease is {place.lease()} after the shutdown")
            else:
                worker.cut_power()
                load.look()
            place.count("reboots of a Kubernetes node" if in_order else "power cuts")
            place.boot(worker, payload=place.images.drive)
            _nothing_is_stale(worker)
            driver.start(1)
            place.await_("the volume again", lambda: _works(driver.stage_and_publish), 90)
            load.check(worker)
        driver.unpublish_and_unstage()
        worker.shut_down()


@contextlib.contextmanager
def _worker_node(place: Place) -> Iterator[tuple[Machine, NodeDriver]]:
    """A machine without our package, with the images, and a blank disk."""
    place.new_disk()
    worker = place.machine("worker")
    place.boot(worker, payload=place.images.drive)
    yield worker, NodeDriver(place, worker)
    place.machines.remove(worker)
    worker.close()


def _unit(worker: Machine, tree: str) -> str:
    """The unit that holder and worker run in, which must be the tree's own."""
    groups = worker.ask("cat /proc/$(pgrep -x dysk-holder)/cgroup /proc/$(pgrep -x dysk-worker)/cgroup")
    units = {line.rpartition("/")[2] for line in groups.split()}
    require(len(units) == 1, f"holder and worker are in different control groups: {groups}")
    unit = units.pop()
    require(unit.startswith(template(tree).replace("@.service", "@csi-")), f"they are in the control group {unit}")
    return unit


def _grow(place: Place, worker: Machine, driver: NodeDriver) -> None:
    """ext4 in use, which takes CAP_SYS_RESOURCE."""
    bytes_there = "df --block-size=1 --output=size /data | tail -n 1"
    before = int(worker.ask(bytes_there))
    driver.expand(512 * MIB)
    after = int(worker.ask(bytes_there))
    place.say(f"ext4 grew in use from {before} to {after} bytes")
    require(after - before > 200 * MIB, f"the file system has {after} bytes, it had {before}")


def _worker_dies(place: Place, worker: Machine, driver: NodeDriver) -> None:
    """I/O goes on, on every kernel."""
    condition = driver.condition()
    require(not condition.get("abnormal"), f"the condition is {condition}")
    worker.ask("kill -KILL $(pgrep -x dysk-worker)")
    condition = place.await_("a condition that counts it and is well again", lambda: _recovered(driver), 120)
    place.say(f"after its worker's death: {condition['message']}")
    worker.ask("echo kept >/data/file && sync")


def _recovered(driver: NodeDriver) -> dict[str, Any] | None:
    condition = driver.condition()
    return None if condition.get("abnormal") or "worker restarts: 1" not in condition["message"] else condition


def _nothing_is_stale(worker: Machine) -> None:
    left = worker.ask(
        "ls -d /run/dysk /dev/dysk /run/systemd/system/*dysk* 2>/dev/null; losetup --all --noheadings; "
        "findmnt --noheadings /data; pgrep -l dysk-; true"
    )
    require(not left.strip(), f"after the boot there is {left}")


def _works(call: Callable[[], None]) -> bool:
    """Whether it is not refused, as a kubelet asks again and again."""
    try:
        call()
    except VmError:
        return False
    return True
