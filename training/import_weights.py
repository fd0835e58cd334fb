"""Turn published solver parameters into solver files.

    python training/import_weights.py FILE ... --output solver_weights [--overwrite]

Reads the papers' figures as JSON, the DyWeight authors' FLUX .pt files (torch.load with weights_only) and their .pkl
files (training/inert_pickle.py: nothing of a pickle is executed). One solver file per family and model; where two
tables share a count of network calls, the one whose loss the paper's code has is kept.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if not __package__:  # run as a file
    import _as_package

    __package__ = _as_package.TRAINING

from ..samplers.card import Card, StepCard
from ..samplers.schedules import Grid
from ..samplers.solver_file import Solver
from ..samplers.version import VERSION
from .inert_pickle import LARGEST, read_inert_pickle

__all__ = ["Table", "assemble", "main", "read_tables"]

_LOSSES = ("l2", "l1", "huber", "inception", "trajectory")  # that the papers' released code has
_DYWEIGHT = {
    "source": "https://github.com/Westlake-AGI-Lab/DyWeight",
    "citation": "DyWeight: Dynamic Gradient Weighting for Few-Step Diffusion Sampling, arXiv 2603.11607",
    "licence": "none named by its authors; figures published with the paper (CC BY 4.0)",
}
_DS = {
    "source": "https://github.com/MCG-NJU/NeuralSolver",
    "citation": "Differentiable Solver Search for Fast Diffusion Sampling, arXiv 2505.21114 (ICML 2025)",
    "licence": "MIT",
}
_FLUX_GRID = Grid("flux_shift", {"base_tokens": 256, "base_mu": 0.5, "max_tokens": 4096, "max_mu": 1.15})


def _pixel(checkpoint: str, size: int) -> dict[str, Any]:
    facts = {"prediction": "edm", "model_family": "EDM", "checkpoint": checkpoint, "resolution": f"{size}x{size}"}
    return {**_DYWEIGHT, **facts, "guidance": "none"}


# What the tables' sources say about the models, by the sources' own names for them.
MODELS: Mapping[str, dict[str, Any]] = {
    "cifar10": {"name": "dyweight_cifar10", **_pixel("edm-cifar10-32x32-uncond-vp", 32)},
    "ffhq": {"name": "dyweight_ffhq64", **_pixel("edm-ffhq-64x64-uncond-vp", 64)},
    "afhqv2": {"name": "dyweight_afhqv2-64", **_pixel("edm-afhqv2-64x64-uncond-vp", 64)},
    "imagenet64": {"name": "dyweight_imagenet64", **_pixel("edm-imagenet-64x64-cond-adm", 64)},
    "lsun_bedroom_ldm": {
        "name": "dyweight_lsun-bedroom-ldm",
        "prediction": "vp",
        "model_family": "LDM",
        "checkpoint": "latent diffusion LSUN Bedroom 256 (betas 0.0015 to 0.0195)",
        "resolution": "256x256",
        "guidance": "none",
        **_DYWEIGHT,
    },
    "ms_coco": {
        "name": "dyweight_sd15",
        "prediction": "vp",
        "model_family": "SD15",
        "checkpoint": "v1-5-pruned-emaonly",
        "resolution": "512x512",
        "guidance": "7.5",
        **_DYWEIGHT,
    },
    "flux1-dev": {
        "name": "dyweight_flux1-dev",
        "prediction": "flow",
        "model_family": "Flux",
        "checkpoint": "FLUX.1-dev",
        "resolution": "512x512",
        "guidance": "3.5 (distilled, CFG 1)",
        "note": "The last row sums to 0.76-0.78: the fit's squared error shrinks the end of the path.",
        **_DYWEIGHT,
    },
    "flow-sit": {
        "name": "ds_flow-sit",
        "prediction": "flow",
        "model_family": "SiT",
        "checkpoint": "SiT-XL/2 256x256",
        "resolution": "256x256",
        "guidance": "1 (shown at 1.375)",
        "transferable": True,
        **_DS,
    },
    "flow-flowdcn": {
        "name": "ds_flow-flowdcn",
        "prediction": "flow",
        "model_family": "FlowDCN",
        "checkpoint": "FlowDCN-B/2 256x256",
        "resolution": "256x256",
        "guidance": "1 (shown at 1.375)",
        "note": "Coefficients down to -8.2: unsafe in low precision and for image-to-image; prefer ds_flow-sit.",
        **_DS,
    },
    "vp-dit": {
        "name": "ds_vp-dit",
        "prediction": "vp",
        "model_family": "DiT",
        "checkpoint": "DiT-XL/2 256x256",
        "resolution": "256x256",
        "guidance": "1 (shown at 1.5)",
        "transferable": True,
        **_DS,
    },
}


@dataclass(frozen=True)
class Table:
    """One published table: parameters for one count of network calls.

    Args:
        model: A key of MODELS.
        nfe: Network calls.
        tensors: The family's parameters.
        step: Its card entry.
    """

    model: str
    nfe: int
    tensors: Mapping[str, Tensor]
    step: StepCard


def read_tables(path: Path) -> list[Table]:
    """Returns the tables of a .json, .pt or .pkl file.

    Raises:
        ValueError: Unknown kind of file, or its content breaks a rule; the message names the file.
    """
    readers = {".json": _read_json, ".pt": _read_flux_checkpoint, ".pkl": _read_snapshot}
    if path.suffix not in readers:
        raise ValueError(f"{path}: must be one of {', '.join(readers)}; name the published file itself")
    try:
        return readers[path.suffix](path)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, RecursionError, OverflowError) as error:
        if str(path) in str(error):
            raise
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"{path}: not the published layout, {reason}; name the published file itself") from error


def assemble(tables: Iterable[Table], day: str) -> list[Solver]:
    """Returns one solver per model; of two tables for one count, the one whose loss can be reproduced."""
    solvers = []
    tables = list(tables)
    if unknown := {table.model for table in tables} - set(MODELS):
        raise ValueError(
            f"no facts are known about {', '.join(sorted(unknown))}: add them to MODELS in import_weights.py"
        )
    for model, facts in MODELS.items():
        kept: dict[int, Table] = {}
        for table in (t for t in tables if t.model == model):
            rival = kept.get(table.nfe)
            if rival is None or (rival.step.loss not in _LOSSES and table.step.loss in _LOSSES):
                kept[table.nfe] = table
        if kept:
            family = facts["name"].partition("_")[0]
            card = Card(
                family=family,
                steps={nfe: t.step for nfe, t in kept.items()},
                date=day,
                package_version=VERSION,
                **{k: v for k, v in facts.items() if k != "name"},
            )
            solvers.append(Solver(facts["name"], card, {nfe: t.tensors for nfe, t in kept.items()}))
    return solvers


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, help="folder for the solver files")
    parser.add_argument("--overwrite", action="store_true", help="replace solver files that exist")
    parser.add_argument("--date", default=date.today().isoformat(), help="date written in the cards")
    args = parser.parse_args(arguments)
    try:
        solvers = assemble([table for path in args.files for table in read_tables(path)], args.date)
        there = [p for s in solvers if (p := args.output / f"{s.name}.safetensors").exists()]
        if there and not args.overwrite:
            raise ValueError(f"{there[0]} exists already: choose another --output, or add --overwrite")
        for solver in solvers:
            path = solver.save(args.output / f"{solver.name}.safetensors", overwrite=args.overwrite)
            print(f"{path}: {', '.join(map(str, solver.steps))} steps")
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


def _read_json(path: Path) -> list[Table]:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"published figures have at most {LARGEST} bytes, this file {path.stat().st_size}")
    content = json.loads(path.read_text())
    if not content["tables"]:
        raise ValueError("it holds no tables")
    tables: list[Table] = []
    for name, entry in content["tables"].items():
        if "weights" in entry:
            tables.append(_dyweight_table(name, entry))
        else:
            tables += [_ds_table(name, key, parameters) for key, parameters in entry.items()]
    return tables


def _ds_table(model: str, key: str, parameters: Mapping[str, Any]) -> Table:
    timedeltas = torch.tensor(parameters["timedeltas"], dtype=torch.float64)
    coeffs = torch.tensor(parameters["coeffs"], dtype=torch.float64)
    teacher = {"teacher": "ddim" if model.startswith("vp") else "euler", "teacher_steps": 100}
    step = StepCard(loss="trajectory", source_table=f"{model} {key}", **teacher)
    # Published to four digits: the sums miss 1 by up to 2e-4.
    return Table(model, len(timedeltas), {"timedeltas": timedeltas / timedeltas.sum(), "coeffs": coeffs}, step)


def _dyweight_table(name: str, entry: Mapping[str, Any]) -> Table:
    grids = {
        "polynomial": Grid("polynomial", {"rho": entry.get("rho", 7.0)}),
        "discrete": Grid("uniform_time", {"end": 1e-3}),
        "flux_shift": _FLUX_GRID,
    }
    step = StepCard(
        grid=grids[entry["schedule"]],
        analytic_first=bool(entry["afs"]),
        divisor="call" if entry["dataset"] == "flux1-dev" else "state",
        history=entry["history"],
        teacher=entry["teacher"],
        teacher_steps=entry["teacher_steps"],
        loss=entry["loss"],
        source_table=name,
    )
    if entry["loss"] not in _LOSSES:
        step = replace(step, note=f'Fitted with the loss "{entry["loss"]}", which the released code lacks.')
    tensors = {key: torch.tensor(entry[key], dtype=torch.float64) for key in ("weights", "t_scale")}
    return Table(entry["dataset"], len(tensors["t_scale"]), tensors, step)


def _read_flux_checkpoint(path: Path) -> list[Table]:
    """Reads the FLUX code's checkpoint, a torch zip that torch.load can read with weights_only."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: a DyWeight .pt has at most {LARGEST} bytes, this one {path.stat().st_size}: refused")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and runtime errors of a broken or hostile file
        raise ValueError(f"{path}: refused by torch.load(weights_only=True): {error}") from error
    weights, t_scale = content["dyweight_weights_raw"], content["dyweight_t_scales"]
    entry = {
        "dataset": "flux1-dev",
        "schedule": "flux_shift",
        "afs": False,
        "history": content["window_size"],
        "teacher": "euler",
        "teacher_steps": 28,
        "loss": "l2",
        "weights": weights.tolist(),
        "t_scale": t_scale.tolist(),
    }
    return [_dyweight_table(f"flux1-dev-nfe{len(t_scale)}", entry)]


def _read_snapshot(path: Path) -> list[Table]:
    """Reads a snapshot of the pixel, latent and SD code; its grid has one point more than the solver has steps."""
    content = read_inert_pickle(path)
    predictor, fit = content["predictor"], content["loss_fn"]
    weights = (predictor["_parameters"]["hybrid_weights"] * predictor["_buffers"]["mask"]).double()
    t_scale = predictor["_parameters"]["t_scale"].double()
    entry = {
        "dataset": fit["dataset_name"],
        "schedule": fit["schedule_type"],
        "rho": fit["schedule_rho"],
        "afs": predictor["afs"],
        "history": predictor["max_history_steps"],
        "teacher": fit["solver_tea"].removesuffix("_sampler"),
        "teacher_steps": fit["teacher_steps"],
        "loss": fit["loss_type"],
        "weights": weights.tolist(),
        "t_scale": t_scale.tolist(),
    }
    name = path.parent.name if re.fullmatch(r"\d+-.+", path.parent.name) else path.stem
    return [_dyweight_table(name, entry)]


if __name__ == "__main__":
    main()
