"""The `Fit Learned Solver` node: learns a solver for the model that is wired in, with forward passes only."""

from __future__ import annotations

from typing import Any

from ..samplers.families import FAMILIES
from .base import SolverName, SolverNode, inputs
from .fit_job import CFG_RANGE, FitWidgets, NodeFit, claim, model_file, path_of_new, upstream_of
from .folder import FOLDER, SOLVERS

__all__ = ["FitLearnedSolver"]

TEACHERS = ("heun", "dpmpp_2m", "ipndm", "euler")


class FitLearnedSolver(SolverNode):
    """A solver file fitted to the model that is wired in.

    The host runs it again when any solver file changes. It fits again unless its own file is as it left it, and its
    inputs are.
    """

    TITLE = "Fit Learned Solver"
    DESCRIPTION = (
        "Learns a solver for the model that is wired in, as it is: quantised, patched with LoRAs, offloaded. Forward "
        f"passes only, at the memory that sampling takes. Writes a file into models/{FOLDER}, which is in the "
        "drop-downs at once. An interrupt writes nothing."
    )
    RETURN_TYPES = (SolverName("STRING,COMBO"), "IMAGE", "STRING")
    RETURN_NAMES = ("solver", "comparison", "report")
    OUTPUT_TOOLTIPS = (
        "The file's entry in the drop-downs; may be wired into a solver input.",
        "Held-out starts: the teacher, and per step count the best classical solver and the new one.",
        "Errors per step count next to the classical solvers', and where the file is.",
    )
    FUNCTION = "fit"
    OUTPUT_NODE = True

    def __init__(self) -> None:
        self.outputs: dict[str, Any] = {"result": ("",)}  # of the last fit
        self.made_from: Any = None  # the graph that led to them, and the fingerprint of the file

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        families = "; ".join(f"{name}: {family.about}" for name, family in FAMILIES.items())
        positive = "Prompts to fit with. A batch is spread over the samples; ConditioningCombine works as in sampling."
        latent = "Only its size counts. Its batch is how many samples one model call has: 1 takes the least memory."
        samples = "Noises to fit to; a third as many more judge the result. 32 to 64 are enough; 256 and more take "
        samples += "longer and mostly come nearer, as steps use a longer history then."
        cfg_range = "How far around cfg the solver is to hold: 0.33 fits to samples at two thirds of it, at cfg and at "
        cfg_range += "four thirds, in turn. 0: at cfg alone."
        file_name = f"File to write in models/{FOLDER}, such as my-model or mine/my-model. Empty: the family and the "
        file_name += "model file's name."
        return {
            "required": {
                **inputs(
                    model={"tooltip": "The model to fit to, with all its patches."},
                    positive={"tooltip": positive},
                    negative={},
                    latent={"tooltip": latent},
                    cfg={"tooltip": "The guidance that the solver is to be used at, or near; 1 for FLUX and its like."},
                ),
                "family": (list(FAMILIES), {"tooltip": f"Form of the solver. {families}."}),
                "steps": ("STRING", {"default": "4 6 8", "tooltip": "Model calls to fit for, such as 4 6 8."}),
                "samples": ("INT", {"default": 48, "min": 2, "max": 4096, "tooltip": samples}),
                "teacher": (
                    list(TEACHERS),
                    {"tooltip": "The many-step solver to come close to. heun makes two model calls per step."},
                ),
                "teacher_steps": ("INT", {"default": 30, "min": 2, "max": 1000, "tooltip": "Steps of the teacher."}),
                **inputs(seed={"control_after_generate": False, "tooltip": "Seed of the noises to fit to."}),
                "file_name": ("STRING", {"default": "", "tooltip": file_name}),
                "overwrite": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Replace a file of that name. Off: it is an error if there is one."},
                ),
            },
            "optional": {
                **inputs(vae={"tooltip": "For the comparison's pictures; without it they are latent previews."}),
                "cfg_range": (
                    "FLOAT",
                    {"default": CFG_RANGE, "min": 0.0, "max": 0.9, "step": 0.01, "tooltip": cfg_range},
                ),
            },
            "hidden": {"node_id": "UNIQUE_ID", "prompt": "PROMPT"},
        }

    def fit(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        vae: Any = None,
        node_id: str | None = None,
        prompt: dict[str, Any] | None = None,
        **widgets: Any,
    ) -> dict[str, Any]:
        """Returns the file's drop-down entry, the comparison and the report, after writing the file."""
        prompt, number = prompt or {}, str(node_id)
        graph = upstream_of(prompt, number)
        if self.made_from == (graph, SOLVERS.fingerprint(self.outputs["result"][0])):
            return self.outputs
        settings = FitWidgets(**widgets)
        checkpoint = model_file(prompt, number) or "unknown"
        path, entry = path_of_new(settings.file_name.strip() or f"{settings.family}_{checkpoint}")
        with claim(path, entry, settings.overwrite):
            fit = NodeFit(model, positive, negative, latent, settings, checkpoint, node_id)
            result, ends = fit.run()
            result.solver.save(path, overwrite=settings.overwrite)
        fit.show(f"written: {entry}")
        picture, table = fit.outputs(f"{path.stem}: the same noise, the same model", result, ends, vae)
        report = f"{table}\n\nwritten: {path}"
        self.outputs = {"ui": {"text": (report,)}, "result": (entry, picture, report)}
        self.made_from = graph, SOLVERS.fingerprint(entry)
        return self.outputs
