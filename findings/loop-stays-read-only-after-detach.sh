#!/usr/bin/env bash
# A loop device that was made read-only with blockdev --setro stays so for the next file, whoever puts it there.
#
# Expected: losetup --detach ends all that was set of the device; the next losetup without --read-only gives one that can
# be written, or says that it cannot.
# Seen: the next file's device refuses writes (EPERM), with no message from losetup; --list shows RO 1. The flag that
# BLKROSET sets is the block device's (block/ioctl.c, blkdev_roset()); LOOP_CONFIGURE sets the disk's own
# (drivers/block/loop.c, set_disk_ro()), and either of the two is enough for a refusal.
# Version: util-linux 2.38.1-5+deb12u3 (Debian 12), Linux 6.18.44.
# Consequence: who sets up a loop device to be written clears the flag (BLKROSET with 0, blockdev --setrw); who uses it to
# keep others from writing takes it back before the device is let go.
set -euo pipefail
work=$(mktemp -d)
device=
cleanup() {
    [ -z "$device" ] || { blockdev --setrw "$device" && losetup --detach "$device"; }
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"

expect() { # what, seen, before
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { printf 'changed: it was %s\n' "$3" >&2 && exit 1; }
}
writes() { # device
    if dd if=/dev/zero of="$1" bs=4096 count=1 conv=notrunc,fsync status=none 2>messages; then echo yes; else echo no; fi
}
printf 'util-linux %s, Linux %s\n' "$(dpkg-query --show --showformat '${Version}' util-linux)" "$(uname -r)"
truncate --size 1M first second
device=$(losetup --find --show first)
expect 'the first file takes writes' "$(writes "$device")" yes
blockdev --setro "$device"
expect 'and none once the device is read-only' "$(writes "$device")" no
losetup --detach "$device"
losetup "$device" second 2>messages # the same device, for another file
expect 'messages of losetup for the second file' "$(cat messages)" ''
expect 'losetup says of it: read-only' "$(losetup --noheadings --list --output RO "$device" | tr -d ' ')" 1
expect 'the second file takes writes' "$(writes "$device")" no
blockdev --setrw "$device"
expect 'and does after blockdev --setrw' "$(writes "$device")" yes
