"""The module in C of device/worker/channel.py, where there was a compiler."""
