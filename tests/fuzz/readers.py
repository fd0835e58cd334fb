"""The readers under test: what each is fed, how its input is spoilt, and what it may do with that."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from authors_files import checkpoint, snapshot_bytes
from learned_solvers.samplers import EDMNoise, FlowNoise, VPNoise, load_solver
from learned_solvers.samplers.files.solver import BUNDLED, Solver
from learned_solvers.training.import_weights import assemble, read_tables
from safetensors.torch import save

from .published_files import changed_figures, changed_pickle, changed_torch_file
from .solver_files import changed_bytes, changed_solver_file
from .watch import watched

__all__ = ["READERS", "Finding", "Reader"]

DATA = Path(__file__).resolve().parent.parent / "data"
NOISES = {"flow": [FlowNoise(4096)], "vp": [VPNoise.stable_diffusion(), VPNoise.linear_beta()], "edm": [EDMNoise()]}
LONGEST = 1200  # characters of a refusal beside the path


class Finding(Exception):
    """A reader did what it must not."""


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Args:
        suffix: Of its files.
        read: Reads a path and uses what it says.
        seeds: Returns valid contents.
        change: Returns a content after one change.
    """

    suffix: str
    read: Callable[[Path], None]
    seeds: Callable[[], list[bytes]]
    change: Callable[[bytes, Random], bytes]

    def spoilt(self, content: bytes, random: Random) -> bytes:
        """Returns a content after one to four changes, below 4 MB."""
        for _ in range(random.choice([1, 1, 1, 2, 4])):
            try:
                content = self.change(content, random)
            except (IndexError, KeyError, TypeError, ValueError):  # an earlier change left nothing of the kind
                content = changed_bytes(content, random)
        return content[: 2**22]

    def accepts(self, content: bytes, folder: Path) -> bool:
        """Whether a content is read; where not, it was refused as it must be.

        Raises:
            Finding: Another exception, a refusal that does not name the file or is long, an execution or a write.
        """
        path = folder / f"hostile{self.suffix}"
        path.write_bytes(content)
        try:
            with watched() as seen:
                self.read(path)
            accepted = True
        except (ValueError, FileNotFoundError) as error:
            accepted, message = False, str(error)
            if isinstance(error, UnicodeError | json.JSONDecodeError) or str(path) not in message:
                raise Finding(f"refused without naming the file: {type(error).__name__}: {message[:300]}") from error
            told = message.replace(str(path), "")
            if len(told) > LONGEST or not told.isprintable():
                raise Finding(f"a refusal of {len(told)} characters: {told[:300]!r}") from error
        except (Exception, RecursionError) as error:
            raise Finding(f"{type(error).__name__}: {error}"[:500]) from error
        if seen:
            raise Finding(f"it did more than read: {seen[:3]}")
        return accepted


def _read_solver(path: Path) -> None:
    solver = load_solver(path)
    _use(solver, path)


def _use(solver: Solver, path: Path) -> None:
    """Makes every table that a solver has, and the metadata that it would be saved with."""
    for steps in solver.steps:
        for noise in NOISES[solver.prediction]:
            try:
                table = solver.table(steps, noise)
            except ValueError as error:
                if len(str(error)) > 8 * LONGEST or solver.name not in str(error):
                    raise Finding(f"a table's refusal: {str(error)[:300]}") from error
                continue
            for tensor in (table.levels, table.sigmas, table.scale, table.coeffs):
                if not bool(torch.isfinite(tensor).all()):
                    raise Finding(f"{path}: a table that is not finite")
    json.dumps(solver.card.to_metadata()).encode()
    "".join(solver.card.to_metadata().values()).encode()


def _read_published(path: Path) -> None:
    tables = read_tables(path)
    try:
        solvers = assemble(tables, "2026-01-31")
    except ValueError as error:  # figures that break a rule of the family, or of a model that nothing is known about
        if len(str(error)) > LONGEST or not str(error).isprintable():
            raise Finding(f"a refusal of {len(str(error))} characters: {str(error)[:300]!r}") from error
        return
    for solver in solvers:
        _use(solver, path)


def _solver_seeds() -> list[bytes]:
    metadata = {"format_version": "1", "family": "dyweight", "prediction": "edm", "model_family": "EDM"}
    metadata |= {"checkpoint": "test", "steps": json.dumps({"3": {"grid": {"rule": "polynomial", "rho": 7.0}}})}
    small = save({"3/weights": torch.eye(3).double(), "3/t_scale": torch.ones(3).double()}, metadata=metadata)
    return [small, *(path.read_bytes() for path in sorted(BUNDLED.glob("*.safetensors")))]


def _figure_seeds() -> list[bytes]:
    whole = [json.loads((DATA / name).read_text()) for name in ("dyweight.json", "ds_solver.json")]
    few = [{"tables": dict(list(content["tables"].items())[:2])} for content in whole]
    return [json.dumps(content).encode() for content in few]


def _torch_seeds() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return [checkpoint(Path(folder) / "nfe3.pt").read_bytes()]


def _pickle_seeds() -> list[bytes]:
    return [snapshot_bytes(), snapshot_bytes(loss_type="l2", dataset_name="ffhq")]


READERS = {
    "solver_file": Reader(".safetensors", _read_solver, _solver_seeds, changed_solver_file),
    "figures": Reader(".json", _read_published, _figure_seeds, changed_figures),
    "torch_file": Reader(".pt", _read_published, _torch_seeds, changed_torch_file),
    "pickle": Reader(".pkl", _read_published, _pickle_seeds, changed_pickle),
}
