"""What the kernel offers: /dev/fuse, loop devices, limits and locks of a process."""
