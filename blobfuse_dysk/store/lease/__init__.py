"""Taking, keeping and giving up a disk: lease and epoch."""
