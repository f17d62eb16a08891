"""A process that has holder and worker loaded, and forks holders of them."""
