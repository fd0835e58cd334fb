"""Solvers compared at equal network calls: measured, drawn, written."""
