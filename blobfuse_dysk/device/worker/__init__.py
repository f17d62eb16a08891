"""The worker of one attachment: serves FUSE from the block layer."""
