"""A real Kubernetes cluster on this one machine, without a container engine or a registry: see tools/cluster --help."""
