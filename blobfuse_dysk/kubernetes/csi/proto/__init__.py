"""What goes over the socket: csi.proto, and csi_pb2, which setup.py makes of it when the package is built."""
