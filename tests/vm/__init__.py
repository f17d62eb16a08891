"""The project in virtual machines that boot, shut down and lose power. Not part of tools/test: run tools/vm."""
