"""mount -t dysk and umount, as users and /etc/fstab have it, on real devices and file systems."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.kit import Node, node, partition_table, service_node, until

__all__ = ["node", "service_node"]

FSCK = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"], "btrfs": ["btrfs", "check", "--readonly"]}


def findmnt(node: Node, column: str) -> str:
    return node.run("findmnt", "-no", column, str(node.mountpoint)).out.strip()


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_a_blank_disk_is_formatted_mounted_used_and_found_clean(service_node: Node, fstype: str) -> None:
    node = service_node
    disk = node.create()
    done = node.mount(disk, f"fstype={fstype},noatime")
    assert (done.code, done.out, done.err) == (0, "", f"mount.dysk: made {fstype} on {disk}\n")
    assert findmnt(node, "FSTYPE") == fstype
    assert "noatime" in findmnt(node, "OPTIONS")
    assert json.loads(node.ok("list", "-o", "json"))[0]["mountpoints"] == [str(node.mountpoint)]
    data = os.urandom(3 << 20)
    (node.mountpoint / "file").write_bytes(data)

    assert node.umount() == type(done)(0, "", "")
    assert node.nothing_left()  # at once, when umount returns

    device = node.ok("attach", disk).strip()
    subprocess.run([*FSCK[fstype], device], check=True, capture_output=True, timeout=60)
    node.ok("detach", disk)

    assert node.mount(disk).code == 0  # fstype=auto finds it
    assert findmnt(node, "FSTYPE") == fstype
    assert (node.mountpoint / "file").read_bytes() == data
    assert node.umount().code == 0
    assert node.nothing_left()


def test_systemd_learns_that_the_mount_needs_the_network(node: Node) -> None:
    assert node.mount(node.create(), "fstype=ext4").code == 0
    lines = Path("/run/mount/utab").read_text().splitlines()
    (line,) = [line for line in lines if f"TARGET={node.mountpoint} " in line]
    assert "_netdev" in line
    assert node.umount().code == 0


def test_options_of_mkfs(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk, 'fstype=ext4,mkfs.options="-L results -O ^has_journal,extent -b 4096"').code == 0
    device = findmnt(node, "SOURCE")
    found = subprocess.run(["dumpe2fs", "-h", device], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "results" in found and "has_journal" not in found
    assert node.umount().code == 0


def test_lines_in_fstab(node: Node) -> None:
    disks = [node.create("one"), node.create("with blank")]
    points = [node.dirs.root / "p1", node.dirs.root / "p 2"]
    fstab = node.dirs.root / "fstab"
    lines = []
    for disk, point in zip(disks, points, strict=True):
        point.mkdir()
        options = "_netdev,nofail,x-systemd.requires=network-online.target,fstype=ext4"
        lines.append(f"{disk} {point} dysk {options} 0 0\n".replace("h b", "h\\040b").replace("p 2", "p\\0402"))
    fstab.write_text("".join(lines))
    assert node.run("mount", "-a", "-T", str(fstab)).code == 0
    assert [entry["disk"] for entry in json.loads(node.ok("list", "-o", "json"))] == disks
    again = node.run("mount", "-a", "-T", str(fstab))  # as everyone does who edits the file
    assert again.code == 0
    assert again.err.count("already") == 2
    remounted = node.run("mount", "-T", str(fstab), "-o", "remount,ro", str(points[0]))
    assert remounted.code == 0, remounted
    assert os.statvfs(points[0]).f_flag & os.ST_RDONLY
    for point in points:
        assert node.run("umount", str(point)).code == 0
    assert node.nothing_left()
    assert node.run("mount", "-T", str(fstab), str(points[1])).code == 0
    assert node.run("umount", str(points[1])).code == 0
    assert node.nothing_left()


def test_umount_by_device_and_lazily(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk).code == 0
    assert node.umount(findmnt(node, "SOURCE")).code == 0
    assert node.nothing_left()
    assert node.mount(disk).code == 0
    with (node.mountpoint / "held").open("w") as file:
        assert node.umount("-l", str(node.mountpoint)).code == 0
        assert not node.is_mounted()
        file.write("still writable")
    until(node.nothing_left, "the end of the attachment after the last close")
    assert node.mount(disk).code == 0
    assert (node.mountpoint / "held").read_text() == "still writable"
    assert node.umount().code == 0


def test_a_bare_umount2_detaches_too(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk).code == 0
    (node.mountpoint / "file").write_text("content")
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.umount2(os.fsencode(node.mountpoint), 0) == 0
    until(node.nothing_left, "the end of the attachment")
    assert node.mount(disk).code == 0
    assert (node.mountpoint / "file").read_text() == "content"
    assert node.umount().code == 0


def test_two_places_of_one_mount(node: Node) -> None:
    disk = node.create()
    other = node.dirs.root / "other"
    other.mkdir()
    assert node.mount(disk).code == 0
    assert node.run("mount", "--bind", str(node.mountpoint), str(other)).code == 0
    done = node.umount()
    assert done.code == 0
    assert f"it is mounted on {other} (end that with umount.dysk {other}), so data stays attached" in done.err
    assert not node.nothing_left()
    (other / "file").write_text("x")
    assert node.run("umount", str(other)).code == 0  # knows no helper, so it does not wait
    until(node.nothing_left, "the end of the attachment")


@pytest.mark.parametrize("how", ["bind,helper=dysk", "umount.dysk"])
def test_the_last_of_two_places_is_waited_for(node: Node, how: str) -> None:
    """What a refused second mount, and the first umount, tell to do."""
    disk = node.create()
    other = node.dirs.root / "other"
    other.mkdir()
    assert node.mount(disk).code == 0
    refused = node.run("mount", "-t", "dysk", disk, str(other))
    assert f"mount -o bind,helper=dysk {node.mountpoint} {other}" in refused.err
    options = how if "bind" in how else "bind"
    assert node.run("mount", "-o", options, str(node.mountpoint), str(other)).code == 0
    assert node.umount().code == 0
    (other / "file").write_text("x")
    assert node.run("umount" if "bind" in how else os.path.realpath("/sbin/umount.dysk"), str(other)).code == 0
    assert node.nothing_left()


def test_a_mount_that_another_mount_namespace_has_too(node: Node) -> None:
    """A container that was started meanwhile: umount says that the disk is still in use, and does not wait for it."""
    disk = node.create()
    assert node.mount(disk).code == 0
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", "echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as container:
        assert container.stdout is not None
        container.stdout.readline()
        done = node.umount()
        assert done.code == 0
        assert f"process {container.pid} has it mounted on {node.mountpoint}, so data stays attached" in done.err
        assert not node.is_mounted() and not node.nothing_left()
        container.communicate(b"\n")
    until(node.nothing_left, "the end of the attachment")


def test_umount_of_a_busy_mount_fails_and_changes_nothing(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk).code == 0
    with (node.mountpoint / "open").open("w"):
        done = node.umount()
    assert done.code == 32
    assert "target is busy" in done.err
    assert node.is_mounted()
    assert node.umount().code == 0
    assert node.nothing_left()


def test_a_disk_that_is_mounted_read_only_is_attached_read_only(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk).code == 0
    (node.mountpoint / "file").write_text("content")
    assert node.umount().code == 0
    assert node.mount(disk, "ro").code == 0
    shown = json.loads(node.ok("list", "-o", "json"))[0]
    assert (shown["read_only"], shown["lease"]) == (True, None)
    assert (node.mountpoint / "file").read_text() == "content"
    with pytest.raises(OSError, match="Read-only"):
        (node.mountpoint / "new").touch()
    done = node.run("mount", "-o", "remount,rw", str(node.mountpoint))
    assert done.code == 32 and "write-protected" in done.err
    done = node.mount(disk, "remount,rw")  # as with a line in /etc/fstab, through the helper
    assert done.code == 32
    assert done.err.endswith(f"it was attached read-only: umount {node.mountpoint}, then mount it without ro\n")
    assert node.umount().code == 0
    assert node.nothing_left()


def test_remount_goes_to_the_file_system(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk).code == 0
    for words in (["-o", "remount,ro", str(node.mountpoint)], ["-t", "dysk", "-o", "remount,ro", disk]):
        more = [str(node.mountpoint)] if disk in words else []
        assert node.run("mount", *words, *more).code == 0
        assert findmnt(node, "OPTIONS").startswith("ro,")
        assert node.run("mount", "-o", "remount,rw", str(node.mountpoint)).code == 0
        assert findmnt(node, "OPTIONS").startswith("rw,")
    assert node.umount().code == 0
    assert node.nothing_left()  # umount still knows its helper after the remounts


def test_a_partition_of_a_vhd(node: Node) -> None:
    disk = node.disk("vm.vhd")
    node.ok("create", disk, "--size", "128MiB", "--vhd")
    device = node.ok("attach", disk, "--partscan").strip()
    Path(device).write_bytes(partition_table((2048, 65536), (67584, 131072)))
    node.ok("detach", disk)
    device = node.ok("attach", disk, "--partscan").strip()
    subprocess.run(["mkfs.ext4", "-q", f"{device}p2"], check=True, timeout=60)
    node.ok("detach", disk)

    assert node.mount(disk, "partition=2").code == 0
    assert re.fullmatch(r"/dev/loop\d+p2", findmnt(node, "SOURCE"))
    (node.mountpoint / "file").write_text("content")
    assert node.umount().code == 0
    assert node.nothing_left()
    done = node.mount(disk)
    assert done.code == 32
    assert "partition table" in done.err and "-o partition=1" in done.err
    done = node.mount(disk, "partition=7")
    assert done.code == 32 and "has no partition 7" in done.err
    assert node.nothing_left()


def test_mount_calls_the_helper_with_no_environment_at_all(node: Node) -> None:
    """Kernel and automounters start mount(8) with an empty PATH."""
    disk = node.create()
    helper = os.path.realpath("/sbin/mount.dysk")
    variables = [f"{name}={value}" for name, value in node.dirs.environment.items()]
    done = node.run("env", "-i", "PATH=", *variables, helper, disk, str(node.mountpoint), "-o", "rw,fstype=ext4")
    assert (done.code, done.err) == (0, f"mount.dysk: made ext4 on {disk}\n")
    helper = os.path.realpath("/sbin/umount.dysk")
    done = node.run("env", "-i", "PATH=", *variables, helper, str(node.mountpoint))
    assert (done.code, done.err) == (0, "")
    assert node.nothing_left()


def test_fake_and_verbose_tell_what_would_be_done(node: Node) -> None:
    disk = node.create()
    done = node.mount(disk, "", "-f", "-v")
    assert (done.code, done.out) == (0, f"mount.dysk: would attach {disk} and mount it on {node.mountpoint}\n")
    assert node.nothing_left()


def test_fake_mounts_nothing(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk, "", "-f").code == 0
    assert node.nothing_left()


def test_verbose_tells_the_steps(node: Node) -> None:
    disk = node.create()
    done = node.mount(disk, "fstype=ext4", "-v")
    assert done.code == 0
    assert f"attached {disk}" in done.out and "making ext4" in done.out and "mount -t ext4" in done.out
    assert node.umount().code == 0


def test_no_mtab_is_handed_on(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk, "", "-n").code == 0
    utab = Path("/run/mount/utab")
    assert str(node.mountpoint) not in (utab.read_text() if utab.exists() else "")
    assert node.umount().code == 0  # plain: no helper is recorded
    until(node.nothing_left, "the end of the attachment")


def test_the_type_may_name_the_file_system(node: Node) -> None:
    disk = node.create()
    assert node.run("mount", "-t", "dysk.xfs", disk, str(node.mountpoint)).code == 0
    assert findmnt(node, "FSTYPE") == "xfs"
    assert node.umount().code == 0


def test_several_mounts_may_read(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk).code == 0
    assert node.umount().code == 0
    assert node.mount(disk, "ro").code == 0
    other = node.dirs.root / "other"
    other.mkdir()
    done = node.run("mount", "-t", "dysk", "-o", "ro,name=second", disk, str(other))
    assert done.code == 0, done
    assert node.run("umount", str(other)).code == 0
    assert node.is_mounted()
    assert node.umount().code == 0
    assert node.nothing_left()
