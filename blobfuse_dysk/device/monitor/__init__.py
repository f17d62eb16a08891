"""The process beside a worker that keeps root's rights, and does little with them."""
