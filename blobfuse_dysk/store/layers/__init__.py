"""The layers of the block stack, one a file; store/stack.py alone knows their order."""
