"""Solver files: read, write, validate and list.

`<family>_<model>.safetensors` holds the card as metadata and tensors named "<steps>/<name>", such as "7/weights". Each
has a leading dimension of K sets of parameters, one per guidance knot of the card; K = 1 without knots. Reading trusts
nothing: an error names the file, the fault and the remedy. No pickle is ever read.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..families import FAMILIES
from ..guidance import Guidance, at_guidance
from ..schedules import Noise, check_noise
from ..table import SolverTable
from ..text import format_numbers, printable
from .card import Card, is_count
from .safe import read_container
from .write import check_name, has_suffix, write_whole

__all__ = ["BUNDLED", "SUFFIX", "MissingSteps", "Solver", "list_solvers", "load_solver", "nearest_steps"]

BUNDLED = Path(__file__).resolve().parents[2] / "solver_weights"
SUFFIX = ".safetensors"
_PUBLISHED = (".pt", ".pkl", ".json")  # what training/import_weights.py reads
_REMEDIES = ("update Learned Solvers", "move it to a model folder")  # in errors that need no other remedy
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # fewer bits are too coarse for coefficients


class MissingSteps(ValueError):
    """A solver has no parameters for the requested step count; `nearest` is a count that it has."""

    def __init__(self, message: str, nearest: int) -> None:
        super().__init__(message, nearest)
        self.nearest = nearest

    def __str__(self) -> str:
        return self.args[0]


@dataclass(frozen=True, eq=False)
class Solver:
    """A learned solver: parameters for one or more step counts, and the card.

    Args:
        name: Name in messages and lists, usually the file's stem.
        card: What it was fitted for.
        parameters: The family's tensors per number of network calls, float64 on the CPU, with a leading dimension of
            K: one set of parameters per guidance knot of the card; K = 1 without knots.

    Raises:
        ValueError: Parameters break a rule of the family, or do not match the card.
    """

    name: str
    card: Card
    parameters: Mapping[int, Mapping[str, Tensor]]

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(
                f"family must be one of {', '.join(FAMILIES)}, got {self.family!r}: update Learned Solvers"
            )
        if set(self.parameters) != set(self.card.steps):
            raise ValueError(
                f"the card lists steps {printable(str([*self.card.steps]), 200)}, but the parameters are for "
                f"{printable(str(sorted(self.parameters)), 200)}: both must list the same step counts"
            )
        for nfe, tensors in self.parameters.items():
            try:
                self._check_step(nfe, tensors)
            except ValueError as error:
                raise ValueError(f"{nfe} steps: {error}") from error

    def _check_step(self, nfe: int, tensors: Mapping[str, Tensor]) -> None:
        family, step = FAMILIES[self.family], self.card.steps[nfe]
        if self.prediction not in family.kinds or (step.grid and self.prediction not in step.grid.kinds):
            raise ValueError(
                f"{family.title}{f' on a {step.grid.rule} grid' if step.grid else ''} is not defined for "
                f"{self.prediction} models; correct the prediction and the grid in the card"
            )
        if unknown := set(step.options) - set(family.options):
            raise ValueError(f"{family.title} has no options {', '.join(map(str, unknown))}: update Learned Solvers")
        if set(tensors) != set(family.tensors):
            raise ValueError(f"tensors must be {', '.join(family.tensors)}, got {', '.join(tensors)}")
        knots = max(1, len(step.knots))
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} must hold finite floating-point numbers")
            if tensor.ndim == 0 or len(tensor) != knots:
                raise ValueError(f"{name} must have shape [{knots}, ...], one set per knot, got {list(tensor.shape)}")
        for k in range(knots):
            family.check({name: tensor[k] for name, tensor in tensors.items()}, nfe, step)

    @property
    def family(self) -> str:
        """Name of the family, a key of FAMILIES."""
        return self.card.family

    @property
    def prediction(self) -> str:
        """Kind of noise schedule: "flow", "vp" or "edm"."""
        return self.card.prediction

    @property
    def steps(self) -> tuple[int, ...]:
        """The step counts that it has, in network calls, ascending."""
        return tuple(self.card.steps)

    def table(self, steps: int, noise: Noise, guidance: float | None = None) -> SolverTable:
        """Returns the table for `steps` network calls on a noise schedule.

        Args:
            steps: One of `self.steps`.
            noise: The model's noise schedule.
            guidance: Guidance of the run, of the card's kind. Between the card's knots, parameters are linear in its
                logarithm; outside them, those of the nearest knot are used. None: the card's usual guidance.

        Raises:
            TypeError: `steps` is not an int, or `noise` is not a noise schedule.
            MissingSteps: The solver does not have this step count.
            ValueError: The solver was fitted for another kind of noise schedule.
        """
        check_noise(noise)
        if noise.kind != self.prediction:
            raise ValueError(
                f"{self.name} was fitted for {self.prediction} models, but this model is {noise.kind}: choose a solver "
                f"for {noise.kind} models"
            )
        parameters = self.parameters_at(steps, guidance)
        try:
            with torch.device("cpu"):  # not the caller's default device
                table = FAMILIES[self.family].table(parameters, self.card.steps[steps], noise)
        except ValueError as error:
            raise ValueError(f"{self.name}, {steps} steps: {error}") from error
        if not bool((table.levels[:-1] > 0).all()):
            raise ValueError(
                f"{self.name}: its learned steps do not fit this model's noise schedule, which starts at sigma "
                f"{table.sigma_start:.4g}: choose another solver, or fit one on this model"
            )
        return table

    def parameters_at(self, steps: int, guidance: float | None = None) -> dict[str, Tensor]:
        """The family's tensors for a step count at a guidance, without the dimension of knots; see `table`."""
        if isinstance(steps, bool) or not isinstance(steps, Integral):
            raise TypeError(
                f"steps must be an int, got {printable(repr(steps), 200)}: choose one of {format_numbers(self.steps)}"
            )
        if steps not in self.parameters:
            nearest = nearest_steps(self.steps, steps)
            raise MissingSteps(
                f"{self.name} has {format_numbers(self.steps)} steps, not {steps}: set steps to {nearest}, or fit a "
                f"solver for {steps}",
                nearest,
            )
        knots, fitted = self.card.steps[steps].knots, self.card.guidance_of(steps)
        at = fitted.default if fitted is not None and guidance is None else guidance
        return {name: at_guidance(tensor, knots, at) for name, tensor in self.parameters[steps].items()}

    def guidance_of(self, run: Guidance | None) -> float | None:
        """A run's guidance as an argument of `table`; None if it is unknown or not of the card's kind."""
        return self.card.guidance.value_of(run) if self.card.guidance is not None else None

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the solver file atomically and returns its path.

        Raises:
            FileExistsError: The file exists and `overwrite` is False.
            ValueError: The path does not end in .safetensors, or its name is not portable.
        """
        path = Path(path)
        if not has_suffix(path, SUFFIX):
            raise ValueError(f"{path}: a solver file must end in {SUFFIX}; rename it")
        check_name(path.name)
        named_tensors = {
            f"{nfe}/{name}": tensor.detach().cpu().double().clone().contiguous()
            for nfe, tensors in self.parameters.items()
            for name, tensor in tensors.items()
        }
        content = _sort_header(save(named_tensors, metadata=self.card.to_metadata()))
        try:
            write_whole(path, content, overwrite=overwrite)
        except FileExistsError as error:
            raise FileExistsError(f"{path} already exists: choose another name, or pass overwrite=True") from error
        return path


def nearest_steps(counts: Iterable[int], steps: int) -> int:
    """The count nearest to `steps`; of two equally near ones the larger."""
    return min(counts, key=lambda count: (abs(count - steps), -count))


def load_solver(solver: str | Path) -> Solver:
    """Loads a bundled solver by its name ("dyweight_flux1-dev"), or a .safetensors file by its path.

    Raises:
        ValueError: Unknown name, or an invalid file; the message names the file, the fault and the remedy.
        FileNotFoundError: The path does not exist.
    """
    path, name = Path(solver), printable(str(solver), 1000)
    if path.suffix.lower() in _PUBLISHED:
        raise ValueError(
            f"{name}: a solver file must end in {SUFFIX}; convert a published {', '.join(_PUBLISHED)} file with "
            f"python training/import_weights.py {name} --output FOLDER"
        )
    if not has_suffix(path, SUFFIX):
        if str(solver) not in list_solvers():
            raise ValueError(
                f"there is no bundled solver named {printable(repr(str(solver)), 200)}{_hint(str(solver))}: choose one "
                f"of {', '.join(list_solvers())}, or pass the path of a {SUFFIX} file"
            )
        path = BUNDLED / f"{solver}{SUFFIX}"
    if os.path.isdir(path):
        raise ValueError(f"{name} is a folder: pass the {SUFFIX} file in it")
    if not os.path.isfile(path):  # unlike Path.is_file, False for any text that cannot be a file name
        bundled = f", such as {path.stem!r}" if path.stem in list_solvers() else ""
        raise FileNotFoundError(
            f"{name} does not exist: pass the path of a solver file, or a bundled solver's name{bundled}"
        )
    try:
        return _assemble(path.stem, *read_container(path))
    except ValueError as error:
        reason = printable(str(error))
        remedy = "" if any(known in reason for known in _REMEDIES) else "; download the file again, or repeat the fit"
        raise ValueError(f"{printable(str(path), 1000)}: {reason}{remedy}") from error


def list_solvers() -> list[str]:
    """The names of the bundled solvers, sorted."""
    return sorted(path.stem for path in BUNDLED.glob(f"*{SUFFIX}"))


def _hint(name: str) -> str:
    """The bundled name closest to an unknown one, or a note that this package lacks the files of its family."""
    family, bundled = FAMILIES.get(name.partition("_")[0]), list_solvers()
    if family and not any(known.startswith(f"{family.name}_") for known in bundled):
        return f" (this package does not include {family.title}'s published files; the project's own releases do)"
    close = [] if name in FAMILIES else get_close_matches(name[:200], bundled, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _sort_header(content: bytes) -> bytes:
    """A safetensors file with the keys of its header sorted, so that equal solvers are equal bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _assemble(name: str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Solver:
    card = Card.from_metadata(metadata)
    parameters: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        count, _, tensor_name = key.partition("/")
        if not is_count(count) or not tensor_name:
            raise ValueError(f'tensors are named "<steps>/<name>", got {key[:40]!r}: this is not a solver file')
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"{key} must hold floating-point numbers of 16 bits or more, got {tensor.dtype}")
        # A copy, not a view of the file's bytes.
        parameters.setdefault(int(count), {})[tensor_name] = tensor.to(torch.float64, copy=True)
    return Solver(name, card, parameters)
