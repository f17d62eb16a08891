#!/usr/bin/env bash
# s3backer: fsync on its file returns before anything is stored.
#
# Expected: with the block cache, which delays writes (by 250 ms unless told otherwise), fsync is the moment that waits
# for them, as a file system on it, or a database in that, relies on.
# Seen: fsync, and sync of the whole file system, return at once with success, with no block stored; when s3backer is
# killed then, all of it is gone. The blocks are stored when the delay is over, whatever was asked for meanwhile.
# Version: s3backer 1.5.4-2+b1, libfuse2 2.9.9-6+b1 (Debian 12), in its test mode: a directory for a bucket.
# Consequence: nothing on it is durable unless --blockCacheSync makes every write wait. Numbers of such a device for
# fsync-bound work are not comparable with those of one that keeps the promise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
program=
cleanup() {
    [ -z "$program" ] || { kill -9 "$program" && wait "$program"; } 2>/dev/null || true
    ! mountpoint --quiet disk || umount disk
    rm -rf "$work"
}
trap cleanup EXIT

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

unpack s3backer libfuse2
root/usr/bin/s3backer --version 2>&1 | sed -n 1p
mkdir bucket disk
start() { # option...
    root/usr/bin/s3backer --test --size=1m --blockSize=4k --listBlocks "$@" -f "$work/bucket" "$work/disk" >log 2>&1 &
    program=$!
    for _ in $(seq 300); do
        ! [ -e disk/file ] || return 0
        sleep 0.1
    done
    cat log
    exit 1
}
stop() {
    kill -9 "$program"
    wait "$program" 2>/dev/null || true
    program=
    umount disk
}
put() { dd if=/dev/urandom of=disk/file bs=4k count=4 conv=notrunc,fsync status=none && sync --file-system disk/file; }
stored() { find bucket -type f | wc -l; }

start --blockCacheWriteDelay=600000
put
expect "blocks stored when fsync and sync have returned" "$(stored)" 0
stop
expect "blocks stored when s3backer has been killed" "$(stored)" 0
start --blockCacheWriteDelay=0 --blockCacheSync
put
expect "the same with --blockCacheSync" "$(stored)" 4
stop
