"""The models that solvers are fitted for."""
