"""Adapters for libraries that Learned Solvers does not need itself; each module imports one of them."""
