#!/usr/bin/env bash
# blkid -p of a disk that cannot be read: no message, and the exit status that a blank disk has.
#
# Expected: an error of reading is an error of blkid, with another exit status than "nothing found".
# Seen: 2, without a word, both for zeros and for an ext4 whose reads fail with EIO, be it all of them or only those of
# the first 4096 bytes. wipefs lists nothing, with status 0. mkfs.xfs tells the two apart: it goes ahead on zeros and
# stops where it cannot read.
# Version: util-linux 2.38.1-5+deb12u3, xfsprogs 6.1.0-1 (Debian 12), pyfuse3 3.5.0, trio 0.35.0 (PyPI), for a file
# whose reads fail.
# Consequence: "format if blkid finds nothing", which is how CSI drivers do it, formats a full disk whose store was away
# at that moment. Read the places in question with read(2) first, and take an error for "unknown".
set -euo pipefail
work=$(mktemp -d)
program=
cleanup() {
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
cat >fs.py <<'PY'
"""The file `disk`, which has a real one's content. Arguments: that one, and how many bytes of its start are unreadable."""
import errno
import os
import stat
import sys

import pyfuse3
import trio

real = os.open(sys.argv[1], os.O_RDWR)
unreadable = int(sys.argv[2])


class Disk(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_nlink = inode, 1
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o600
        entry.st_size = 0 if inode == pyfuse3.ROOT_INODE else os.fstat(real).st_size
        return entry

    async def lookup(self, parent, name, ctx=None):
        if name == b"disk":
            return await self.getattr(2)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh, offset, length):
        if offset < unreadable:
            raise pyfuse3.FUSEError(errno.EIO)
        return os.pread(real, length, offset)

    async def write(self, fh, offset, data):
        return os.pwrite(real, data, offset)


pyfuse3.init(Disk(), "fs", {*pyfuse3.default_options, "fsname=probe"})
try:
    trio.run(pyfuse3.main)
finally:
    pyfuse3.close()
PY
mkdir fs
start() { # file, unreadable bytes
    venv/bin/python fs.py "$1" "$2" &
    program=$!
    for _ in $(seq 600); do
        ! mountpoint --quiet fs || break
        sleep 0.1
    done
}
stop() {
    umount --lazy fs
    wait "$program"
    program=
}
status() { if "$@" >found 2>messages; then echo 0; else echo $?; fi; }

printf 'util-linux %s, xfsprogs %s\n' $(dpkg-query --show --showformat '${Version} ' util-linux xfsprogs)
size=$((320 * 1024 * 1024))
truncate --size $size zeros ext4
mkfs.ext4 -q ext4
start ext4 0
expect 'ext4, readable: status of blkid -p' "$(status blkid -p fs/disk)" 0
expect 'its type' "$(sed -n 's/.* TYPE="\([a-z0-9]*\)".*/\1/p' found)" ext4
stop
for unreadable in 4096 $size; do
    start ext4 $unreadable
    expect "ext4, $unreadable bytes unreadable: dd reads the first block" \
        "$(dd if=fs/disk of=block bs=4096 count=1 2>messages && echo yes || echo no)" no
    expect '... status of blkid -p' "$(status blkid -p fs/disk)" 2
    expect '... what it says' "$(cat found messages)" ''
    expect '... status of wipefs' "$(status wipefs fs/disk)" 0
    expect '... what it says' "$(cat found messages)" ''
    expect '... status of mkfs.xfs' "$(status mkfs.xfs -q fs/disk)" 1
    stop
done
start zeros 0
expect 'zeros: status of blkid -p' "$(status blkid -p fs/disk)" 2
expect 'zeros: status of mkfs.xfs' "$(status mkfs.xfs -q fs/disk)" 0
stop
