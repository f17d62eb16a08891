#!/usr/bin/env bash
# mkfs.ext4 makes a file system over any other one without being forced, unless a person sits at a terminal.
#
# Expected: mkfs of a device that has a file system or a partition table fails without -F, as with mkfs.xfs and
# mkfs.btrfs, whose -f is for that.
# Seen: mkfs.ext4 looks for old content only if standard input and output are terminals (then it asks). In a script, in
# a service, in a CSI driver it overwrites ext4, xfs, btrfs and partition tables at once and exits with 0. mkfs.xfs and
# mkfs.btrfs refuse in the same place.
# Version: e2fsprogs 1.47.0-2, xfsprogs 6.1.0-1, btrfs-progs 6.2-1+deb12u2 (Debian 12).
# Consequence: "format if blank" for ext4 must find out by itself that the disk is blank; a race or a wrong device name
# is not stopped by mkfs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
expect() { # what, seen, before
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { printf 'changed: it was %s\n' "$3" >&2 && exit 1; }
}
for package in e2fsprogs xfsprogs btrfs-progs; do
    printf '%s %s\n' "$package" "$(dpkg-query --show --showformat '${Version}' "$package")"
done
fresh() { # type: a disk with that on it
    rm -f disk
    truncate -s 400M disk
    if [ "$1" = partitions ]; then
        echo ',,' | sfdisk --quiet disk
    else
        "mkfs.$1" -q disk >/dev/null 2>&1
    fi
}
outcome() { # command...: what it did to the disk
    if "$@" </dev/null >/dev/null 2>&1; then echo overwritten; else echo refused; fi
}
fresh ext4
asked=$(script --quiet --command "mkfs.ext4 -q disk" /dev/null </dev/null | grep --count 'Proceed anyway?')
expect "at a terminal, questions of mkfs.ext4 over ext4" "$asked" 1
for old in ext4 xfs btrfs partitions; do
    fresh $old
    expect "mkfs.xfs over $old" "$(outcome mkfs.xfs -q disk)" refused
    expect "mkfs.btrfs over $old" "$(outcome mkfs.btrfs -q disk)" refused
    expect "mkfs.ext4 over $old" "$(outcome mkfs.ext4 -q disk)" overwritten
    expect "what is on it now" "$(blkid -p -s TYPE -o value disk)" ext4
done
