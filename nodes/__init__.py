"""ComfyUI nodes: thin wrappers that read the host, call samplers/ and report what ran."""

import logging
from pathlib import Path

from .base import active_copy, add_routes
from .compare import CompareSamplers
from .experts import JoinExperts
from .fit import FitLearnedSolver
from .info import LearnedSolverInfo
from .sampler import LearnedSolver, LearnedSolverKSampler, SetLearnedSolver
from .stock import register

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

_log = logging.getLogger("learned_solvers")
_NODES = (
    LearnedSolver,
    LearnedSolverKSampler,
    SetLearnedSolver,
    JoinExperts,
    FitLearnedSolver,
    CompareSamplers,
    LearnedSolverInfo,
)

NODE_CLASS_MAPPINGS: dict[str, type] = {}
"""Empty in a second copy of the pack: two would register the same route, which ends ComfyUI's start."""

if (active := active_copy()) is None:
    NODE_CLASS_MAPPINGS.update({node.__name__: node for node in _NODES})
    register()
    add_routes()
else:
    here = Path(__file__).parents[1]
    _log.warning("Learned Solvers is in custom_nodes twice: %s is active, %s is not; remove one of them", active, here)

NODE_DISPLAY_NAME_MAPPINGS = {name: node.TITLE for name, node in NODE_CLASS_MAPPINGS.items()}
