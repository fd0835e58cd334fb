"""The `Fit Learned Solver` node: fits a solver to the connected model, with forward passes only."""

from __future__ import annotations

from typing import Any

from ..samplers.families import FAMILIES
from .base import SolverName, SolverNode, inputs
from .fit_job import CFG_RANGE, FitWidgets, NodeFit, claim, model_file, path_of_new, upstream_of
from .folder import FOLDER, SOLVERS

__all__ = ["FitLearnedSolver"]

TEACHERS = ("heun", "dpmpp_2m", "ipndm", "euler")


class FitLearnedSolver(SolverNode):
    """A solver file fitted to the connected model.

    The host runs the node again when any solver file changes. It then fits again only if its own file or its inputs
    have changed.
    """

    TITLE = "Fit Learned Solver"
    DESCRIPTION = (
        "Learns a solver for the connected model as it is: quantised, patched with LoRAs, offloaded. Needs only "
        f"forward passes and no more memory than sampling. The new file in models/{FOLDER} appears in the drop-downs "
        "at once. An interrupted fit writes no file."
    )
    RETURN_TYPES = (SolverName("STRING,COMBO"), "IMAGE", "STRING")
    RETURN_NAMES = ("solver", "comparison", "report")
    OUTPUT_TOOLTIPS = (
        "The file's entry in the drop-downs; connects to any solver input.",
        "Held-out samples by the teacher and, for each step count, by the best classical solver and the new one.",
        "Errors compared with the classical solvers', and the path of the file.",
    )
    FUNCTION = "fit"
    OUTPUT_NODE = True

    def __init__(self) -> None:
        self.outputs: dict[str, Any] = {"result": ("",)}  # of the last fit
        self.made_from: Any = None  # the last fit's graph and the fingerprint of its file

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's
        families = "; ".join(f"{name}: {family.about}" for name, family in FAMILIES.items())
        positive = (
            "Prompts to fit with. A batch of prompts is spread over the samples; combined prompts work as in sampling."
        )
        latent = (
            "Only its size matters. Its batch size is the number of samples per model call; 1 needs the least memory."
        )
        samples = (
            "Noise samples to fit to; an additional third is held out for evaluation. 32 to 64 are enough; "
            "256 or more take longer and usually give smaller errors, as steps then use a longer history."
        )
        cfg_range = (
            "How far around cfg the solver should work: 0.33 fits to samples at two thirds of cfg, at cfg and at four "
            "thirds, in turn; 0 fits at cfg alone."
        )
        file_name = (
            f"Name of the new file in models/{FOLDER}, such as my-model or mine/my-model. Empty: the family and the "
            "name of the model file."
        )
        return {
            "required": {
                **inputs(
                    model={"tooltip": "The model to fit to, with all its patches."},
                    positive={"tooltip": positive},
                    negative={},
                    latent={"tooltip": latent},
                    cfg={"tooltip": "CFG to use the solver at; 1 for FLUX and other models with embedded guidance."},
                ),
                "family": (list(FAMILIES), {"tooltip": f"Form of the solver. {families}."}),
                "steps": ("STRING", {"default": "4 6 8", "tooltip": "Step counts to fit, in model calls: 4 6 8."}),
                "samples": ("INT", {"default": 48, "min": 2, "max": 4096, "tooltip": samples}),
                "teacher": (
                    list(TEACHERS),
                    {"tooltip": "Many-step sampler to imitate; heun makes two model calls per step."},
                ),
                "teacher_steps": ("INT", {"default": 30, "min": 2, "max": 1000, "tooltip": "Steps of the teacher."}),
                **inputs(seed={"control_after_generate": False, "tooltip": "Seed of the noise samples."}),
                "file_name": ("STRING", {"default": "", "tooltip": file_name}),
                "overwrite": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Replace an existing file. Off: an existing file is an error."},
                ),
            },
            "optional": {
                **inputs(vae={"tooltip": "Decodes the images; without it, latent previews are shown."}),
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
        """Fits and writes the file; returns its drop-down entry, the comparison and the report."""
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
        picture, table = fit.outputs(f"{path.stem}: same noise, same model", result, ends, vae)
        report = f"{table}\n\nwritten: {path}"
        self.outputs = {"ui": {"text": (report,)}, "result": (entry, picture, report)}
        self.made_from = graph, SOLVERS.fingerprint(entry)
        return self.outputs
