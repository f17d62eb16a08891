#!/usr/bin/env bash
# A loop device keeps the partitions of one file, and shows them as partitions of the next file that it is given.
#
# Expected: partitions that partx --add made go with the file that they are of, as they do with losetup --partscan.
# Seen: without --partscan they outlive losetup --detach, and losetup for another file on the same device keeps them: what
# is written to /dev/loopNp1 lands in the second file, which has no partition table. The driver drops them only where
# LO_FLAGS_PARTSCAN is set, at both moments (drivers/block/loop.c, __loop_clr_fd(), loop_configure()).
# Version: util-linux 2.38.1-5+deb12u3 (Debian 12), Linux 6.18.44.
# Consequence: who sets up a loop device looks for partitions that are there already, and deletes them (BLKPG, partx
# --delete) before anybody uses it; who lets one go whose partitions were made by hand deletes them first.
set -euo pipefail
work=$(mktemp -d)
device=
cleanup() {
    [ -z "$device" ] || { partx --delete "$device"; losetup --detach "$device"; } 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"

expect() { # what, seen, before
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { printf 'changed: it was %s\n' "$3" >&2 && exit 1; }
}
partitions() { find "/sys/block/${device#/dev/}/" -maxdepth 1 -name "${device#/dev/}p*" | wc -l; }

printf 'util-linux %s, Linux %s\n' "$(dpkg-query --show --showformat '${Version}' util-linux)" "$(uname -r)"
truncate --size 20M first second
printf 'label: dos\n,8M\n' | sfdisk --quiet first
device=$(losetup --find --show first)
expect 'partitions without --partscan' "$(partitions)" 0
partx --add "$device"
expect 'and after partx --add' "$(partitions)" 1
losetup --detach "$device"
expect 'partitions of the device that has no file any more' "$(partitions)" 1
losetup "$device" second # the same device, for another file
expect 'partitions of the second file, which has no table' "$(partitions)" 1
node=${device}p1
if [ ! -e "$node" ]; then # where nothing makes nodes
    node=$work/node
    tr : ' ' <"/sys/block/${device#/dev/}/${device#/dev/}p1/dev" | xargs mknod "$node" b
fi
printf 'lost' | dd of="$node" conv=notrunc,fsync status=none
expect 'what was written to the partition of the first is in the second' "$(grep --count --text lost second)" 1
partx --delete "$device"
losetup --detach "$device"
losetup --partscan "$device" first
partx --add "$device" 2>/dev/null || true # where the kernel has read the table itself they are there
losetup --detach "$device"
for _ in $(seq 50); do
    [ "$(partitions)" != 0 ] || break
    sleep 0.1
done
expect 'partitions left with --partscan' "$(partitions)" 0
device=
