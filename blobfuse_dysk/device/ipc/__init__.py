"""What attaching process, holder and worker say to each other, and what stands in /run/dysk."""
