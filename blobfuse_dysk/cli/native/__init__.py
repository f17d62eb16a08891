"""What of dyskctl is written in C: the program that has a template run what somebody waits for."""
