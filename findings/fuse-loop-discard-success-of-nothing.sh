#!/usr/bin/env bash
# A loop device on a FUSE file whose server has no fallocate: blkdiscard exits with 0, and nothing was discarded.
#
# Expected: the device does not offer discard, or blkdiscard fails with "not supported".
# Seen: whether the loop driver offers discard does not depend on fallocate, which it cannot ask for, but on whether the
# server answers statfs. If it does, 4 GiB at a time are offered; the first blkdiscard exits with 0 and the content
# stays as it was; from then on the device has no discard, and blkdiscard fails. Without statfs there is none from the
# start.
# Version: pyfuse3 3.5.0 (which has no fallocate), trio 0.35.0 (PyPI), util-linux 2.38.1-5+deb12u3 (Debian 12), Linux
# 6.18.44.
# Consequence: success of blkdiscard (and of mkfs's own discard) proves nothing about the content: never take it for
# zeroing. A server without fallocate had better not answer statfs, or queue/discard_max_bytes be set to 0.
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
"""One file, `disk`, of 1 MiB. Argument: whether there is a statfs."""
import errno
import stat
import sys

import pyfuse3
import trio


class Disk(pyfuse3.Operations):
    content = bytearray(b"1" * (1 << 20))

    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_nlink = inode, 1
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o600
        entry.st_size = 0 if inode == pyfuse3.ROOT_INODE else len(self.content)
        return entry

    async def lookup(self, parent, name, ctx=None):
        if name == b"disk":
            return await self.getattr(2)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh, offset, length):
        return bytes(self.content[offset : offset + length])

    async def write(self, fh, offset, data):
        self.content[offset : offset + len(data)] = data
        return len(data)


class WithStatfs(Disk):
    async def statfs(self, ctx):
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = 256
        return answer


pyfuse3.init(WithStatfs() if sys.argv[1] == "statfs" else Disk(), "fs", {*pyfuse3.default_options, "fsname=probe"})
try:
    trio.run(pyfuse3.main)
finally:
    pyfuse3.close()
END
mkdir fs
start() { # statfs or none
    venv/bin/python fs.py "$1" &
    program=$!
    for _ in $(seq 600); do
        ! mountpoint --quiet fs || break
        sleep 0.1
    done
    device=$(losetup --find --show fs/disk)
}
stop() {
    losetup --detach "$device"
    device=
    umount --lazy fs
    wait "$program"
    program=
}
offered() { if [ "$(cat "/sys/block/${device##*/}/queue/discard_max_bytes")" = 0 ]; then echo no; else echo yes; fi; }
discard() { if blkdiscard "$device" 2>/dev/null; then echo success; else echo failure; fi; }

start none
expect "without statfs, discard is offered" "$(offered)" no
expect "without statfs, blkdiscard" "$(discard)" failure
stop
start statfs
expect "with statfs, discard is offered" "$(offered)" yes
expect "with statfs, the first blkdiscard" "$(discard)" success
expect "bytes that it left as they were" "$(tr -dc 1 <"$device" | wc -c)" $((1024 * 1024))
expect "discard is offered after it" "$(offered)" no
expect "with statfs, the second blkdiscard" "$(discard)" failure
stop
