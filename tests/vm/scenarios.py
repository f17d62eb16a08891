"""What is tried in virtual machines. A scenario is a function over a Place, most of them over the machine `node`, too,
which has the package installed and the disk in /etc/fstab; it leaves machines off. The first line of its docstring is
its title.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.vm.deaths import worker_killed
from tests.vm.kubernetes import driver_replaced, node_reboots
from tests.vm.load import Load
from tests.vm.machine import Machine
from tests.vm.place import ACCOUNT, DISK, KEY, MIB, Place, require
from tests.vm.rights import holder_is_confined, worker_only_locks_memory
from tests.wire.sas import account_sas

__all__ = ["SCENARIOS"]

KILLS = 10
HOLDER = "dysk-holder@data.service"
Scenario = Callable[[Place], None]


def boots_and_reboots(place: Place, node: Machine) -> None:
    """The fstab line alone: boot, write, reboot, data there, lease released, journal clean"""
    place.new_disk()
    place.boot(node)
    require(place.is_mounted(node), "/data is not mounted after the boot")
    groups = node.ask("cat /proc/$(pgrep -x dysk-holder)/cgroup /proc/$(pgrep -x dysk-worker)/cgroup")
    require(groups.count(HOLDER) == 2, f"holder and worker are in the wrong control group: {groups}")
    order = node.ask("systemctl show -p After data.mount")
    require("network-online.target" in order, f"data.mount is not ordered after the network: {order}")
    node.ask("echo kept >/data/file && dd if=/dev/urandom of=/data/random bs=1M count=8 2>/dev/null && sync")
    digest = node.ask("sha256sum </data/random")
    for _ in range(2):
        off_s = node.shut_down("systemctl reboot")
        place.say(f"off after {off_s:.0f} s")
        require(place.lease() == "available", f"the lease is {place.lease()} after the shutdown")
        place.boot(node)
        place.count("reboots")
        require(node.ask("cat /data/file") == "kept\n", "the file is not there")
        require(node.ask("sha256sum </data/random") == digest, "the data is not what was written")
        place.journal_is_clean(node, "-1")
        place.journal_is_clean(node)
    node.shut_down()
    place.count("shutdowns")


def little_rights(place: Place, node: Machine) -> None:
    """What holder and worker may do: systemd's score, the worker's user, and who reads credentials for it"""
    place.new_disk()
    place.server.create("disks", "raw", 64 * MIB)
    place.boot(node)
    holder_is_confined(place, node, HOLDER)
    node.ask("mountpoint -q /run/dysk/data/fs")  # everybody sees it
    uid = node.ask("id -u _dysk").strip()
    worker_only_locks_memory(node, uid)
    conf, token = f"/etc/dysk/{ACCOUNT}.conf", "/etc/dysk/token.conf"
    node.ask("printf '#!/bin/sh\\nid -u >/root/ran\\nexit 1\\n' >/root/login && chmod 700 /root/login")
    lines = f"grep -v key {conf} | sed s/http:/https:/; echo auth = entra; echo token_command = /root/login"
    node.ask(f"umask 077; ({lines}) >{token}")
    require(node.code(f"dyskctl attach {ACCOUNT}/disks/raw --credentials {token}") != 0, "a failed login was taken")
    require(node.ask("cat /root/ran") == "0\n", "the program that fetches a token is not root's")
    sas = account_sas(ACCOUNT, KEY, "rw", "o", end_s=30 * 86_400)  # the scenarios after this one use it, too
    node.ask(f"rm {token}; umask 077; (grep -v key {conf}; echo 'sas = {sas}') >/etc/dysk/new")
    node.ask(f"mv /etc/dysk/new {conf}")  # as who rotates secrets
    place.await_("the rotation", lambda: "was read again" in node.ask("journalctl -b --no-pager"), 60)
    node.ask("echo still >/data/file && sync")
    before = node.ask("pgrep -x dysk-worker")
    node.ask("dyskctl upgrade data")
    require(node.ask("pgrep -x dysk-worker") != before, "the worker was not replaced")
    worker_only_locks_memory(node, uid)
    node.ask("echo more >/data/file && sync && umount /data")
    node.ask(f"dyskctl attach {DISK} && dyskctl detach data")
    node.ask(f"dyskctl attach {DISK} && kill -TERM $(pgrep -x dysk-holder)")  # which lets go of the loop device
    place.await_("the end", lambda: not node.ask("ls -A -I .lock /run/dysk").strip(), 30)
    processes = "pgrep -x dysk-worker; pgrep -x dysk-monitor; true"
    place.await_("the end of all processes", lambda: not node.ask(processes).strip(), 60)
    node.shut_down()
    place.server.remove("disks", "raw")


def forced_reboots(place: Place, node: Machine) -> None:
    """reboot -f: services are killed, not stopped; what was written is there, and the old lease is waited for"""
    place.new_disk()
    place.boot(node)
    for number in range(2):
        node.ask(f"echo {number} >/data/forced")
        off_s = node.shut_down("systemctl reboot -f", timeout_s=180)
        place.say(f"off after {off_s:.0f} s, the lease is {place.lease()}")
        place.boot(node)
        place.count("forced reboots")
        require(node.ask("cat /data/forced") == f"{number}\n", "what was written before reboot -f is not there")
    node.shut_down()


def holder_killed(place: Place, node: Machine) -> None:
    """SIGKILL of the holder under load: another takes its place, the worker and the I/O go on"""
    place.new_disk()
    place.boot(node)
    load = Load(place, node)
    load.start()
    worker = node.ask("pgrep -x dysk-worker")
    for _ in range(KILLS):
        before = node.ask("pgrep -x dysk-holder").strip()
        node.ask(f"kill -KILL {before}")
        now = "pgrep -x dysk-holder; true"
        place.await_("a new holder", lambda: node.ask(now).strip() not in ("", before), 60)  # noqa: B023
        load.more(3)
        place.count("holder kills")
    require(node.ask("pgrep -x dysk-worker") == worker, "the worker was replaced")
    require('"state": "attached"' in node.ask("dyskctl -o json get data"), "the disk is not attached")
    load.stop()
    load.check(node)
    node.ask("umount /data")
    require(place.lease() == "available", "the lease is not released by umount after the kills")
    require(not node.ask("ls -A -I .lock /run/dysk").strip(), "something is left in /run/dysk")
    node.ask("mount /data")
    node.ask("kill -KILL $(pgrep -x dysk-holder) && sleep 1 && dyskctl detach --force --lose-data data")
    node.ask("umount -l /data; sleep 1")
    require(
        not node.ask("ls -A -I .lock /run/dysk; pgrep -x dysk-worker; true").strip(), "detach --force left something"
    )
    node.shut_down()


def power_cuts(place: Place, node: Machine) -> None:
    """Power cuts under load: another machine takes the disk over, what was acknowledged is there, stragglers refused"""
    place.new_disk()
    other = place.machine("other", place.base)
    place.boot(node)
    place.boot(other, state="degraded")  # the disk is leased by the first, as its fstab finds out
    load = Load(place, node)
    here, there = node, other
    for _ in range(place.cuts):
        load.start()
        load.more(20)
        late = place.server.fault("late", operation="write", times=4)
        place.await_("a write that is late", lambda: _hits(place, late), 60)  # noqa: B023
        there.await_boot()
        here.cut_power()
        place.count("power cuts")
        there.ask(f"mount -t dysk {DISK} /data -o fstype=ext4,break-lease", timeout_s=120)
        load.check(there)
        refused = place.server.stats()["condition_failures"]
        released = place.server.release()
        place.server.clear_faults()
        place.await_("the late writes", lambda: place.server.stats()["condition_failures"] >= refused + released, 30)  # noqa: B023
        place.count("stragglers refused", released)
        load.check(there)
        last = load.last
        place.say(f"{here.name} lost its power, {there.name} has all {last + 1} acknowledged writes")
        here.start()
        here, there = there, here
        load = Load(place, here)
        load.last = last
    for machine in (here, there):
        machine.shut_down()
    place.machines.remove(other)
    other.close()


def comes_back(place: Place, node: Machine) -> None:
    """A power cut, and the same machine comes back: it waits for the lease of its last life, and mounts"""
    place.new_disk()
    place.boot(node)
    load = Load(place, node)
    load.start()
    load.more(20)
    node.cut_power()
    load.look()
    place.count("power cuts")
    require(place.lease() == "leased", f"the lease is {place.lease()} right after the power cut")
    place.boot(node)
    require(place.is_mounted(node), "/data is not mounted")
    load.check(node)
    node.shut_down()


def frozen_machine(place: Place, node: Machine) -> None:
    """A machine that stops and comes back after a take-over: fenced, nothing of it lands, its shutdown ends"""
    place.new_disk()
    other = place.machine("other", place.base)
    place.boot(node)
    load = Load(place, node)
    load.start()
    load.more(10)
    node.freeze()
    other.start()
    other.await_boot()
    # Its fstab has mounted the disk if the lease had ended by then.
    other.ask(f"mountpoint -q /data || mount -t dysk {DISK} /data -o fstype=ext4,break-lease", timeout_s=120)
    load.check(other)
    load.may_fail = True
    node.thaw()
    place.await_("the fence", lambda: "fenced" in node.ask("dyskctl -o json get data"), 120)
    load.check(other)
    off_s = node.shut_down(timeout_s=240)
    place.say(f"the fenced machine was off after {off_s:.0f} s")
    place.count("fenced machines")
    require(place.lease() == "leased", "the fenced machine released the other's lease")
    other.ask("umount /data")
    other.shut_down()
    place.machines.remove(other)
    other.close()


def shutdown_without_service(place: Place, node: Machine) -> None:
    """The service is gone at shutdown: the machine is off in bounded time"""
    place.new_disk()
    place.boot(node)
    node.ask("dd if=/dev/urandom of=/data/lost bs=64k count=4 2>/dev/null; true")
    place.server.outage("silent")
    try:
        off_s = node.shut_down(timeout_s=240)
    finally:
        place.server.outage(None)
    place.say(f"off after {off_s:.0f} s")
    place.count("shutdowns without service")
    place.boot(node)
    require(place.is_mounted(node), "/data is not mounted after that")
    node.shut_down()


def boot_without_service(place: Place, node: Machine) -> None:
    """The service is gone at boot: nofail lets the boot go on, and the disk can be mounted later"""
    place.new_disk()
    place.server.outage("silent")
    try:
        node.start()
        limit = "timeout 150 sh -c 'until systemctl is-active -q multi-user.target; do sleep 0.5; done'"
        node.ask(limit, timeout_s=160)
        require(not place.is_mounted(node), "/data is mounted without a service")
        place.say(f"multi-user.target after {node.ask('cut -d. -f1 /proc/uptime').strip()} s")
        place.await_("the end of the attempt", lambda: node.code("systemctl is-failed -q data.mount") == 0, 150)
    finally:
        place.server.outage(None)
    place.count("boots without service")
    node.ask("systemctl reset-failed && systemctl start data.mount", timeout_s=150)
    require(place.is_mounted(node), "/data cannot be mounted once the service is back")
    node.shut_down()


def disks_without_mount(place: Place, node: Machine) -> None:
    """dysk@NAME.service: attached at boot, detached at shutdown; so is what was attached by hand"""
    place.new_disk()
    place.server.create("disks", "raw", 64 << 20)
    place.boot(node)
    node.ask("umount /data && sed -i '/dysk/d' /etc/fstab && systemctl daemon-reload")
    node.ask(f"printf 'disk = {DISK}\\nio_timeout = 2m\\n' >/etc/dysk/disks.d/data.conf")
    node.ask("systemctl enable --now dysk@data.service && test -b /dev/dysk/data")
    node.ask("systemctl restart dysk@data.service && systemctl stop dysk@data.service && test ! -e /dev/dysk/data")
    node.shut_down()
    place.boot(node)
    node.ask("test -b /dev/dysk/data && echo raw | dd of=/dev/dysk/data conv=fsync bs=512 2>/dev/null")
    node.ask(f"dyskctl attach {DISK.replace('/data', '/raw')}")
    node.shut_down()
    place.count("reboots")
    require(place.lease() == "available", f"the lease of dysk@data is {place.lease()}")
    raw = place.server.blob("disks", "raw")["lease"]["state"]
    require(raw == "available", f"the lease of the disk attached by hand is {raw}")
    place.boot(node)
    require(node.ask("dd if=/dev/dysk/data bs=3 count=1 2>/dev/null") == "raw", "what was written is not there")
    place.journal_is_clean(node, "-1")
    line = f"{DISK} /data dysk _netdev,nofail,fstype=ext4 0 0"
    node.ask(f"systemctl disable --now dysk@data; rm /etc/dysk/disks.d/data.conf; echo '{line}' >>/etc/fstab")
    node.shut_down()
    place.server.remove("disks", "raw")


def package_upgrade(place: Place, node: Machine) -> None:
    """The package is upgraded under load; removing it is refused while a disk is attached; purging leaves nothing"""
    place.new_disk()
    copy = place.machine("copy", place.base)
    with tempfile.TemporaryDirectory(dir=place.work) as scratch:
        newer = _newer(place.package, Path(scratch))
        copy.start(place.payload(newer))
    copy.await_boot()
    require(place.is_mounted(copy), "/data is not mounted")
    load = Load(place, copy)
    load.start()
    worker = copy.ask("pgrep -x dysk-worker")
    copy.ask(
        "rm -rf /root/newer && mkdir /root/newer && tar -C /root/newer -xf /dev/vdb && dpkg -i /root/newer/*.deb",
        timeout_s=600,
    )
    place.count("package upgrades")
    require(copy.ask("pgrep -x dysk-worker") != worker, "the worker is still the old package's")
    load.more(10)
    load.stop()
    load.check(copy)
    require(copy.code("dpkg -r blobfuse-dysk") != 0, "the package could be removed with a disk attached")
    load.check(copy)
    copy.ask(
        "umount /data && dpkg -r blobfuse-dysk && test ! -e /usr/lib/blobfuse-dysk && test -e /etc/dysk/vmtest.conf",
        timeout_s=180,
    )
    copy.ask("rm /etc/dysk/vmtest.conf && dpkg -P blobfuse-dysk", timeout_s=180)
    left = copy.ask(
        "ls -d /etc/dysk /var/log/dysk /usr/lib/blobfuse-dysk /sbin/*.dysk /lib/systemd/system/*dysk* 2>/dev/null; true"
    )
    require(not left.strip(), f"purging left {left}")
    copy.shut_down()
    place.machines.remove(copy)
    copy.close()


def grows_in_use(place: Place, node: Machine) -> None:
    """ext4 grows under load by dyskctl resize, and at the next mount where the disk was not attached"""
    place.new_disk()
    place.boot(node)
    load = Load(place, node)
    load.start()
    bytes_there = "df --block-size=1 --output=size /data | tail -n 1"
    for number, size in enumerate((512, 768), start=1):
        before = int(node.ask(bytes_there))
        if number == 1:
            node.ask(f"dyskctl resize data {size}MiB")
            load.more(3)
            load.stop()
        else:
            node.ask(f"umount /data && dyskctl resize {DISK} {size}MiB")
            node.ask(f"mount -t dysk {DISK} /data -o fstype=ext4,grow")
        after = int(node.ask(bytes_there))
        place.say(f"ext4 grew from {before} to {after} bytes")
        require(after - before > 200 * MIB, f"the file system has {after} bytes, it had {before}")
        load.check(node)
    node.ask(f"umount /data && dyskctl attach {DISK}")
    node.ask("e2fsck -fn /dev/dysk/data && dyskctl detach data")
    node.shut_down()


def _hits(place: Place, fault: int) -> bool:
    return any(found["id"] == fault and found["hits"] for found in place.server.faults())


def _newer(package: Path, scratch: Path) -> Path:
    """The same package under a later version."""
    tree = scratch / "tree"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    lines = [f"{line}+1" if line.startswith("Version:") else line for line in control.read_text().splitlines()]
    control.write_text("\n".join(lines) + "\n")
    made = scratch / "newer.deb"
    subprocess.run(["dpkg-deb", "-Zxz", "-z1", "-b", tree, made], check=True, stdout=subprocess.DEVNULL)
    return made


def _with_package(scenario: Callable[[Place, Machine], None]) -> Scenario:
    @functools.wraps(scenario)
    def run(place: Place) -> None:
        scenario(place, place.node)

    return run


SCENARIOS: dict[str, Scenario] = {
    "reboot": _with_package(boots_and_reboots),
    "rights": _with_package(little_rights),
    "forced-reboot": _with_package(forced_reboots),
    "holder": _with_package(holder_killed),
    "worker": _with_package(worker_killed),
    "power": _with_package(power_cuts),
    "back": _with_package(comes_back),
    "frozen": _with_package(frozen_machine),
    "shutdown": _with_package(shutdown_without_service),
    "boot": _with_package(boot_without_service),
    "units": _with_package(disks_without_mount),
    "upgrade": _with_package(package_upgrade),
    "grow": _with_package(grows_in_use),
    "node-driver": driver_replaced,
    "node-reboot": node_reboots,
}
