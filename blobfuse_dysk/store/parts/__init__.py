"""What layers are built from, and use together."""
