#!/usr/bin/env bash
# mount -o X-mount.subdir=DIR: exit status 0, and nothing is mounted, or more than DIR.
#
# Expected: the directory DIR of the file system is mounted, or there is an error.
# Seen: that is so where mounts are shared. libmount mounts the whole in a mount namespace of its own and binds DIR to
# the place from in there, so where mounts are private or slaves (a container, unshare(1), a machine without systemd)
# the bind never comes back: success, and an empty directory. And where the type has a /sbin/mount.TYPE, libmount
# neither passes the option on nor carries it out: success, and the root of the file system.
# Version: mount 2.38.1-5+deb12u3 (Debian 12), Linux 6.18.44.
# Consequence: the service that was to have its directory of the disk writes to the disk below, or sees all of it. A
# helper cannot refuse what it is not told of. Look at /proc/self/mountinfo afterwards, or bind-mount the directory.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
expect() { # what, seen, before
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { printf 'changed: it was %s\n' "$3" >&2 && exit 1; }
}
printf 'mount %s, Linux %s\n' "$(dpkg-query --show --showformat '${Version}' mount)" "$(uname -r)"
mkdir upper plain helped content content/part
cat >upper/mount.probe <<'END'
#!/bin/sh
shift 2
echo "$*" >arguments
exec mount -i -t tmpfs probe helped
END
chmod +x upper/mount.probe
truncate -s 16M disk
mkfs.ext4 -q -d content disk
cat >inside <<'END'
set -euo pipefail
mount -t tmpfs none /run/mount
mkdir overlay
mount -t overlay -o "lowerdir=/usr/sbin,upperdir=$PWD/upper,workdir=$PWD/overlay" none /usr/sbin
mount "--make-$1" /
mounted() { findmnt --noheadings --output FSROOT --mountpoint "$PWD/$1" || echo nothing; }
mount -t ext4 -o loop,X-mount.subdir=part disk plain
echo "status $?, mounted $(mounted plain)" >seen.plain
mount -t probe -o X-mount.subdir=part disk helped
echo "status $?, mounted $(mounted helped)" >seen.helped
END
for kind in shared private slave; do
    unshare --mount bash inside $kind
    rm -rf overlay
    case $kind in
        shared) part=/part ;;
        *) part=nothing ;;
    esac
    expect "mounts are $kind, ext4 by itself" "$(cat seen.plain)" "status 0, mounted $part"
    expect "mounts are $kind, with a mount helper" "$(cat seen.helped)" "status 0, mounted /"
    expect "what the helper was told" "$(cat arguments)" "-o rw"
done
