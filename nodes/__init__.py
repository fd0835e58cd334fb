"""ComfyUI nodes. Thin: they read the host, call samplers/ and say what they did."""

from .sampler import LearnedSolver

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

_NODES = (LearnedSolver,)

NODE_CLASS_MAPPINGS = {node.__name__: node for node in _NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: node.TITLE for node in _NODES}
