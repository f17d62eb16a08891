"""The CSI driver `csi-dysk`: Kubernetes asks it, over a Unix socket, for volumes, snapshots and mounts."""
