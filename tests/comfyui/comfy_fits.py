"""A prompt that fits a solver for a tiny model, and the server's solver files."""

from __future__ import annotations

from comfy_prompts import Prompt, model_nodes, node


def folder(server):
    return server.base / "models" / "solver_weights"


def written(server):
    return {path for path in folder(server).rglob("*") if path.is_file()}


def fit(server, model, *, name, batch=4, size=32, **widgets) -> Prompt:
    """A prompt that fits, with the report and the picture as outputs."""
    prompt = model_nodes(server, model, width=size, height=size, batch=batch)
    settings = {"cfg": 2.0, "family": "dyweight", "steps": "2", "samples": 3, "teacher": "dpmpp_2m", "teacher_steps": 6}
    settings |= {"seed": 3, "file_name": name, "overwrite": False, "cfg_range": 0.0, **widgets}
    wires = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent": ["4", 0]}
    prompt["fit"] = node("FitLearnedSolver", **wires, **settings)
    prompt["picture"] = node("SaveImage", images=["fit", 1], filename_prefix=name.replace("/", "-") or "empty")
    return prompt
