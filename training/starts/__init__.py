"""Where a fit starts, and the classical solvers that it is compared with."""
