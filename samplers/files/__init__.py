"""Solver files: read, checked, written and listed."""
