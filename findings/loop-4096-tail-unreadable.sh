#!/usr/bin/env bash
# A loop device with 4096-byte sectors on a file of another length: its size counts the tail, nobody can read it.
#
# Expected: losetup refuses or warns (it does for files that are no multiple of 512), or the device ends with the last
# whole sector.
# Seen: no message. The device says that it is as large as the file, to the byte (blockdev --getsize64), and reading or
# writing the last, partial sector is an I/O error. With 512-byte sectors all of it can be read.
# Version: util-linux 2.38.1-5+deb12u3 (Debian 12), Linux 6.18.44.
# Consequence: a fixed VHD is its content and a footer of 512 bytes. With 4096-byte sectors the footer is on the device
# and out of reach, and what copies the whole device, or looks for a backup GPT at its end, fails there. Make the device
# only as long as whole sectors (sizelimit, or a file that ends there).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
device=
cleanup() {
    [ -z "$device" ] || losetup --detach "$device"
    rm -rf "$work"
}
trap cleanup EXIT

expect() { # what, seen, before
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { printf 'changed: it was %s\n' "$3" >&2 && exit 1; }
}
printf 'util-linux %s, Linux %s\n' "$(dpkg-query --show --showformat '${Version}' util-linux)" "$(uname -r)"
head -c $((1024 * 1024 + 512)) /dev/urandom >disk
for sector in 512 4096; do
    device=$(losetup --find --show --sector-size $sector disk 2>messages)
    expect "sectors of $sector: messages" "$(cat messages)" ''
    expect "sectors of $sector: size" "$(blockdev --getsize64 "$device")" $((1024 * 1024 + 512))
    if cmp --silent "$device" disk; then whole=yes; else whole=no; fi
    if cmp --silent --bytes=$((1024 * 1024)) "$device" disk; then most=yes; else most=no; fi
    expect "sectors of $sector: the first MiB is there" $most yes
    expect "sectors of $sector: all of it is there" $whole "$([ $sector = 512 ] && echo yes || echo no)"
    losetup --detach "$device"
    device=
done
