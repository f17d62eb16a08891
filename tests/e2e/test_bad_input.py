"""What users get wrong, and what is wrong with their disks: one clear line with what to do, and nothing left behind.

Each is tried with `dyskctl attach` and with `mount -t dysk`, which must say the same.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.e2e.kit import Done, Node, faulty_node, node
from tests.leaks import end_templates
from tests.namespaces import need_private_mounts
from tests.wire.sas import blob_sas

__all__ = ["faulty_node", "node"]

Attempt = Callable[[Node, str], Done]


def attach(node: Node, disk: str) -> Done:
    return node.dyskctl("attach", disk)


def mount(node: Node, disk: str) -> Done:
    return node.mount(disk)


@pytest.fixture(params=[attach, mount], ids=["attach", "mount"])
def attempt(request: pytest.FixtureRequest) -> Attempt:
    return cast(Attempt, request.param)


def refused(node: Node, done: Done, *says: str, code: tuple[int, ...] = (1, 32)) -> None:
    """It failed in one line that says all this, and left nothing."""
    assert done.code in code, done
    assert done.out == ""
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    for piece in says:
        assert piece in done.err, done.err
    assert node.nothing_left()


def test_no_such_account(node: Node, attempt: Attempt) -> None:
    (node.dirs.config / "nosuch.conf").write_text(f"account_key = {node.service.key}\nrealm = test.invalid\n")
    (node.dirs.config / "nosuch.conf").chmod(0o600)
    refused(node, attempt(node, "nosuch/disks/data"), "nosuch", "nosuch.blob.test.invalid")


def test_no_such_container(node: Node, attempt: Attempt) -> None:
    refused(node, attempt(node, node.disk()), "container", node.container, "does not exist", "dyskctl create")


def test_no_such_blob(node: Node, attempt: Attempt) -> None:
    node.create("other")
    refused(node, attempt(node, node.disk()), node.disk(), "does not exist", "dyskctl create")


def test_no_such_snapshot(node: Node, attempt: Attempt) -> None:
    disk = f"{node.create()}?snapshot=2020-01-31T12:00:00.0000000Z"
    refused(node, attempt(node, disk), "does not exist")


def test_a_block_blob(node: Node, attempt: Attempt) -> None:
    from azure.storage.blob import BlobClient

    node.create("other")
    url = f"{node.service.endpoint}/{node.container}/text"
    with BlobClient.from_blob_url(
        url, credential={"account_name": node.service.account, "account_key": node.service.key}
    ) as blob:
        blob.upload_blob(b"x" * 1024)
    refused(node, attempt(node, node.disk("text")), "is a block blob, not a page blob", "dyskctl create", code=(1, 2))


@pytest.mark.parametrize("size", ["1000", "0", "9TiB", "-1", "many"])
def test_sizes_that_no_disk_has(node: Node, size: str) -> None:
    done = node.dyskctl("create", node.disk(), f"--size={size}")
    refused(node, done, "size", code=(2,))


def test_a_disk_that_exists_is_not_created_again(node: Node) -> None:
    disk = node.create()
    refused(node, node.dyskctl("create", disk, "--size", "1GiB"), disk, "exists already")


def test_a_credential_of_another_account(node: Node, attempt: Attempt) -> None:
    disk = node.create()
    node.write_credentials(f"account_key = {'A' * 86}==\nendpoint = {node.service.endpoint}\n")
    refused(node, attempt(node, disk), "is not the key of account", "rotated")


def test_without_a_credential_it_is_told_where_one_is_looked_for(node: Node, attempt: Attempt) -> None:
    disk = node.create()
    node.write_credentials().unlink()
    refused(node, attempt(node, disk), f"no credential for account {node.service.account}", "0600", "AZURE_STORAGE_")


def with_sas(node: Node, rights: str, end_s: float = 3600) -> None:
    """Have the node use a SAS for its disk `data` instead of the key."""
    sas = blob_sas(node.service.account, node.service.key, f"{node.container}/data", rights, end_s=end_s)
    node.write_credentials(f"sas = {sas}\nendpoint = {node.service.endpoint}\n")


def test_an_expired_sas(node: Node, attempt: Attempt) -> None:
    disk = node.create()
    with_sas(node, "rw", end_s=-60)
    done = attempt(node, disk)
    refused(node, done, "SAS", "expired at", "make a new one")
    assert "sig=" not in done.err


def test_a_sas_without_write_and_lease_right(node: Node, attempt: Attempt) -> None:
    disk = node.create()
    with_sas(node, "r")
    refused(node, attempt(node, disk), "no write right", "sp=r", "read-only")


def test_a_read_only_sas_is_enough_to_read(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk).code == 0
    (node.mountpoint / "file").write_text("content")
    assert node.umount().code == 0
    with_sas(node, "r")
    node.ok("attach", disk, "--read-only")
    node.ok("detach", disk)
    assert node.mount(disk, "ro").code == 0
    assert (node.mountpoint / "file").read_text() == "content"
    assert node.umount().code == 0


def test_doctor_tells_of_an_expiring_sas_once(node: Node) -> None:
    disk = node.create()
    with_sas(node, "rw")
    done = node.dyskctl("doctor", disk)
    assert (done.code, done.err) == (0, "")
    assert done.out.count(", ends at ") == 1


def test_a_certificate_that_nobody_vouches_for(node: Node, attempt: Attempt) -> None:
    with PageBlobServer(https=True) as secure:
        node.write_credentials(f"account_key = {secure.key}\nendpoint = {secure.endpoint}\n")
        done = attempt(node, node.disk())
        refused(node, done, "its certificate is not accepted", "ca_file")


def test_a_sas_without_read_right(node: Node, attempt: Attempt) -> None:
    disk = node.create()
    with_sas(node, "w")
    refused(node, attempt(node, disk), "no read right")


def test_a_wrong_clock_is_followed_with_a_warning(faulty_node: Node) -> None:
    """The service's date is used for signing, so a clock that is hours off does not keep anybody from a disk."""
    node = faulty_node
    disk = node.create()
    assert isinstance(node.service, PageBlobServer)
    node.service.configure(clock_offset_s=-7200)
    node.ok("attach", disk)
    node.ok("detach", disk)
    done = node.dyskctl("doctor", node.service.account)
    assert re.search("warn  clock: (7199|720[01]) s ahead of the service's", done.out) and "timedatectl" in done.out


def test_leased_by_another_node(node: Node, attempt: Attempt) -> None:
    disk = node.create()
    elsewhere = other_node(node)
    elsewhere.ok("attach", disk)
    refused(node, attempt(node, disk), "is leased by node elsewhere since 20", "--break-lease")
    elsewhere.ok("detach", disk)


def other_node(node: Node) -> Node:
    """Another node by its name and its directories; the same machine."""
    dirs = replace(node.dirs, run=node.dirs.root / "run2", dev=node.dirs.root / "dev2")
    dirs.run.mkdir()
    return replace(node, dirs=dirs, environment={"DYSK_NODE": "elsewhere"})


def test_attached_here_already(node: Node) -> None:
    disk = node.create()
    device = node.ok("attach", disk).strip()
    for words in (["attach", disk], ["attach", disk, "--name", "second"], ["attach", disk, "--read-only"]):
        done = node.dyskctl(*words)
        assert done.code == 1
        assert "attached here already, as data" in done.err and device in done.err
        assert "dyskctl detach data" in done.err
    done = node.mount(disk)
    assert done.code == 32
    assert f"is attached as {device} already" in done.err and "dyskctl detach data" in done.err
    node.ok("detach", disk)
    assert node.nothing_left()


def test_mounted_here_already(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk).code == 0
    other = node.dirs.root / "other"
    other.mkdir()
    done = node.run("mount", "-t", "dysk", disk, str(other))
    assert done.code == 32
    assert f"is mounted on {node.mountpoint} already" in done.err and "mount -o bind,helper=dysk" in done.err
    done = node.mount(disk, "ro")
    assert done.code == 32 and "remount,ro" in done.err
    done = node.mount(disk)  # what mount -a does
    assert done.code == 0 and "already" in done.err
    assert node.umount().code == 0
    assert node.nothing_left()


def test_a_name_that_is_taken(node: Node) -> None:
    first, second = node.create("one"), node.create("two")
    node.ok("attach", first, "--name", "web")
    done = node.dyskctl("attach", second, "--name", "web")
    assert (done.code, "the name web is taken" in done.err) == (1, True)
    node.ok("detach", "web")


def test_a_device_name_that_is_taken(node: Node) -> None:
    disk = node.create()
    (node.dirs.dev / "web").write_text("not ours")
    refused_line = node.dyskctl("attach", disk, "--name", "web")
    assert refused_line.code == 1, refused_line
    assert str(node.dirs.dev / "web") in refused_line.err
    assert (node.dirs.dev / "web").read_text() == "not ours"
    (node.dirs.dev / "web").unlink()
    assert node.nothing_left()


@pytest.mark.parametrize("name", ["a/b", "..", "-x", "x" * 64, ""])
def test_names_that_cannot_be(node: Node, name: str) -> None:
    refused(node, node.dyskctl("attach", node.create(), f"--name={name}"), "name", code=(2,))


@pytest.mark.parametrize("target", ["nothing", "/dev/loop4095", "acct/disks/nothing"])
def test_what_is_not_attached(node: Node, target: str) -> None:
    for verb in ("detach", "status"):
        refused(node, node.dyskctl(verb, target), f"{target} is not attached here", "dyskctl list")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nothing", "nothing is not attached here: dyskctl list shows what is"),
        ("/dev/loop4095", "/dev/loop4095 is not attached here"),
        ("acct/disks/nothing", "no credential for account acct"),
    ],
)
def test_what_there_is_nothing_to_show_of(node: Node, target: str, says: str) -> None:
    """A disk that is not attached here is looked up in its account."""
    refused(node, node.dyskctl("get", target), says)


def test_a_busy_device_is_not_detached(node: Node) -> None:
    disk = node.create()
    assert node.mount(disk).code == 0
    done = node.dyskctl("detach", "data")
    assert done.code == 1
    assert "in use" in done.err and "mounted" in done.err and str(node.mountpoint) in done.err
    assert node.is_mounted()
    assert node.umount().code == 0


def test_a_malformed_credential_file(node: Node, attempt: Attempt) -> None:
    disk = node.create()
    path = node.write_credentials("# comment\naccount_key = x\nacount_key = y\n")
    refused(node, attempt(node, disk), str(path), "line 3", "acount_key", code=(1, 2, 32))


def test_a_credential_file_that_others_can_read(node: Node, attempt: Attempt) -> None:
    disk = node.create()
    path = node.write_credentials(mode=0o644)
    refused(node, attempt(node, disk), str(path), "chmod 600")


def test_an_unknown_option(node: Node) -> None:
    disk = node.create()
    refused(node, node.dyskctl("attach", disk, "--io-timout", "5"), "did you mean --io-timeout?", code=(2,))
    refused(node, node.mount(disk, "io_timeout=5"), "unknown option io_timeout: did you mean io-timeout?", code=(1,))
    done = node.mount(disk, "fstype=ext4,frobnicate")  # may be the file system's, which says that it is not
    refused(node, done, "ext4", code=(32,))


def test_no_service_there(node: Node, attempt: Attempt) -> None:
    node.write_credentials(f"account_key = {node.service.key}\nendpoint = http://127.0.0.1:1/{node.service.account}\n")
    refused(node, attempt(node, node.disk()), "127.0.0.1:1", "Azurite running")


def test_plain_http_to_another_machine(node: Node, attempt: Attempt) -> None:
    node.write_credentials(f"account_key = {node.service.key}\nendpoint = http://192.0.2.1/{node.service.account}\n")
    refused(node, attempt(node, node.disk()), "plain HTTP", "https://", "allow_http", code=(1, 2, 32))


def test_another_user_than_root_is_refused(node: Node) -> None:
    """Another user, who may read everything (as this interpreter may lie in root's home) but is not root."""
    disk = node.create()
    caps = "-all,+dac_read_search"
    become = ["setpriv", "--reuid=65534", "--clear-groups", f"--inh-caps={caps}", f"--ambient-caps={caps}"]
    helper = str(Path("/sbin/mount.dysk").resolve())
    dyskctl = str(Path(helper).with_name("dyskctl"))
    refused(node, node.run(*become, dyskctl, "attach", disk), "root", code=(1,))
    refused(node, node.run(*become, helper, disk, str(node.mountpoint)), "sudo mount", code=(1,))
    assert node.mount(disk).code == 0
    done = node.run(*become, helper.replace("mount.dysk", "umount.dysk"), str(node.mountpoint))
    assert (done.code, done.err) == (1, f"umount.dysk: only root can unmount: sudo umount {node.mountpoint}\n")
    assert node.umount().code == 0


@pytest.fixture
def without(node: Node) -> Iterator[Callable[..., Done]]:
    """Run a command in a mount namespace where something is missing: `script` arranges that."""
    need_private_mounts()

    def run(script: str, *words: str) -> Done:
        return node.run("unshare", "-m", "sh", "-ec", f'{script}\nexec "$@"', "sh", *words)

    yield run


NO_FUSE = """
mkdir $DYSK_RUN_DIR/../dev; mount -t tmpfs none $DYSK_RUN_DIR/../dev; cd $DYSK_RUN_DIR/../dev
for node in null zero urandom random loop-control; do touch $node; mount --bind /dev/$node $node; done
mount --move . /dev; cd /
"""


@pytest.mark.parametrize("command", ["attach", "mount"])
def test_a_machine_without_dev_fuse_is_told_what_to_load(
    node: Node, without: Callable[..., Done], command: str
) -> None:
    disk = node.create()
    words = ["mount", "-t", "dysk", disk, str(node.mountpoint)] if command == "mount" else ["dyskctl", "attach", disk]
    done = without(NO_FUSE, *words)
    refused(node, done, "/dev/fuse", "modprobe fuse", code=(1, 2))


def test_a_file_system_whose_tool_is_missing_is_refused_and_nothing_written(
    node: Node, without: Callable[..., Done]
) -> None:
    disk = node.create()
    hide = "for tool in /usr/sbin/mkfs.xfs /sbin/mkfs.xfs; do mount --bind /dev/null $tool; done"
    done = without(hide, "mount", "-t", "dysk", "-o", "fstype=xfs", disk, str(node.mountpoint))
    refused(node, done, "mkfs.xfs is not installed", "xfsprogs", code=(2,))
    assert (
        json.loads(node.ok("list", "--remote", disk.rpartition("/")[0], "--allocated", "-o", "json"))[0]["allocated"]
        == 0
    )


@pytest.mark.parametrize("command", ["attach", "mount"])
def test_the_state_directory_is_full(node: Node, command: str) -> None:
    disk = node.create()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(node.dirs.run)], check=True, timeout=60)
    try:
        filler = node.dirs.run / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(1 << 20))
        done = node.mount(disk) if command == "mount" else node.dyskctl("attach", disk)
        filler.unlink()
        refused(node, done, "No space left", str(node.dirs.run), code=(1, 2))
    finally:
        end_templates(node.dirs)
        subprocess.run(["umount", str(node.dirs.run)], check=True, timeout=60)


def test_a_sas_in_the_url_is_taken_with_a_warning(node: Node, attempt: Attempt) -> None:
    node.create()
    sas = blob_sas(node.service.account, node.service.key, f"{node.container}/data", "rw")
    done = attempt(node, f"{node.service.endpoint}/{node.container}/data?{sas}")
    assert done.code == 0, done
    (warning,) = (line for line in done.err.splitlines() if ": made ext4 on " not in line)
    assert f"/etc/dysk/{node.service.account}.conf" in warning
    assert "sig=" not in done.out + done.err
    assert "sig=" not in node.ok("list", "-o", "json")
    utab = Path("/run/mount/utab")
    assert not utab.exists() or "sig=" not in utab.read_text()
    if node.is_mounted():
        assert node.umount().code == 0
    else:
        node.ok("detach", "data")
