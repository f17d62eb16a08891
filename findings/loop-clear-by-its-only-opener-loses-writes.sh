#!/usr/bin/env bash
# LOOP_CLR_FD by the only opener of a loop device throws away what was written before, with success all the way.
#
# Expected: data written to a block device without fsync reaches it at the latest when the device is closed for the last
# time; LOOP_CLR_FD takes effect on the last close (loop(4): lazily, if in use), so after it.
# Seen: with one opener the device is cut off from its file at once, and the last close then writes the page cache to
# nowhere: write, ioctl and close all succeed, and the file has zeros. With a second descriptor open, or when the same
# ioctl comes from `losetup -d` beside the writer, the data arrives.
# Version: Linux 6.18.44 (drivers/block/loop.c); no package of this finding's own.
# Consequence: a program that sets a loop device up, writes and takes it down by one descriptor has to fsync before
# LOOP_CLR_FD, or to open the device a second time for it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 - <<'END'
import fcntl
import os
import subprocess
import sys

LOOP_CLR_FD = 0x4C01
PAGE = b"1" * 4096


def expect(what, seen, before):
    print(f"{what}: {seen}")
    if seen != before:
        sys.exit(f"changed: it was {before}")

def arrives(let_go):
    """Whether a page that is written to a fresh loop device is in its file after let_go(descriptor, device)."""
    with open("disk", "wb") as file:
        file.truncate(1 << 20)
    device = subprocess.run(
        ["losetup", "--find", "--show", "disk"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    descriptor = os.open(device, os.O_RDWR)
    try:
        assert os.write(descriptor, PAGE) == len(PAGE)
        let_go(descriptor, device)
    finally:
        os.close(descriptor)
    assert subprocess.run(["losetup", "--associated", "disk"], stdout=subprocess.PIPE).stdout == b""
    with open("disk", "rb") as file:
        return file.read(len(PAGE)) == PAGE


def clear(descriptor, device):
    fcntl.ioctl(descriptor, LOOP_CLR_FD)


def sync_and_clear(descriptor, device):
    os.fsync(descriptor)
    fcntl.ioctl(descriptor, LOOP_CLR_FD)


def clear_by_a_second(descriptor, device):
    second = os.open(device, os.O_RDONLY)
    fcntl.ioctl(second, LOOP_CLR_FD)
    os.close(second)


print("Linux", os.uname().release)
expect("written, cleared, closed: the data arrives", arrives(clear), False)
expect("written, synced, cleared, closed: the data arrives", arrives(sync_and_clear), True)
expect("written, cleared by a second descriptor, closed: the data arrives", arrives(clear_by_a_second), True)
losetup = lambda descriptor, device: subprocess.run(["losetup", "--detach", device], check=True)
expect("written, losetup -d beside it, closed: the data arrives", arrives(losetup), True)
END
