"""Fitting solvers and importing published ones; run its scripts as files or with python -m."""

from .cost import most_calls
from .data.teacher import TEACHERS, Teacher
from .effort import EFFORTS
from .fit import fit_solver, run_fit
from .job import FitJob, FitSettings
from .optimise.gradient import GradientDescent
from .optimise.levenberg_marquardt import LevenbergMarquardt
from .report import FitResult, Peer, StepReport, table_of
from .store.output import claimed

__all__ = [
    "EFFORTS",
    "TEACHERS",
    "FitJob",
    "FitResult",
    "FitSettings",
    "GradientDescent",
    "LevenbergMarquardt",
    "Peer",
    "StepReport",
    "Teacher",
    "claimed",
    "fit_solver",
    "most_calls",
    "run_fit",
    "table_of",
]
