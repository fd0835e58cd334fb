"""Comparison of solvers at equal network calls: measure, draw, write."""
