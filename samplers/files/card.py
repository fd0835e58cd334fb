"""The card of a solver, stored as safetensors metadata: what it was fitted for, by whom and how well."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from ..grids import Grid
from ..guidance import Guidance
from ..schedules import KINDS
from .safe import is_text, read_json

__all__ = ["VERSION", "Card", "StepCard", "is_count"]

VERSION = "0.2.0"
"""Version of Learned Solvers, as in pyproject.toml."""
_FORMAT_VERSION = "2"
_LONGEST_TEXT = 2000  # characters
_TEXTS = ("teacher", "loss", "source_table", "best_peer", "note")
_COUNTS = ("history", "teacher_steps", "network_calls")
_ERRORS = ("error_before", "error_after", "error_best_peer")


def is_count(text: str) -> bool:
    """Whether a text is a step count in a solver file: 1 to 9999 without leading zeros."""
    return re.fullmatch("[1-9][0-9]{0,3}", text) is not None


@dataclass(frozen=True)
class StepCard:
    """The card's entry for one step count. None means not applicable or not published.

    Args:
        grid: Rule of the solver's grid; None for a family with learned time steps.
        options: Settings of the family in addition to the tensors, see `Family.options`.
        knots: Guidance of each of the K sets of parameters, positive and ascending; empty for one set at any guidance.
        history: Number of newest entries that a row may use.
        teacher: Reference method.
        teacher_steps: Steps of the teacher.
        loss: Loss that the fit minimised.
        source_table: Name of the table in its source.
        error_before: Held-out error of the initial solver.
        error_after: Held-out error of this solver, same unit.
        best_peer: Name of the best classical solver with as many calls on the same held-out starts.
        error_best_peer: Held-out error of the best peer, same unit.
        network_calls: Samples times calls of the fit, including the teacher's.
        note: Note to the user about this step count.

    Raises:
        ValueError: A value breaks a rule.
    """

    grid: Grid | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    knots: tuple[float, ...] = ()
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
        object.__setattr__(self, "knots", tuple(self.knots))
        if not all(isinstance(k, int | float) and not isinstance(k, bool) and 0 < k < 1e9 for k in self.knots):
            raise ValueError(f"knots must be positive finite guidance values, got {list(self.knots)!s:.80}")
        if any(a * (1 + 1e-6) >= b for a, b in zip(self.knots, self.knots[1:], strict=False)):
            raise ValueError(f"knots must be strictly increasing, got {list(self.knots)!s:.80}")
        if len(self.knots) > 64:
            raise ValueError(f"a step count has at most 64 knots, got {len(self.knots)}")
        for name in (*_COUNTS, *_ERRORS, *_TEXTS):
            value = getattr(self, name)
            if value is None:
                continue
            if name in _TEXTS:
                _check_text(name, value)
            elif name in _COUNTS and (type(value) is not int or value < 0):
                raise ValueError(f"{name} must be a whole number, got {value!r:.40}")
            elif name in _ERRORS and (type(value) not in (int, float) or not -1e300 < value < 1e300):
                raise ValueError(f"{name} must be a finite number, got {value!r:.40}")

    def to_json(self) -> dict[str, object]:
        """The entries that are not None or empty, as JSON values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["options"], plain["knots"] = dict(self.options), list(self.knots)
        if self.grid is not None:
            plain["grid"] = {"rule": self.grid.rule, **self.grid.parameters}
        return {name: value for name, value in plain.items() if value not in (None, {}, [])}

    @classmethod
    def from_json(cls, plain: object) -> StepCard:
        """The entry that a JSON object describes."""
        if not isinstance(plain, Mapping):
            raise ValueError(f"a step count's entry must be an object, got {plain!r:.80}")
        if unknown := set(plain) - {f.name for f in fields(cls)}:
            raise ValueError(f"the card has unknown entries {', '.join(sorted(unknown)[:5])}: update Learned Solvers")
        values = dict(plain)
        for name, kind, word in (("grid", Mapping, "object"), ("options", Mapping, "object"), ("knots", list, "list")):
            if name in values and not isinstance(values[name], kind):
                raise ValueError(f"{name} must be a JSON {word}, got {values[name]!r:.80}")
        if "grid" in values:
            parameters = dict(values["grid"])
            values["grid"] = Grid(parameters.pop("rule", None), parameters)
        if "knots" in values:
            values["knots"] = tuple(values["knots"])
        return cls(**values)


@dataclass(frozen=True)
class Card:
    """What a solver was fitted for, by whom and how well.

    Args:
        family: Name of the solver family, a key of FAMILIES.
        prediction: Kind of noise schedule: "flow", "vp" (eps and v prediction) or "edm".
        architecture: The model's architecture, in ComfyUI's spelling if it has one ("Flux", "SD15").
        checkpoint: Name of the model's weights.
        fingerprint: Of the model's weights, see `comfy_models.fingerprint`.
        steps: One StepCard per number of network calls.
        guidance: Guidance of the fit; None if unknown.
        resolution: Image size of the fit, "512x512", or video size, "832x480x81".
        transferable: Whether its authors show it on other models of the same prediction type.
        source: Source of the parameters.
        citation: Paper.
        licence: Licence of the parameters.
        date: ISO date of the file.
        package_version: Version of Learned Solvers that wrote it.
        note: Note to the user.
        fit_id: Hash of the fit's inputs, by which the fit recognises its own file.
        boundary: Noise level below which a second model was called, as in Wan 2.2; None for one model.

    Raises:
        ValueError: A value breaks a rule.
    """

    family: str
    prediction: str
    architecture: str
    checkpoint: str
    steps: Mapping[int, StepCard]
    guidance: Guidance | None = None
    fingerprint: str = ""
    resolution: str = ""
    transferable: bool = False
    source: str = ""
    citation: str = ""
    licence: str = ""
    date: str = ""
    package_version: str = ""
    note: str = ""
    fit_id: str = ""
    boundary: float | None = None

    def __post_init__(self) -> None:
        if self.prediction not in KINDS:
            raise ValueError(f"prediction must be one of {', '.join(KINDS)}, got {self.prediction!r:.40}")
        if not self.steps or not all(isinstance(n, int) and n > 0 for n in self.steps):
            raise ValueError(f"a card needs step counts of at least 1, got {list(self.steps)}")
        if not isinstance(self.transferable, bool):
            raise ValueError(f"transferable must be true or false, got {self.transferable!r:.40}")
        for name in _STRINGS:
            _check_text(name, getattr(self, name))
        for name in ("family", "architecture", "checkpoint"):
            if not getattr(self, name):
                raise ValueError(f'{name} must not be empty: write "unknown" instead')
        if not isinstance(self.guidance, Guidance | None):
            raise ValueError(f"guidance must be a Guidance, got {self.guidance!r:.40}")
        boundary = self.boundary
        if boundary is not None and (type(boundary) not in (int, float) or not 0 < boundary < 1e9):
            raise ValueError(f"boundary must be a positive noise level, got {boundary!r:.40}")
        if any(step.knots for step in self.steps.values()) and (self.guidance is None or self.guidance.kind == "none"):
            raise ValueError("knots need a guidance of kind cfg or embedded; the card has none")
        object.__setattr__(self, "steps", MappingProxyType(dict(sorted(self.steps.items()))))

    def __reduce__(self) -> tuple[type[Card], tuple[Any, ...]]:
        """Copies and pickles the read-only mapping as a dict."""
        return Card, tuple(
            dict(v) if isinstance(v, Mapping) else v for v in (getattr(self, f.name) for f in fields(self))
        )

    def guidance_of(self, steps: int) -> Guidance | None:
        """The guidance that a step count was fitted at, with its knots as values if it has some."""
        knots, guidance = self.steps[steps].knots, self.guidance
        if guidance is None or not knots:
            return guidance
        usual = None if guidance.usual is None else min(max(guidance.usual, knots[0]), knots[-1])
        return replace(guidance, values=knots, usual=usual)

    def to_metadata(self) -> dict[str, str]:
        """The card as safetensors metadata."""
        plain = {name: getattr(self, name) for name in _STRINGS}
        plain["transferable"] = json.dumps(self.transferable)
        plain["steps"] = json.dumps({str(n): step.to_json() for n, step in self.steps.items()})
        plain["guidance"] = "" if self.guidance is None else json.dumps(self.guidance.to_json())
        plain["boundary"] = "" if self.boundary is None else json.dumps(self.boundary)
        return {"format_version": _FORMAT_VERSION, **{k: v for k, v in plain.items() if v}}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Card:
        """The card in a file's metadata."""
        version = metadata.get("format_version")
        if version != _FORMAT_VERSION:
            reason = "" if version == "1" else ": update Learned Solvers" if version else ": this is not a solver file"
            raise ValueError(f"format_version must be {_FORMAT_VERSION}, got {version or 'none'}{reason}")
        values: dict[str, Any] = {k: v for k, v in metadata.items() if k not in ("format_version", "format")}
        if missing := {"family", "prediction", "architecture", "checkpoint", "steps"} - set(values):
            raise ValueError(f"the card lacks {', '.join(sorted(missing))}")
        if unknown := set(values) - {f.name for f in fields(cls)}:
            raise ValueError(f"the card has unknown entries {', '.join(sorted(unknown)[:5])}: update Learned Solvers")
        if (transferable := values.get("transferable", "false")) not in ("true", "false"):
            raise ValueError(f"transferable must be true or false, got {transferable!r:.40}")
        values["transferable"] = transferable == "true"
        if "guidance" in values:
            values["guidance"] = Guidance.from_json(_json("guidance", values["guidance"]))
        if "boundary" in values:
            values["boundary"] = _json("boundary", values["boundary"])
        steps = _json("steps", values["steps"])
        if not isinstance(steps, dict) or not all(map(is_count, steps)):
            raise ValueError(f"the card's steps must be an object of step counts from 1 to 9999, got {steps!s:.80}")
        values["steps"] = {int(n): StepCard.from_json(step) for n, step in steps.items()}
        return cls(**values)


_STRINGS = tuple(f.name for f in fields(Card) if f.name not in ("steps", "transferable", "guidance", "boundary"))


def _json(name: str, text: str) -> Any:
    try:
        return read_json(text)
    except ValueError as error:
        raise ValueError(f"cannot parse the card's {name}: {str(error)[:200]}") from error


def _check_text(name: str, value: object) -> None:
    if not is_text(value, _LONGEST_TEXT):
        raise ValueError(
            f"{name} must be text of at most {_LONGEST_TEXT} characters without control characters, got "
            f"{str(value)!r:.40}"
        )
