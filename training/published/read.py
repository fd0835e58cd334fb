"""Reads published solver parameters: JSON, and the DyWeight authors' .pt and .pkl files.

Nothing in a file is executed: torch.load with weights_only reads a .pt, inert_pickle.py a .pkl, both after a check.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...samplers.files.card import Card, StepCard
from ...samplers.files.solver import Solver
from ...samplers.grids import FLUX_GRID, Grid
from ...samplers.guidance import Guidance
from ...samplers.text import printable
from .inert_pickle import load_inert_pickle
from .pickle_stream import check_pickles

__all__ = ["RELEASED_LOSSES", "published_models", "read_tables"]

_LARGEST = 2**20  # bytes of a file; the authors' have 10 to 40 kB
RELEASED_LOSSES = ("l2", "l1", "huber", "inception", "trajectory")
"""The losses in the papers' released code."""
_MOST_NUMBERS = 10_000  # in a tensor: a solver of 100 calls
_KINDS = {"dataset": str, "schedule": str, "loss": str, "teacher": str, "history": int, "teacher_steps": int}
_Table = tuple[str, int, dict[str, Tensor], StepCard]  # model, network calls, the family's tensors, card entry


def read_tables(path: Path) -> list[Solver]:
    """The tables of a .json, .pt or .pkl file, each as a solver with one step count. A ValueError names the file."""
    readers = {".json": _read_json, ".pt": _read_checkpoint, ".pkl": _read_snapshot}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: published files end in {', '.join(readers)}; choose one of these")
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    try:
        if len(content) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} bytes")
        tables = readers[path.suffix.lower()](path, content)
    except Exception as error:  # a hostile file may raise anything
        raise ValueError(f"{path}: rejected ({_reason(error)}); import the authors' original file") from error
    try:
        return [_solver(*table) for table in tables]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@cache
def published_models() -> Mapping[str, Mapping[str, Any]]:
    """Card entries and the solver's name for each model, by the sources' model names."""
    content = json.loads(Path(__file__).with_name("models.json").read_text("utf-8"))
    models = {model: {**content["sources"][facts["family"]], **facts} for model, facts in content["models"].items()}
    return {model: {**facts, "guidance": Guidance.from_json(facts["guidance"])} for model, facts in models.items()}


def _solver(model: str, calls: int, tensors: Mapping[str, Tensor], step: StepCard) -> Solver:
    if model not in published_models():
        raise ValueError(f"model {printable(model, 200)!r} is unknown: add it to training/published/models.json")
    facts = dict(published_models()[model])
    name = facts.pop("name")
    # A published table is for one guidance, so K = 1.
    return Solver(name, Card(steps={calls: step}, **facts), {calls: {key: t[None] for key, t in tensors.items()}})


def _reason(error: Exception) -> str:
    """The fault of a file's content, without Python's error text where that would not help."""
    if isinstance(error, KeyError):
        return f"it has no entry {printable(str(error), 200)}"
    if isinstance(error, ValueError | zipfile.BadZipFile):
        return printable(str(error), 200)
    if isinstance(error, pickle.UnpicklingError):
        return printable(_unpickling_fault(error), 200)
    return "its entries' types differ from those of published files"


def _unpickling_fault(error: Exception) -> str:
    """The fault that torch.load found; the rest of its message explains how to run the file."""
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].splitlines()  # old versions write one line
    return next((line for line in lines if line and "weights_only" not in line), type(error).__name__)


def _read_json(path: Path, content: bytes) -> list[_Table]:
    tables: list[_Table] = []
    for name, entry in json.loads(content)["tables"].items():
        if "weights" in entry:
            tables.append(_dyweight_table(name, entry))
        else:
            tables += [_ds_table(name, key, parameters) for key, parameters in entry.items()]
    if not tables:
        raise ValueError("it has no tables")
    return tables


def _ds_table(model: str, key: str, parameters: Mapping[str, Any]) -> _Table:
    timedeltas, coeffs = (torch.tensor(parameters[name], dtype=torch.float64) for name in ("timedeltas", "coeffs"))
    teacher = "ddim" if model.startswith("vp") else "euler"
    step = StepCard(loss="trajectory", source_table=f"{model} {key}", teacher=teacher, teacher_steps=100)
    # Published with four digits: the sums differ from 1 by up to 2e-4.
    return model, len(timedeltas), {"timedeltas": timedeltas / timedeltas.sum(), "coeffs": coeffs}, step


def _dyweight_table(name: str, entry: Mapping[str, Any]) -> _Table:
    for key, kind in _KINDS.items():
        if not isinstance(entry[key], kind):
            raise ValueError(f"{key} must be of type {kind.__name__}")  # without the value, whose text may be huge
    schedule, loss = entry["schedule"], entry["loss"]
    grids = {
        "polynomial": Grid("polynomial", {"rho": entry.get("rho", 7.0)}),
        "discrete": Grid("uniform_time", {"end": 1e-3}),
        "flux_shift": FLUX_GRID,
    }
    if schedule not in grids:
        raise ValueError(f"schedule must be one of {', '.join(grids)}, got {printable(schedule, 200)!r}")
    step = StepCard(
        grid=grids[schedule],
        options=({"analytic_first": True} if entry["afs"] else {})
        | ({"divisor": "call"} if entry["dataset"] == "flux1-dev" else {}),
        history=entry["history"],
        teacher=entry["teacher"],
        teacher_steps=entry["teacher_steps"],
        loss=loss,
        source_table=name,
        note=None if loss in RELEASED_LOSSES else f'Fitted with the loss "{loss}", which the released code lacks.',
    )
    tensors = {key: torch.as_tensor(entry[key], dtype=torch.float64) for key in ("weights", "t_scale")}
    return entry["dataset"], len(tensors["t_scale"]), tensors, step


def _read_checkpoint(path: Path, content: bytes) -> list[_Table]:
    """The table in a checkpoint of the FLUX code."""
    checkpoint = _load_numbers(content)
    t_scale = _checked(checkpoint["dyweight_t_scales"])
    entry = {
        "dataset": "flux1-dev",
        "schedule": "flux_shift",
        "afs": False,
        "history": checkpoint["window_size"],
        "teacher": "euler",
        "teacher_steps": 28,
        "loss": "l2",
        "weights": _checked(checkpoint["dyweight_weights_raw"]),
        "t_scale": t_scale,
    }
    return [_dyweight_table(f"flux1-dev-nfe{len(t_scale)}", entry)]


def _read_snapshot(path: Path, content: bytes) -> list[_Table]:
    """The table in a snapshot of the pixel, latent and SD code."""
    snapshot = load_inert_pickle(content)
    predictor, fit = snapshot["predictor"], snapshot["loss_fn"]
    parameters = predictor["_parameters"]
    entry = {
        "dataset": fit["dataset_name"],
        "schedule": fit["schedule_type"],
        "rho": fit["schedule_rho"],
        "afs": predictor["afs"],
        "history": predictor["max_history_steps"],
        "teacher": str.removesuffix(fit["solver_tea"], "_sampler"),
        "teacher_steps": fit["teacher_steps"],
        "loss": fit["loss_type"],
        "weights": _checked(parameters["hybrid_weights"]) * _checked(predictor["_buffers"]["mask"]),
        "t_scale": _checked(parameters["t_scale"]),
    }
    return [_dyweight_table(path.parent.name if re.match(r"\d+-.", path.parent.name) else path.stem, entry)]


def _load_numbers(content: bytes) -> Any:
    """Reads a checked torch zip with torch.load and weights_only."""
    try:
        return torch.load(_checked_zip(content), map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and runtime errors of a broken or hostile file
        fault = printable(_unpickling_fault(error), 120)
        raise ValueError(f"it is not a torch file of plain tensors ({fault})") from error


def _checked_zip(content: bytes) -> io.BytesIO:
    """Checks a torch zip and copies its entries, so that torch.load reads only what was checked.

    torch.load finds the pickle by its name in any case, and reads a pickle in front of a zip instead of the zip.
    """
    checked = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as file, zipfile.ZipFile(checked, "w") as copy:
        entries = file.infolist()
        pickles = [entry for entry in entries if entry.filename.lower().endswith(".pkl")]
        if len(pickles) != 1 or len({entry.filename.lower() for entry in entries}) < len(entries):
            raise ValueError("it must be a torch zip with one pickle and unique names")
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if compressed or sum(entry.file_size for entry in entries) > _LARGEST:
            raise ValueError(f"its entries must be uncompressed, at most {_LARGEST} bytes together")
        check_pickles(file.read(pickles[0]))
        for entry in entries:
            copy.writestr(entry.filename, file.read(entry))
    checked.seek(0)
    return checked


def _checked(tensor: Tensor) -> Tensor:
    """A tensor's numbers, float64."""
    # A tensor of stride 0 may claim any number of entries, an empty one any number of empty lists.
    if not isinstance(tensor, Tensor) or tensor.ndim > 2 or not 0 < tensor.numel() <= _MOST_NUMBERS:
        raise ValueError(f"its parameters must be tensors of one or two dimensions and at most {_MOST_NUMBERS} numbers")
    return torch.tensor(tensor.tolist(), dtype=torch.float64)
