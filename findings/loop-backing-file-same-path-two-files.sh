#!/usr/bin/env bash
# Two loop devices show the same backing_file in /sys and losetup --list, and have two different files behind them.
#
# Expected: the path in /sys/block/loopN/loop/backing_file names the file for whoever reads it, or says that it cannot.
# Seen: the path is the one in the mount namespace that the file was opened in. Loop devices belong to the whole machine,
#     so with a container (or any other mount namespace) that has a mount of its own at that path, two devices show one
#     path, and a reader finds a third file, or none, there. Nothing marks it; "(deleted)" is not added either. Only the
#     device and inode numbers of LOOP_GET_STATUS64 (losetup's BACK-MAJ:MIN and BACK-INO) tell them apart, and
#     `losetup --associated FILE`, which compares these.
# Version: Linux 6.18, util-linux 2.38.1.
# Consequence: who looks for "his" loop device by path, to detach or to reuse it, takes that of another container. Compare
# device and inode numbers with those of an open descriptor.
set -euo pipefail
work=$(mktemp -d)
holders=()
devices=()
cleanup() {
    for device in "${devices[@]}"; do
        losetup --detach "$device" || true
    done
    for pid in "${holders[@]}"; do
        kill "$pid" && wait "$pid" || true
    done
    rm -rf "$work"
}
trap cleanup EXIT

expect() { # what, seen, before
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { echo "changed: it was $3"; exit 1; }
}

uname -sr
losetup --version
mkdir "$work/data"
truncate --size 1M "$work/data/disk" # what this namespace has at that path
for name in one two; do
    # The namespace lives as long as the process; the tmpfs is seen by no other.
    unshare --mount --propagation private sh -c '
        mount -t tmpfs none "$1/data" && truncate --size "$3" "$1/data/disk" &&
            losetup --find --show "$1/data/disk" >"$1/$2.tmp" && mv "$1/$2.tmp" "$1/$2" && exec sleep 600
    ' sh "$work" "$name" "$([ $name = one ] && echo 2M || echo 3M)" &
    holders+=($!)
    for _ in $(seq 100); do
        [ ! -s "$work/$name" ] || break
        sleep 0.1
    done
    devices+=("$(cat "$work/$name")")
done

path() { cat "/sys/block/${1#/dev/}/loop/backing_file"; }
numbers() { losetup --list --noheadings --raw --output BACK-MAJ:MIN,BACK-INO "$1"; }
expect "path of the first" "$(path "${devices[0]}")" "$work/data/disk"
expect "path of the second" "$(path "${devices[1]}")" "$work/data/disk"
expect "sizes of the three files of that path" \
    "$(blockdev --getsize64 "${devices[@]}" | tr '\n' ' ')$(stat --format %s "$work/data/disk")" "2097152 3145728 1048576"
differ=no
[ "$(numbers "${devices[0]}")" = "$(numbers "${devices[1]}")" ] || differ=yes
expect "device and inode numbers differ" "$differ" yes
expect "devices that losetup finds for the file here" "$(losetup --associated "$work/data/disk" | wc -l)" 0
