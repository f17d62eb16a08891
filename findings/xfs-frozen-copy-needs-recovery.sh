#!/usr/bin/env bash
# A copy of a disk that was made under fsfreeze: ext4 and btrfs can be mounted from a read-only device, xfs cannot.
#
# Expected: a frozen file system is complete on the disk, so its copy needs no recovery, whatever kind it is.
# Seen: freezing ext4 leaves its journal clean, and btrfs has none that matters. xfs leaves a record in its log by
# intention, so that the copy will be recovered (which frees files that were deleted while open): on a read-only device
# mount -o ro fails, and only says that it cannot be mounted read-only. With norecovery it is mounted, and what was
# written before the freeze is there.
# Version: xfsprogs 6.1.0-1, e2fsprogs 1.47.0-2, btrfs-progs 6.2-1+deb12u2 (Debian 12), Linux 6.18.44.
# Consequence: a check of snapshots that mounts them read-only needs norecovery for xfs (and nouuid, beside the
# original); the failure says nothing about the snapshot. On a writable device the same mount writes to it, even with ro.
set -euo pipefail
# In a mount namespace of its own, since one that is made meanwhile would keep copies of these mounts, and the disks busy.
[ "${1-}" = inside ] || exec unshare --mount "$0" inside
work=$(mktemp -d)
source='' # the loop devices of the disk and of its copy
device=''
cleanup() {
    if mountpoint --quiet "$work/fs"; then
        fsfreeze --unfreeze "$work/fs" 2>"$work/messages" || true
        umount "$work/fs"
    fi
    ! mountpoint --quiet "$work/copy" || umount "$work/copy"
    [ -z "$source" ] || losetup --detach "$source"
    [ -z "$device" ] || losetup --detach "$device"
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
expect() { # what, seen, before
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { printf 'changed: it was %s\n' "$3" >&2 && exit 1; }
}
mounted() { # options: what the copy then has, or the status
    if mount -o "$1" "$device" copy 2>messages; then
        cat copy/word
        umount copy
    else
        echo "status $?"
    fi
}
dpkg-query --show xfsprogs e2fsprogs btrfs-progs
uname -r
mkdir fs copy
for kind in ext4 btrfs xfs; do
    truncate --size 320M disk
    "mkfs.$kind" -q disk >messages 2>&1 || { cat messages >&2 && exit 1; }
    source=$(losetup --find --show disk)
    mount "$source" fs
    echo here >fs/word
    fsfreeze --freeze fs
    cp --sparse=always disk frozen
    fsfreeze --unfreeze fs
    umount fs
    losetup --detach "$source"
    source=
    device=$(losetup --find --show --read-only frozen)
    case $kind in
        xfs)
            expect 'xfs: mounted with ro' "$(mounted ro)" 'status 32'
            expect 'what mount says begins with' "$(sed -n 's/.*: \(cannot mount\) .*\(read-only\).*/\1 \2/p' messages)" \
                'cannot mount read-only'
            expect 'xfs: mounted with ro,norecovery' "$(mounted ro,norecovery)" here
            ;;
        *) expect "$kind: mounted with ro" "$(mounted ro)" here ;;
    esac
    losetup --detach "$device"
    device=
    rm disk frozen
done
