"""Turn published solver parameters into solver files.

    python training/import_weights.py FILE ... --output solver_weights [--overwrite]

Reads the papers' figures as JSON, the DyWeight authors' FLUX .pt files (torch.load with weights_only) and their .pkl
files (training/inert_pickle.py: nothing of a pickle is executed). One solver file per family and model; where two
tables share a count of network calls, the one whose loss the paper's code has is kept.
"""

from __future__ import annotations

import argparse
import io
import re
import zipfile
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

from ..samplers.files.card import VERSION, Card, StepCard
from ..samplers.files.safe import read_json
from ..samplers.files.solver import Solver
from ..samplers.grids import FLUX_GRID, Grid
from ..samplers.text import shown
from .published.inert_pickle import LARGEST, read_inert_pickle
from .published.models import MODELS
from .published.pickle_stream import check_pickles

__all__ = ["Table", "assemble", "main", "read_tables"]

_LOSSES = ("l2", "l1", "huber", "inception", "trajectory")  # that the papers' released code has
_KINDS = {"dataset": str, "schedule": str, "loss": str, "teacher": str, "history": int, "teacher_steps": int}
_MOST_CALLS = 100  # of a table
_MOST = _MOST_CALLS**2  # numbers in it


@dataclass(frozen=True)
class Table:
    """One published table: parameters for one count of network calls.

    Args:
        model: A key of `MODELS`.
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
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: must be one of {', '.join(readers)}; name the published file itself")
    try:
        tables = readers[path.suffix.lower()](path)
    except OSError:
        raise
    except Exception as error:  # what a hostile file makes of lists, numbers and tensors may raise anything
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: not the published layout, {_told(error)}; name the published file itself") from error
    try:
        assemble(tables, date.today().isoformat())  # what a solver file may not hold is refused with the file's name
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return tables


def assemble(tables: Iterable[Table], day: str) -> list[Solver]:
    """Returns one solver per model; of two tables for one count, the one whose loss can be reproduced."""
    solvers = []
    tables = list(tables)
    if unknown := {table.model for table in tables} - set(MODELS):
        raise ValueError(
            f"no facts are known about {shown(', '.join(sorted(unknown)), 200)}: add them to published_models.py"
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
    parser.add_argument("--date", type=_day, default=date.today().isoformat(), help="date written in the cards")
    args = parser.parse_args(arguments)
    try:
        if missing := [path for path in args.files if not path.is_file()]:
            found = "is a folder" if missing[0].is_dir() else "does not exist"
            raise ValueError(f"{missing[0]} {found}: name the published files themselves")
        solvers = assemble([table for path in args.files for table in read_tables(path)], args.date)
        there = [p for s in solvers if (p := args.output / f"{s.name}.safetensors").exists()]
        if there and not args.overwrite:
            raise ValueError(f"{there[0]} exists already: choose another --output, or add --overwrite")
        for solver in solvers:
            path = solver.save(args.output / f"{solver.name}.safetensors", overwrite=args.overwrite)
            print(f"{path}: {', '.join(map(str, solver.steps))} steps")
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


def _told(error: Exception) -> str:
    """Returns what is wrong with a file's content, without Python's words for it."""
    if isinstance(error, KeyError):
        return f"it has no {shown(repr(error.args[0]) if error.args else 'entry', 200)}"
    if isinstance(error, ValueError):
        return shown(str(error), 200)
    return "its entries are of other kinds than a table's"


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a day such as 2026-11-24, got {text!r}") from error


def _read_json(path: Path) -> list[Table]:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"published figures have at most {LARGEST} bytes, this file {path.stat().st_size}")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is no UTF-8 text") from error
    content = read_json(text)
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
    timedeltas, coeffs = (_tensor(parameters, name) for name in ("timedeltas", "coeffs"))
    teacher = {"teacher": "ddim" if model.startswith("vp") else "euler", "teacher_steps": 100}
    step = StepCard(loss="trajectory", source_table=f"{model} {key}", **teacher)
    # Published to four digits: the sums miss 1 by up to 2e-4.
    return Table(model, len(timedeltas), {"timedeltas": timedeltas / timedeltas.sum(), "coeffs": coeffs}, step)


def _dyweight_table(name: str, entry: Mapping[str, Any]) -> Table:
    if type(entry.get("rho", 7.0)) not in (int, float):
        raise ValueError("rho must be a number")  # without its value: its text may have no end
    grids = {
        "polynomial": Grid("polynomial", {"rho": entry.get("rho", 7.0)}),
        "discrete": Grid("uniform_time", {"end": 1e-3}),
        "flux_shift": FLUX_GRID,
    }
    for key, kind in _KINDS.items():
        if not isinstance(entry[key], kind) or entry[key] != entry[key]:
            raise ValueError(f"{key} must be of type {kind.__name__}")  # without its value: its text may have no end
    if entry["schedule"] not in grids:
        raise ValueError(f"schedule must be one of {', '.join(grids)}, got {shown(repr(entry['schedule'])[:200])}")
    if not 0 < entry["history"] <= _MOST_CALLS:
        raise ValueError(f"history must be a count from 1 to {_MOST_CALLS}")
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
    tensors = {name: _tensor(entry, name) for name in ("weights", "t_scale")}
    return Table(entry["dataset"], len(tensors["t_scale"]), tensors, step)


def _tensor(entry: Mapping[str, Any], name: str) -> Tensor:
    values = entry[name]
    try:
        return torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{name} must be lists of numbers, each row as long as the first") from error


def _read_flux_checkpoint(path: Path) -> list[Table]:
    """Reads the FLUX code's checkpoint, a torch zip that torch.load can read with weights_only."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: a DyWeight .pt has at most {LARGEST} bytes, this one {path.stat().st_size}: refused")
    try:
        content = torch.load(_checked_zip(path), map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and runtime errors of a broken or hostile file
        # Of torch's words what it found: the others tell how to run the file. Old versions have all in one line.
        found = str(error).rpartition("WeightsUnpickler error: ")[2]
        told = [line for line in found.splitlines() if line and "weights_only" not in line]
        reason = shown(told[0] if told else type(error).__name__, 300)
        raise ValueError(
            f"{path}: refused as no torch file of numbers alone ({reason}); import the authors' original file"
        ) from error
    weights, t_scale = _numbers(content["dyweight_weights_raw"]), _numbers(content["dyweight_t_scales"])
    entry = {
        "dataset": "flux1-dev",
        "schedule": "flux_shift",
        "afs": False,
        "history": content["window_size"],
        "teacher": "euler",
        "teacher_steps": 28,
        "loss": "l2",
        "weights": weights,
        "t_scale": t_scale,
    }
    return [_dyweight_table(f"flux1-dev-nfe{len(t_scale)}", entry)]


def _checked_zip(path: Path) -> io.BytesIO:
    """Returns a torch zip of the same entries, written anew: torch.load reads what was checked, and nothing else.

    It finds the pickle by a name in any case, and takes a file that only ends like a zip for a pickle.

    Raises:
        ValueError: Entries beyond the file's own size, compressed or of one name, or a pickle that may hang.
    """
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
        names = [entry.filename for entry in entries]
        pickles = [name for name in names if name.lower().endswith(".pkl")]
        if len(pickles) != 1 or len({name.lower() for name in names}) < len(names):
            raise ValueError("it must be a torch zip with one pickle, and no name twice")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > LARGEST for entry in entries):
            raise ValueError("its entries must not be compressed, nor larger than the file")
        if sum(entry.file_size for entry in entries) > LARGEST:
            raise ValueError(f"its entries must not have more than {LARGEST} bytes together")
        contents = {name: file.read(name) for name in names}
    check_pickles(contents[pickles[0]])
    checked = io.BytesIO()
    with zipfile.ZipFile(checked, "w", zipfile.ZIP_STORED) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    checked.seek(0)
    return checked


def _numbers(tensor: Tensor) -> list:
    """Returns a tensor's numbers as lists."""
    # One of stride 0 may stand for any number of them, and an empty one for any number of empty lists.
    if not isinstance(tensor, Tensor) or tensor.ndim > 2 or not 0 < tensor.numel() <= _MOST:
        raise ValueError(f"a table's parameters must be tensors of one or two dimensions and at most {_MOST} numbers")
    return tensor.tolist()


def _read_snapshot(path: Path) -> list[Table]:
    """Reads a snapshot of the pixel, latent and SD code; its grid has one point more than the solver has steps."""
    content = read_inert_pickle(path)
    predictor, fit = content["predictor"], content["loss_fn"]
    own, mask = predictor["_parameters"], predictor["_buffers"]["mask"]
    weights = torch.tensor(_numbers(own["hybrid_weights"])) * torch.tensor(_numbers(mask))
    entry = {
        "dataset": fit["dataset_name"],
        "schedule": fit["schedule_type"],
        "rho": fit["schedule_rho"],
        "afs": predictor["afs"],
        "history": predictor["max_history_steps"],
        "teacher": str.removesuffix(fit["solver_tea"], "_sampler"),
        "teacher_steps": fit["teacher_steps"],
        "loss": fit["loss_type"],
        "weights": weights.tolist(),
        "t_scale": _numbers(own["t_scale"]),
    }
    name = path.parent.name if re.fullmatch(r"\d+-.+", path.parent.name) else path.stem
    return [_dyweight_table(name, entry)]


if __name__ == "__main__":
    main()
