#!/usr/bin/env bash
# A fixed VHD is a raw image to qemu-img, and a dynamic VHD or VHDX on a device is nothing at all to blkid.
#
# Expected: `qemu-img convert disk.vhd disk.raw` finds out what its own VHDs are; blkid, asked what is on a device, says
# that there is something when the first bytes are the name of a disk format.
# Seen: qemu-img looks at a file's start only, and a fixed VHD's mark is at its end. So what it has just made it takes
# for raw, and "converts" it into a disk that is 512 bytes longer, with the footer as the last sector (with -f vpc it is
# right). blkid -p exits with 2, the same as for zeros, for all three formats.
# Version: qemu-utils 1:7.2+dfsg-7+deb12u18+b3, util-linux 2.38.1-5+deb12u3 (Debian 12).
# Consequence: always name -f vpc. And "blkid found nothing" is not "nothing there": an image that somebody copied onto
# the device by mistake would be formatted. Ask which pages are allocated as well.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
expect() { # what, seen, before
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { printf 'changed: it was %s\n' "$3" >&2 && exit 1; }
}
unpack() { # Debian package...: into this folder only
    apt-get -qq -o APT::Sandbox::User=root download "$@"
    for package in ./*.deb; do
        dpkg-deb --extract "$package" root
    done
    export LD_LIBRARY_PATH=$work/root/lib/x86_64-linux-gnu:$work/root/usr/lib/x86_64-linux-gnu
}

unpack qemu-utils libgmp10 libgnutls30 libhogweed6 libnettle8 libnuma1 liburing2 libaio1 libglib2.0-0 libfuse3-3
image() { root/usr/bin/qemu-img "$@"; }
form() { image info --output json "$1" | sed -n 's/.*"format": "\(.*\)",*/\1/p' | tail -n 1; }
image --version | sed -n 1p
printf 'util-linux %s\n' "$(dpkg-query --show --showformat '${Version}' util-linux)"
image create -q -f vpc -o subformat=fixed,force_size=on fixed.vhd 16M
image create -q -f vpc dynamic.vhd 16M
image create -q -f vhdx disk.vhdx 16M
expect "dynamic VHD, qemu-img" "$(form dynamic.vhd)" vpc
expect "VHDX, qemu-img" "$(form disk.vhdx)" vhdx
expect "fixed VHD, qemu-img" "$(form fixed.vhd)" raw
image convert -O raw fixed.vhd guessed.raw
image convert -f vpc -O raw fixed.vhd told.raw
expect "the fixed VHD converted, format guessed" "$(stat --format %s guessed.raw)" $((16 * 1024 * 1024 + 512))
expect "the last sector of that begins with" "$(tail -c 512 guessed.raw | head -c 8)" conectix
expect "the fixed VHD converted, format named" "$(stat --format %s told.raw)" $((16 * 1024 * 1024))
truncate -s 16M zeros
for file in zeros fixed.vhd dynamic.vhd disk.vhdx; do
    expect "blkid -p $file: exit status" "$(blkid -p "$file" >/dev/null && echo 0 || echo $?)" 2
done
