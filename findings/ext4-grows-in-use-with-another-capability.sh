#!/usr/bin/env bash
# Growing a mounted ext4 takes CAP_SYS_RESOURCE; making, mounting and all else does not, nor does growing xfs or btrfs.
#
# Expected: who may mount a file system may grow it: CAP_SYS_ADMIN is enough, and the same for all kinds.
# Seen: without CAP_SYS_RESOURCE, resize2fs of a mounted ext4 ends with "Permission denied" and changes nothing, while
# xfs_growfs and `btrfs filesystem resize` work, and so does resize2fs of the same ext4 once it is unmounted and checked
# (the ioctl asks for that capability since it hands out reserved blocks).
# Version: e2fsprogs 1.47.0-2, xfsprogs 6.1.0-1, btrfs-progs 6.2-1+deb12u2, util-linux 2.38.1-5+deb12u3 (Debian 12),
# Linux 6.18.44.
# Consequence: a node driver with a list of capabilities instead of `privileged` does all its work until somebody's first
# growth of an ext4 volume, and tests with xfs do not show it. List CAP_SYS_RESOURCE, or grow before mounting.
set -euo pipefail
# In a mount namespace of its own, since one that is made meanwhile would keep copies of these mounts, and the disks busy.
[ "${1-}" = inside ] || exec unshare --mount "$0" inside
work=$(mktemp -d)
device=
cleanup() {
    ! mountpoint --quiet "$work/fs" || umount "$work/fs"
    [ -z "$device" ] || losetup --detach "$device"
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
expect() { # what, seen, before
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { printf 'changed: it was %s\n' "$3" >&2 && exit 1; }
}
without() { # a command, without CAP_SYS_RESOURCE
    setpriv --inh-caps=-sys_resource --bounding-set=-sys_resource "$@" >messages 2>&1
}
grown() { # command...: whether it succeeds, and the file system has more blocks then
    before=$(stat --file-system --format %b fs)
    if ! without "$@"; then
        echo no
    elif [ "$(stat --file-system --format %b fs)" -gt "$before" ]; then
        echo yes
    else
        echo 'no, with success'
    fi
}
dpkg-query --show e2fsprogs xfsprogs btrfs-progs util-linux
uname -r
mkdir fs
for kind in xfs btrfs ext4; do
    rm -f disk
    truncate --size 320M disk
    device=$(losetup --find --show disk)
    without "mkfs.$kind" -q "$device" || { cat messages >&2 && exit 1; }
    without mount "$device" fs
    truncate --size 640M disk
    losetup --set-capacity "$device"
    case $kind in
        xfs) expect 'xfs, mounted, grows' "$(grown xfs_growfs fs)" yes ;;
        btrfs) expect 'btrfs, mounted, grows' "$(grown btrfs filesystem resize max fs)" yes ;;
        ext4)
            expect 'ext4, mounted, grows' "$(grown resize2fs "$device")" no
            expect 'what resize2fs says' "$(grep -o 'Permission denied' messages)" 'Permission denied'
            blocks=$(stat --file-system --format %b fs)
            umount fs
            without e2fsck -fp "$device" || { cat messages >&2 && exit 1; }
            without resize2fs "$device"
            without mount "$device" fs
            expect 'ext4, unmounted, grows' "$([ "$(stat --file-system --format %b fs)" -gt "$blocks" ] && echo yes)" yes
            ;;
    esac
    umount fs
    losetup --detach "$device"
    device=
done
