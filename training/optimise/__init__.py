"""How parameters are found: problems, losses, Levenberg-Marquardt, gradient descent."""
