"""Fitting solvers and importing published ones; run its scripts as files or with python -m."""

from .claim import claimed
from .cost import most_calls
from .fit import fit_solver
from .gauss_newton import GaussNewton
from .gradient import GradientDescent
from .report import FitResult, Peer, StepReport, better_peers, table_of
from .scan import candidate_named
from .teacher import TEACHERS, Teacher

__all__ = [
    "TEACHERS",
    "FitResult",
    "GaussNewton",
    "GradientDescent",
    "Peer",
    "StepReport",
    "Teacher",
    "better_peers",
    "candidate_named",
    "claimed",
    "fit_solver",
    "most_calls",
    "table_of",
]
