#!/usr/bin/env bash
# btrfs over two disks, and a copy of both on the same machine: mounting one of the originals takes a disk of the copy.
#
# Expected: mount fails because of the duplicate (as xfs does), or keeps the two apart, as btrfs itself has done since
# Linux 6.7 where the file system is on one disk.
# Seen: the kernel looks for the other disks by UUID and number among those it was told of (btrfs device scan; udev does
# that for each disk that appears), and the one it was told of last counts. So the original's first disk is mounted with
# the copy's second, exit status 0 and no message, and each of the two pairs is left with one disk of the new generation
# and one of the old. With -o device= for each disk it is the right pair.
# Version: btrfs-progs 6.2-1+deb12u2 (Debian 12), Linux 6.18.44.
# Consequence: attaching clones or restored snapshots of such disks beside the originals damages both at the next mount.
# Attach them to another machine, or name all disks with device=, or forget the copies before (btrfs device scan --forget).
set -euo pipefail
# In a mount namespace of its own, since one that is made meanwhile would keep copies of these mounts, and the disks busy.
[ "${1-}" = inside ] || exec unshare --mount "$0" inside
work=$(mktemp -d)
devices=()
cleanup() {
    ! mountpoint --quiet "$work/fs" || umount "$work/fs"
    ! mountpoint --quiet "$work/copy" || umount "$work/copy"
    for device in "${devices[@]}"; do
        btrfs device scan --forget "$device" >messages 2>&1 || true
        losetup --detach "$device"
    done
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
expect() { # what, seen, before
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { printf 'changed: it was %s\n' "$3" >&2 && exit 1; }
}
attach() { # file...: adds to `devices`
    for file; do
        devices+=("$(losetup --find --show "$file")")
    done
}
copy_both() { # and tell the kernel of the copies, as udev does
    cp --sparse=always first first-copy
    cp --sparse=always second second-copy
    attach first-copy second-copy
    btrfs device scan "${devices[4]}" >messages
    btrfs device scan "${devices[5]}" >messages
}
names() { # the files behind the disks that fs has
    btrfs filesystem show fs | sed -n 's/.*path //p' | while read -r device; do
        losetup --noheadings --list --output BACK-FILE "$device" | sed 's/.*\///'
    done | sort | xargs
}
generation() { btrfs inspect-internal dump-super "$1" | awk '$1 == "generation" { print $2 }'; }

btrfs --version
uname -r
mkdir fs copy
truncate --size 256M single first second
mkfs.btrfs --quiet single >messages 2>&1
cp --sparse=always single single-copy
attach single single-copy
btrfs device scan "${devices[1]}" >messages
mount "${devices[0]}" fs
expect 'one disk: what is mounted' "$(names)" single
expect 'one disk: the copy can be mounted beside it' "$(mount "${devices[1]}" copy && echo yes)" yes
umount copy
umount fs

attach first second
mkfs.btrfs --quiet --data raid0 --metadata raid1 "${devices[@]:2:2}" >messages 2>&1
mount "${devices[2]}" fs
expect 'two disks, no copy: what is mounted' "$(names)" 'first second'
umount fs
copy_both
mount -o "device=${devices[2]},device=${devices[3]}" "${devices[2]}" fs
expect 'beside a copy, both named: what is mounted' "$(names)" 'first second'
umount fs
for device in "${devices[@]:4:2}"; do
    btrfs device scan --forget "$device" >messages 2>&1 || true # not there, if the originals came after it
    losetup --detach "$device"
done
devices=("${devices[@]:0:4}")
copy_both
mount "${devices[2]}" fs 2>messages
expect 'messages of mount' "$(cat messages)" ''
expect 'beside a copy, one named: what is mounted' "$(names)" 'first second-copy'
echo new >fs/new
umount fs
expect 'the same generation: first and second' "$([ "$(generation first)" = "$(generation second)" ] || echo no)" no
expect 'first and second-copy' "$([ "$(generation first)" = "$(generation second-copy)" ] && echo yes)" yes
