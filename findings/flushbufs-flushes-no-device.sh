#!/usr/bin/env bash
# blockdev --flushbufs: what was written goes to the device, and the device is not told to flush it.
#
# Expected: a command (and an ioctl, BLKFLSBUF) for flushing buffers, that succeeds, leaves the data where a power cut
# does not reach it, as fsync of the device does; the last close of the device likewise.
# Seen: both write the kernel's own cache to the device, and no flush request follows. fsync, sync DEVICE and a write
# with O_SYNC send one. Here the device is a loop device on a FUSE file, where each flush arrives as an fsync.
# Version: util-linux 2.38.1-5+deb12u3 (Debian 12), pyfuse3 3.5.0, trio 0.35.0 (PyPI), Linux 6.18.44.
# Consequence: a script that writes an image with dd or cp and ends with blockdev --flushbufs has nothing durable on a
# device with a cache of its own. Use conv=fsync, or sync DEVICE.
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
cat >fs.py <<'PY'
"""One file, `disk`, of 1 MiB, and in the file `requests` what came for it: write or fsync, one a line."""
import errno
import stat

import pyfuse3
import trio


def note(word):
    with open("requests", "a") as requests:
        requests.write(word + "\n")


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
        note("write")
        self.content[offset : offset + len(data)] = data
        return len(data)

    async def fsync(self, fh, datasync):
        note("fsync")


pyfuse3.init(Disk(), "fs", {*pyfuse3.default_options, "fsname=probe"})
try:
    trio.run(pyfuse3.main)
finally:
    pyfuse3.close()
PY
mkdir fs
venv/bin/python fs.py &
program=$!
for _ in $(seq 600); do
    ! mountpoint --quiet fs || break
    sleep 0.1
done
device=$(losetup --find --show fs/disk)
printf 'util-linux %s, Linux %s\n' "$(dpkg-query --show --showformat '${Version}' util-linux)" "$(uname -r)"
venv/bin/python - "$device" <<'PY'
import os
import subprocess
import sys

device = sys.argv[1]


def expect(what, seen, before):
    print(f"{what}: {' '.join(seen) or 'nothing'}")
    if seen != before:
        sys.exit(f"changed: it was {before}")


def requests_of(step):
    """What arrives while a step is done, repetitions left out."""
    open("requests", "w").close()
    step()
    words = open("requests").read().split()
    return [word for at, word in enumerate(words) if words[at - 1 : at] != [word]]


def command(*words):
    return lambda: subprocess.run(words, check=True)


writer = os.open(device, os.O_RDWR)
write = lambda: os.pwrite(writer, b"1" * 4096, 0)
expect("a write", requests_of(write), [])
expect("blockdev --flushbufs after it", requests_of(command("blockdev", "--flushbufs", device)), ["write"])
expect("fsync after that", requests_of(lambda: os.fsync(writer)), ["fsync"])
write()
expect("a write, and sync DEVICE", requests_of(command("sync", device)), ["write", "fsync"])
write()
expect("a write, and the last close", requests_of(lambda: os.close(writer)), ["write"])
writer = os.open(device, os.O_RDWR | os.O_SYNC)
expect("a write with O_SYNC", requests_of(write), ["write", "fsync"])
os.close(writer)
PY
