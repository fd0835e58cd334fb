"""The start of a fit, and the classical solvers that it is compared with."""
