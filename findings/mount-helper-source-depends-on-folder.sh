#!/usr/bin/env bash
# mount(8) hands a mount helper another source when a file of that name happens to be in the current folder.
#
# Expected: what a helper mounts is named in its own way (host:path, bucket, container/blob), and mount, which cannot know
# it, hands it on as it was typed, from wherever it is called.
# Seen: if the source exists as a path relative to the current folder, the helper gets the absolute path of that, with
# symbolic links resolved; otherwise the source as it was typed. No message.
# Version: mount 2.38.1-5+deb12u3 (Debian 12).
# Consequence: `mount -t TYPE disks/data /mnt` works in one folder and fails, or mounts a local file, in another that has
# disks/data. A helper cannot undo it. Use names that are no relative paths (a scheme, a host with a colon, an option).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
expect() { # what, seen, before
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { printf 'changed: it was %s\n' "$3" >&2 && exit 1; }
}
printf 'mount %s\n' "$(dpkg-query --show --showformat '${Version}' mount)"
mkdir upper target empty full full/disks
touch full/disks/real
ln -s real full/disks/data
cat >upper/mount.probe <<END
#!/bin/sh
echo "\$1" >"$work/source"
exec mount -i -t tmpfs probe "\$2"
END
chmod +x upper/mount.probe
cat >inside <<'END'
set -euo pipefail
mount -t tmpfs none /run/mount
mkdir overlay
mount -t overlay -o "lowerdir=/usr/sbin,upperdir=$PWD/upper,workdir=$PWD/overlay" none /usr/sbin
(cd "$1" && mount -t probe "$2" ../target)
END
seen() { # folder, source
    unshare --mount bash inside "$@"
    rm -rf overlay
    sed "s|$work|...|" source
}
expect 'disks/data, where there is none' "$(seen empty disks/data)" disks/data
expect 'disks/data, where there is a file of that name' "$(seen full disks/data)" .../full/disks/real
expect 'probe:disks/data, there' "$(seen full probe:disks/data)" probe:disks/data
