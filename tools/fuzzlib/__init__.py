"""Fuzzing of what is written in C: see __main__.py."""
