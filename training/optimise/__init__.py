"""Optimisation of the parameters: problems, losses, Levenberg-Marquardt, gradient descent."""
