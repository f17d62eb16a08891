"""What can be done to a disk of an account. Synchronous; it prints nothing: front ends do."""
