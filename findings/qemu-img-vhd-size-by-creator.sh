#!/usr/bin/env bash
# qemu-img: how large a fixed VHD is depends on the four letters that say which program made it.
#
# Expected: the footer has the disk's size in bytes; the geometry beside it is for BIOSes of the past.
# Seen: for creators on a list of QEMU's own (`win `, `qem2`, `d2v `, `tap`, `CTXS`) the size is what the footer says.
# For all others, `vbox`, `vpc ` and your own name among them, it is cylinders x heads x sectors, which the format's own
# algorithm rounds down: here 256 KiB of the end are not there, without a word.
# Version: qemu-utils 1:7.2+dfsg-7+deb12u18+b3 (Debian 12).
# Consequence: who writes VHD footers and puts their own name in loses the end of the disk (a backup GPT, the last file
# system blocks) at the next conversion. Say `win `, or use a size that the geometry can express.
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
root/usr/bin/qemu-img --version | sed -n 1p
vhd() { # creator: a fixed VHD of 1 GiB that it made
    python3 - "$1" <<'END'
import struct
import sys

size = 1 << 30
footer = bytearray(512)
# cookie, features, version, offset, time, creator, its version, its system, sizes, geometry 2080/16/63, fixed
head = struct.pack(
    ">8sIIQI4sI4sQQHBBI",
    b"conectix", 2, 0x10000, 2**64 - 1, 0, sys.argv[1].encode(), 0x10000, b"Wi2k", size, size, 2080, 16, 63, 2,
)
footer[: len(head)] = head
footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
with open("disk.vhd", "wb") as file:
    file.truncate(size)
    file.seek(size)
    file.write(footer)
END
}
for creator in 'win ' qem2 'd2v ' tap CTXS vbox 'vpc ' mine; do
    vhd "$creator"
    case $creator in
        vbox | 'vpc ' | mine) size=$((2080 * 16 * 63 * 512)) ;;
        *) size=$((1 << 30)) ;;
    esac
    seen=$(root/usr/bin/qemu-img info -f vpc --output json disk.vhd | sed -n 's/.*"virtual-size": \([0-9]*\),*/\1/p')
    expect "creator '$creator': size" "$seen" $size
done
