"""ComfyUI nodes. Thin: they read the host, call samplers/ and say what they did."""

from .compare import CompareSamplers
from .fit import FitLearnedSolver
from .info import LearnedSolverInfo
from .ksampler import LearnedSolverKSampler
from .registration import register
from .routes import add_routes
from .sampler import LearnedSolver
from .set_solver import SetLearnedSolver

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
