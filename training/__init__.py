"""Fitting solvers and importing published ones; run its scripts as files or with python -m."""

from .fit import FitResult, Peer, StepReport, fit_solver
from .gauss_newton import GaussNewton
from .gradient import GradientDescent

__all__ = ["FitResult", "GaussNewton", "GradientDescent", "Peer", "StepReport", "fit_solver"]
