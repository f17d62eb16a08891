#!/usr/bin/env bash
# A FUSE server that answers fsync with ENOSYS: fsync(2) succeeds, and the server is never asked again.
#
# Expected: fsync fails with ENOSYS or EINVAL on a file that cannot be synced, as it does on a pipe.
# Seen: the kernel takes ENOSYS for "not needed here": it returns 0, and for all later fsyncs of that mount it returns 0
# without a request. So a server that has no fsync makes every fsync succeed, also that of a loop device on its file;
# and one ENOSYS that an fsync handler lets through by accident turns it off for good. EIO reaches the caller, and the
# next fsync is a request again.
# Version: pyfuse3 3.5.0 (whose Operations answer ENOSYS for what is not overridden), trio 0.35.0 (PyPI), Linux 6.18.44.
# Consequence: a forgotten or misspelled fsync handler shows in no test that only looks at return values: count the
# requests. And a handler maps the errors of what is below it; it never hands an ENOSYS from there to the kernel.
set -euo pipefail
work=$(mktemp -d)
program=
device=
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
cat >fs.py <<'PY'
"""One file, `disk`, of 1 MiB. Argument: whether there is an fsync. It fails with what is in the file `error`."""
import errno
import pathlib
import stat
import sys

import pyfuse3
import trio


class Disk(pyfuse3.Operations):
    content = bytearray(1 << 20)

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


class WithFsync(Disk):
    async def fsync(self, fh, datasync):
        with open("asked", "a") as asked:
            asked.write("fsync\n")
        if name := pathlib.Path("error").read_text().strip():
            raise pyfuse3.FUSEError(getattr(errno, name))


pyfuse3.init(WithFsync() if sys.argv[1] == "fsync" else Disk(), "fs", {*pyfuse3.default_options, "fsname=probe"})
try:
    trio.run(pyfuse3.main)
finally:
    pyfuse3.close()
PY
mkdir fs
start() { # fsync or none
    venv/bin/python fs.py "$1" &
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
synced() { # file, the server's error: what a write with fsync says, and how often the server was asked
    echo "$2" >error
    : >asked
    if dd if=/dev/zero of="$1" bs=4096 count=1 conv=notrunc,fsync status=none 2>messages; then
        echo "success, asked $(wc -l <asked)"
    else
        echo "failure, asked $(wc -l <asked)"
    fi
}

uname -r
start fsync
expect 'fsync' "$(synced fs/disk '')" 'success, asked 1'
expect 'fsync that fails with EIO' "$(synced fs/disk EIO)" 'failure, asked 1'
expect 'fsync' "$(synced fs/disk '')" 'success, asked 1'
expect 'fsync that fails with ENOSYS' "$(synced fs/disk ENOSYS)" 'success, asked 1'
expect 'fsync that would fail with EIO, after it' "$(synced fs/disk EIO)" 'success, asked 0'
stop
start none
expect 'no fsync: the file' "$(synced fs/disk '')" 'success, asked 0'
device=$(losetup --find --show fs/disk)
expect 'no fsync: a loop device on the file' "$(synced "$device" '')" 'success, asked 0'
losetup --detach "$device"
device=
stop
