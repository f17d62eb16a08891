"""The crash checker behind tools/soak: workloads that keep a journal, kills, and what must be true afterwards."""
