"""The card of a solver: what it was fitted for, by whom and how well. Stored as the file's safetensors metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from ..grids import Grid
from .safe import is_text, read_json

__all__ = ["FORMAT_VERSION", "VERSION", "Card", "StepCard", "is_count"]

VERSION = "0.1.0"
"""Of Learned Solvers, as in pyproject.toml."""
FORMAT_VERSION = "1"
PREDICTIONS = ("flow", "vp", "edm")
_NO_OBJECT = "the card's steps must be a JSON object of step counts"
_LONGEST = 2000  # characters of a card's text


def is_count(text: str) -> bool:
    """Whether a text is a step count as solver files write it: 1 to 9999, no leading zero."""
    return re.fullmatch("[1-9][0-9]{0,3}", text) is not None


@dataclass(frozen=True)
class StepCard:
    """What a card says about one step count. None means: not applicable, or not published.

    Args:
        grid: Rule of the solver's grid; None for a family that learns its times.
        analytic_first: The first step costs no model call, so there is one step more than calls.
        divisor: DyWeight only: "state" or "call", see `dyweight_table`.
        history: Newest entries that a row may use.
        teacher: Reference method.
        teacher_steps: Its steps.
        loss: What the fit minimised.
        source_table: Name of the table at its source.
        error_before: Held-out error of the initial solver.
        error_after: Held-out error of this one, same unit.
        best_peer: Best classical solver at equal calls on the same held-out starts, by name.
        error_best_peer: Its error.
        network_calls: Samples times calls that the fit spent, the teacher's included.
        note: What a user should know about this step count.
    """

    grid: Grid | None = None
    analytic_first: bool = False
    divisor: str = "state"
    history: int | None = None
    teacher: str | None = None
    teacher_steps: int | None = None
    loss: str | None = None
    source_table: str | None = None
    error_before: float | None = None
    error_after: float | None = None
    best_peer: str | None = None
    error_best_peer: float | None = None
    network_calls: int | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if self.divisor not in ("state", "call"):
            raise ValueError(f'divisor must be "state" or "call", got {self.divisor!r}')
        if not isinstance(self.analytic_first, bool):
            raise ValueError(f"analytic_first must be true or false, got {self.analytic_first!r}")
        for name in ("history", "teacher_steps", "network_calls"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"{name} must be a whole number, got {value!r:.40}")
        for name in ("error_before", "error_after", "error_best_peer"):
            value = getattr(self, name)
            if value is not None and (type(value) not in (int, float) or not -1e300 < value < 1e300):
                raise ValueError(f"{name} must be a finite number, got {value!r:.40}")
        for name in ("teacher", "loss", "source_table", "best_peer", "note"):
            value = getattr(self, name)
            if value is not None:
                _check_text(name, value)

    def to_json(self) -> dict[str, object]:
        """Returns the entries that differ from the defaults, as plain JSON values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.grid is not None:
            plain["grid"] = {"rule": self.grid.rule, **self.grid.parameters}
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, object]) -> StepCard:
        """Returns the card of a JSON object; entries that this version does not know raise ValueError."""
        if not isinstance(plain, Mapping):
            raise TypeError(f"{plain!r} is no object")
        known = {f.name for f in fields(cls)}
        if unknown := set(plain) - known:
            names = ", ".join(sorted(unknown)[:5])
            raise ValueError(f"the card has entries that this version does not know: {names}; update Learned Solvers")
        values = dict(plain)
        if (grid := values.get("grid")) is not None:
            if not isinstance(grid, dict) or "rule" not in grid:
                raise ValueError(f"grid must be an object with a rule, got {grid!r}")
            values["grid"] = Grid(grid["rule"], {k: v for k, v in grid.items() if k != "rule"})
        return cls(**values)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Card:
    """What a solver file says about itself.

    Args:
        family: Family of solvers, "dyweight" or "ds".
        prediction: Kind of noise schedule: "flow", "vp" (eps and v prediction) or "edm".
        model_family: The architecture fitted for, in ComfyUI's spelling where it has one ("Flux", "SD15").
        checkpoint: The weights fitted for.
        steps: One StepCard per number of network calls.
        guidance: Guidance of the fit, in words or a number.
        resolution: Picture size of the fit, "512x512".
        transferable: The authors show it on other models of the same prediction type.
        source: Where the parameters come from.
        citation: Paper.
        licence: Terms of the parameters.
        date: ISO date on which the file was written.
        package_version: Version of Learned Solvers that wrote it.
        note: What a user should know.
    """

    family: str
    prediction: str
    model_family: str
    checkpoint: str
    steps: Mapping[int, StepCard]
    guidance: str = ""
    resolution: str = ""
    transferable: bool = False
    source: str = ""
    citation: str = ""
    licence: str = ""
    date: str = ""
    package_version: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {self.prediction!r}")
        if not self.steps or any(n < 1 for n in self.steps):
            raise ValueError(f"a card needs step counts of at least 1, got {list(self.steps)}")
        if not isinstance(self.transferable, bool):
            raise ValueError(f"transferable must be true or false, got {self.transferable!r:.40}")
        for field in fields(self):
            if field.name not in ("steps", "transferable"):
                _check_text(field.name, getattr(self, field.name))
        for name in ("family", "model_family", "checkpoint"):
            if not getattr(self, name):
                raise ValueError(f'a card must say its {name}, got an empty text: write "unknown" where it is')
        object.__setattr__(self, "steps", MappingProxyType(dict(sorted(self.steps.items()))))

    def to_metadata(self) -> dict[str, str]:
        """Returns the safetensors metadata, str to str."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["transferable"] = json.dumps(self.transferable)
        plain["steps"] = json.dumps({str(n): step.to_json() for n, step in self.steps.items()})
        return {"format_version": FORMAT_VERSION, **{k: v for k, v in plain.items() if v}}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Card:
        """Returns the card of a file's metadata.

        Raises:
            ValueError: Another format version, a missing or unknown entry, or a value that breaks a rule.
        """
        version = metadata.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"format_version must be {FORMAT_VERSION}, got {version or 'none'}: "
                + ("update Learned Solvers" if version else "this is not a solver file")
            )
        values: dict[str, object] = {k: v for k, v in metadata.items() if k not in ("format_version", "format")}
        names = {f.name for f in fields(cls)}
        missing = {"family", "prediction", "model_family", "checkpoint", "steps"} - set(values)
        if missing or set(values) - names:
            wrong = (
                f"lacks {', '.join(sorted(missing))}" if missing else f"has unknown {sorted(set(values) - names)[:5]}"
            )
            remedy = "write it again with this version of Learned Solvers" if missing else "update Learned Solvers"
            raise ValueError(f"the card {wrong}: {remedy}")
        if (truth := metadata.get("transferable", "false")) not in ("true", "false"):
            raise ValueError(f"transferable must be true or false, got {truth!r}")
        values["transferable"] = truth == "true"
        try:
            steps = _json(metadata["steps"])
            if wrong := [n[:40] for n in steps if not is_count(n)]:
                raise ValueError(f"the card's steps must be step counts from 1 to 9999, got {wrong}")
            values["steps"] = {int(n): StepCard.from_json(step) for n, step in steps.items()}
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{_NO_OBJECT}, got an error: {str(error)[:200]}") from error
        return cls(**values)  # pyright: ignore[reportArgumentType]


def _json(text: str) -> Any:
    try:
        return read_json(text)
    except ValueError as error:
        raise ValueError(f"{_NO_OBJECT}, got an error: {str(error)[:200]}") from error


def _check_text(name: str, value: object) -> None:
    if not is_text(value, _LONGEST):
        raise ValueError(
            f"{name} must be text of at most {_LONGEST} characters without control characters, got {str(value)!r:.40}"
        )
