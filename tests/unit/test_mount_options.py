"""What mount(8) passes to the helpers, and what becomes of each option."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.mount.options import MountRequest, parse_mount, parse_umount, split_options
from blobfuse_dysk.options import MOUNT_OPTIONS

DISK = "mystore/disks/data"

# Options of ext4(5), xfs(5), btrfs(5) and mount(8): none may be taken for a mistyped one of ours.
_FOREIGN = """
abort acl noacl allocsize=64k async atime noatime attr2 auto_da_alloc noauto_da_alloc autodefrag barrier nobarrier
block_validity bsddf bsdgroups check=none nocheck clear_cache commit=30 compress=zstd compress-force=lzo
context="system_u:object_r:t:s0:c1,c2" data=ordered data_err=abort datacow nodatacow datasum nodatasum dax=always debug
degraded delalloc nodelalloc dev nodev diratime nodiratime dioread_lock dioread_nolock discard nodiscard dirsync
enospc_debug errors=remount-ro exec noexec fatal_errors=bug filestreams flushoncommit fscontext=x fragment=all gquota
grpid nogrpid grpquota i_version iversion noiversion ikeep noikeep init_itable=10 noinit_itable inode32 inode64
inode_readahead_blks=32 inlinecrypt journal_async_commit journal_checksum nojournal_checksum journal_dev=0x801
journal_ioprio=3 journal_path=/dev/x jqfmt=vfsv1 largeio nolargeio lazytime nolazytime logbsize=256k logbufs=8
logdev=/dev/x loud mand nomand max_batch_time=1 max_inline=2048 max_dir_size_kb=1 metadata_ratio=1 min_batch_time=1
minixdf mb_optimize_scan=1 mblk_io_submit nombcache noload norecovery nologreplay nosymfollow nouuid nouid32 oldalloc
orlov pquota prjquota prjjquota=x quota noquota qnoenforce relatime norelatime rescue=all reservation noreservation
resgid=1 resuid=1 rootcontext=x rescan_uuid_tree sb=1 silent skip_balance space_cache=v2 nospace_cache ssd nossd
ssd_spread strictatime nostrictatime stripe=16 subvol=/a subvolid=5 suid nosuid sunit=8 swalloc swidth=16 sync
sysvgroups test_dummy_encryption thread_pool=8 treelog notreelog uquota uqnoenforce usebackuproot user_subvol_rm_allowed
user_xattr nouser_xattr usrjquota=x usrquota wsync _netdev
"""
FOREIGN = _FOREIGN.split()


def options(text: str, *, flags: tuple[str, ...] = ()) -> MountRequest:
    return parse_mount([DISK, "/mnt", *flags, "-o", text])


def test_a_disk_and_a_directory_are_enough() -> None:
    request = parse_mount([DISK, "/mnt"])
    assert str(request.disk) == DISK
    assert request.directory == "/mnt"
    assert request.fstype == "auto"
    assert request.make_blank is None
    assert not request.read_only
    assert request.options == ()
    assert request.attach.autoclear
    assert (request.attach.lease_s, request.attach.io_timeout_s) == (60, 300)


def test_every_option_of_ours_reaches_its_place() -> None:
    request = options(
        'fstype=xfs,mkfs=never,mkfs.options="-m crc=1,reflink=0 -L data",credentials=/etc/dysk/other.conf,'
        "endpoint=http://127.0.0.1:10000,realm=core.chinacloudapi.cn,allow-http,partition=2,checksum=md5,"
        "cache=readonly,write-cache-size=128MiB,read-cache-size=4MiB,write-delay=200ms,iops=500,mbps=60.5,"
        "io-timeout=never,lease=infinite,lease-id=00112233-4455-6677-8899-aabbccddeeff,break-lease,sector-size=4096,"
        "name=web,vhd=no"
    )
    assert (request.fstype, request.make_blank, request.partition) == ("xfs", False, 2)
    assert request.mkfs_options == ("-m", "crc=1,reflink=0", "-L", "data")
    attach = request.attach
    assert attach.credentials == "/etc/dysk/other.conf"
    assert (attach.endpoint, attach.realm) == ("http://127.0.0.1:10000", "core.chinacloudapi.cn")
    assert attach.allow_http and attach.break_lease and attach.partscan and attach.autoclear
    assert (attach.cache, attach.checksum) == ("readonly", "md5")
    assert (attach.write_cache_size, attach.read_cache_size, attach.write_delay_s) == (128 << 20, 4 << 20, 0.2)
    assert (attach.iops, attach.mbps) == (500, 60.5)
    assert attach.io_timeout_s is None
    assert attach.lease_s is None
    assert attach.lease_id == "00112233-4455-6677-8899-aabbccddeeff"
    assert (attach.sector_size, attach.name, attach.vhd) == (4096, "web", "no")
    assert request.options == ()


def test_a_file_system_grows_if_that_is_asked_for() -> None:
    assert not options("").grow
    assert options("grow").grow and options("grow").options == ()
    with pytest.raises(UsageError, match="another namespace"):
        options("grow", flags=("-N", "/proc/7/ns/mnt"))


def test_options_of_mkfs_may_be_none_at_all() -> None:
    assert options('mkfs.options=""').mkfs_options == ()


def test_ro_attaches_read_only_and_the_last_of_ro_and_rw_wins() -> None:
    assert options("ro").attach.read_only
    assert options("rw,ro").read_only
    assert not options("ro,rw").attach.read_only


def test_a_snapshot_is_read_only_by_option_and_by_name() -> None:
    time = "2026-01-31T12:00:00.0000000Z"
    for request in (options(f"rw,snapshot={time}"), parse_mount([f"{DISK}?snapshot={time}", "/mnt", "-o", "rw"])):
        assert request.disk.snapshot == time
        assert request.read_only and request.attach.read_only


def test_a_snapshot_has_a_time() -> None:
    with pytest.raises(UsageError, match="not a snapshot's time"):
        options("snapshot=yesterday")


def test_what_is_for_mount_itself_is_dropped_and_the_rest_goes_to_the_file_system() -> None:
    request = options(
        "rw,noatime,nofail,noauto,user=joe,x-systemd.requires=a.service,X-mount.mkdir,comment=x,helper=foo,uhelper=foo,"
        "defaults,_netdev,errors=remount-ro,owner,group"
    )
    assert request.options == ("noatime", "_netdev", "errors=remount-ro")
    assert request.nofail


@pytest.mark.parametrize("option", FOREIGN)
def test_options_of_file_systems_pass(option: str) -> None:
    assert options(option).options == (option,)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("io_timeout=5", "io-timeout"),
        ("iotimeout=5", "io-timeout"),
        ("io-timout=5", "io-timeout"),
        ("fs_type=ext4", "fstype"),
        ("fstpye=ext4", "fstype"),
        ("mkfs_options=-q", "mkfs.options"),
        ("mkfs-opts=-q", "mkfs.options"),
        ("break_lease", "break-lease"),
        ("breaklease", "break-lease"),
        ("sectorsize=512", "sector-size"),
        ("credential=/x", "credentials"),
        ("endpiont=x", "endpoint"),
        ("partitoin=1", "partition"),
        ("snapshots=x", "snapshot"),
        ("Lease=60", "lease"),
        ("dysk-name=x", "name"),
        ("read-only", "ro"),
        ("readonly", "ro"),
    ],
)
def test_a_mistyped_option_is_an_error_that_names_the_right_one(word: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(word)
    assert word.partition("=")[0] in str(caught.value)
    assert caught.value.remedy == f"did you mean {meant}?"


def test_sloppy_passes_it_on_instead() -> None:
    assert options("io_timeout=5", flags=("-s",)).options == ("io_timeout=5",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fstype=zfs", "use ext4, xfs, btrfs, ext3, ext2, vfat, exfat, ntfs, ntfs3, f2fs or auto"),
        ("mkfs=always", "use blank or never"),
        ("cache=writeback", "use none, readonly or readwrite"),
        ("write-cache-size=1MiB", "at least 16MiB"),
        ("read-cache-size=4KiB", "at least 1MiB"),
        ("write-delay=0", "more than 0"),
        ("write-delay=never", "more than 0"),
        ("iops=0", "1 or more"),
        ("iops=many", "'many' is not a whole number: give a number, or none"),
        ("mbps=0", "0.1 or more"),
        ("sector-size=1024", "use 512 or 4096"),
        ("partition=0", "number"),
        ("partition=x", "number"),
        ("grow=yes", "takes no value"),
        ("grow,partition=2", "a partition, which keeps its size: leave grow out"),
        ("ro,grow", "what is mounted read-only"),
        ("lease=5", "15 to 60"),
        ("lease=soon", "lease 'soon'"),
        ("io-timeout=0", "at least 1"),
        ("vhd=maybe", "use auto, yes or no"),
        ("checksum=crc", "use auto, md5 or none"),
        ("fstype=", "no value"),
        ("credentials", "no value"),
        ("break-lease=yes", "takes no value"),
        ("name=a/b", "device name"),
        ('mkfs.options="-L it\'s"', "quot"),
        ('mkfs.options="-q', "not closed"),
        ('name=""', "option name has no value"),
    ],
)
def test_values_that_cannot_be_taken(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(text)
    assert says in caught.value.line()


def test_flags_as_mount_passes_them_and_as_people_type_them() -> None:
    request = parse_mount([DISK, "/mnt", "-sfnv", "-N", "/proc/7/ns/mnt", "-oro", "-o", "noatime"])
    assert request.sloppy and request.fake and request.no_mtab and request.verbose
    assert request.namespace == "/proc/7/ns/mnt"
    assert request.read_only and request.options == ("noatime",)


def test_options_behind_the_directory_are_read_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is where mount(8) puts them; getopt(3), and gnu_getopt likewise, would stop at the first other word."""
    monkeypatch.setenv("POSIXLY_CORRECT", "1")
    assert parse_mount([DISK, "/mnt", "-o", "ro"]).read_only


def test_the_type_may_name_the_file_system() -> None:
    assert parse_mount([DISK, "/mnt", "-t", "dysk.xfs"]).fstype == "xfs"
    assert parse_mount([DISK, "/mnt", "-t", "dysk.xfs", "-o", "fstype=ext4"]).fstype == "ext4"
    assert parse_mount([DISK, "/mnt", "-t", "dysk"]).fstype == "auto"


@pytest.mark.parametrize("words", [[], [DISK], [DISK, "/mnt", "/more"], [DISK, "/mnt", "-z"], [DISK, "/mnt", "-o"]])
def test_wrong_words_are_usage_errors(words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mount(words)
    assert "mount.dysk DISK DIR" in caught.value.line()


def test_remount_is_noticed() -> None:
    request = options("ro,remount,fstype=ext4,noatime")
    assert request.remount and request.read_only and request.options == ("noatime",)


def test_the_words_of_umount_are_taken_as_umount_gives_them() -> None:
    request = parse_umount(["/mnt", "-l", "-nrv", "-t", "dysk"])
    assert request.target == "/mnt"
    assert request.flags == ("-l", "-n", "-r", "-v")
    assert request.lazy
    with pytest.raises(UsageError):
        parse_umount([])
    with pytest.raises(UsageError):
        parse_umount(["/mnt", "-q"])


@given(st.lists(st.text(st.characters(exclude_characters=',"'), min_size=1)))
def test_what_is_joined_is_split_again(words: list[str]) -> None:
    assert split_options(",".join(words)) == words


def test_commas_in_quotes_do_not_split() -> None:
    assert split_options('a,b="1,2",c') == ["a", 'b="1,2"', "c"]


@pytest.mark.parametrize("name", MOUNT_OPTIONS)
def test_each_option_of_ours_is_taken_as_itself_whatever_it_resembles(name: str) -> None:
    try:
        assert options(name).options == ()
    except UsageError as error:
        assert "has no value" in str(error)
