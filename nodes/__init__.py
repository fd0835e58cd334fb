"""ComfyUI nodes: thin wrappers that read the host, call samplers/ and report what ran."""

from .base import add_routes
from .compare import CompareSamplers
from .fit import FitLearnedSolver
from .info import LearnedSolverInfo
from .sampler import LearnedSolver, LearnedSolverKSampler, SetLearnedSolver
from .stock import register

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

_NODES = (
    LearnedSolver,
    LearnedSolverKSampler,
    SetLearnedSolver,
    FitLearnedSolver,
    CompareSamplers,
    LearnedSolverInfo,
)

NODE_CLASS_MAPPINGS = {node.__name__: node for node in _NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: node.TITLE for node in _NODES}

register()
add_routes()
