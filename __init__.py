"""Learned Solvers: few-call ODE solvers for diffusion models, with coefficients learned for each model."""

from importlib.util import find_spec

if __package__ and find_spec("comfy"):  # ComfyUI; not the tests, the trainer or the WebUI
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
else:
    NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = {}, {}

WEB_DIRECTORY = "./web" if NODE_CLASS_MAPPINGS else None

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
