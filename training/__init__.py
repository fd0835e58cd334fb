"""Fitting solvers and importing published ones; run its scripts as files or with python -m."""
