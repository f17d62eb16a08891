#!/usr/bin/env bash
# A loop device on a FUSE file that has grown: losetup -c succeeds and changes nothing for five minutes.
#
# Expected: `losetup --set-capacity` asks the file for its size, and a FUSE file system is asked again after a second,
# which is libfuse's own default.
# Seen: pyfuse3's EntryAttributes say 300 s unless set, so the kernel takes the size from memory: losetup exits with 0
# and the device stays as small as it was. After invalidate_inode() the file shows its size, the device still does not;
# a second losetup -c then changes it. With attr_timeout = 0 the first one does.
# Version: pyfuse3 3.5.0, trio 0.35.0 (PyPI), libfuse 3.14.0-4, util-linux 2.38.1-5+deb12u3 (Debian 12), Linux 6.18.44.
# Consequence: growing a disk behind a loop device takes three steps in this order, grow, invalidate, losetup -c, and a
# comparison of sizes at the end, since no step fails when another is missing.
set -euo pipefail
work=$(mktemp -d)
program=''
device=''
cleanup() {
    [ -z "$device" ] || losetup --detach "$device"
    ! mountpoint --quiet "$work/fs" || umount --lazy "$work/fs"
    [ -z "$program" ] || wait "$program" || true
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyfuse3==3.5.0 trio==0.35.0
expect() { # what, seen, before
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { printf 'changed: it was %s\n' "$3" >&2 && exit 1; }
}
cat >fs.py <<'END'
"""One file, `disk`, of 1 MiB; a look at `grow` makes it 4 MiB, one at `invalidate` tells the kernel.

Argument: attr_timeout, or `default`.
"""
import errno
import stat
import sys

import pyfuse3
import trio


class Disk(pyfuse3.Operations):
    size = 1 << 20

    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_nlink = inode, 1
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o600
        entry.st_size = 0 if inode == pyfuse3.ROOT_INODE else self.size
        if sys.argv[1] != "default":
            entry.attr_timeout = float(sys.argv[1])
        return entry

    async def lookup(self, parent, name, ctx=None):
        if name == b"disk":
            return await self.getattr(2)
        if name == b"grow":
            self.size = 4 << 20
        if name == b"invalidate":
            await trio.to_thread.run_sync(pyfuse3.invalidate_inode, 2)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh, offset, length):
        return bytes(max(0, min(length, self.size - offset)))


pyfuse3.init(Disk(), "fs", {*pyfuse3.default_options, "fsname=probe"})
try:
    trio.run(pyfuse3.main)
finally:
    pyfuse3.close()
END
mkdir fs
start() { # attr_timeout
    venv/bin/python fs.py "$1" &
    program=$!
    for _ in $(seq 600); do
        ! mountpoint --quiet fs || break
        sleep 0.1
    done
    device=$(losetup --find --show --read-only fs/disk)
}
stop() {
    losetup --detach "$device"
    device=
    umount --lazy fs
    wait "$program"
    program=
}
ask() { test -e "fs/$1" || true; }
size() { blockdev --getsize64 "$device"; }
mib=$((1024 * 1024))

start default
expect "at first" "$(size)" $mib
ask grow
losetup --set-capacity "$device"
expect "grown, losetup -c: the device" "$(size)" $mib
expect "grown, losetup -c: the file" "$(stat --format %s fs/disk)" $mib
ask invalidate
expect "invalidated: the file" "$(stat --format %s fs/disk)" $((4 * mib))
expect "invalidated: the device" "$(size)" $mib
losetup --set-capacity "$device"
expect "invalidated, losetup -c: the device" "$(size)" $((4 * mib))
stop
start 0
ask grow
losetup --set-capacity "$device"
expect "attr_timeout 0, grown, losetup -c: the device" "$(size)" $((4 * mib))
stop
