"""The holder of one attachment: owns FUSE connection and worker. Standard library only."""
