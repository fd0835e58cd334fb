"""Learned solvers in diffusers: a scheduler for its pipelines, and its pipelines as denoisers, to fit solvers for them.

Needs diffusers: `pip install -e ".[diffusers]"` in a clone.
"""

from .denoiser import PipelineDenoiser
from .scheduler import LearnedSolverScheduler

__all__ = ["LearnedSolverScheduler", "PipelineDenoiser"]
