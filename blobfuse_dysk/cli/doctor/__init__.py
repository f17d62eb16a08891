"""dyskctl doctor: what is wrong with this machine, an account, a disk."""
