"""mount.dysk and umount.dysk."""
