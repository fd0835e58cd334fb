"""Recognises models distilled for few steps, whose many-step limit is another picture than their own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...samplers.architectures import Architecture
from ..starts.candidates import UsualSampler

__all__ = ["distilled_remark"]

_NAMES = {  # in names of files, lower case: usual steps if the name has none; FLUX.2 Klein has base models, too
    r"lightning|schnell|lightx2v|causvid|klein(?!.*base)|dmd2?(?![a-z])|(?<![a-z])(tcd|pcm)(?![a-z])": 4,
    r"turbo|distill|(?<![a-z])lcm(?![a-z])|(?<![a-z])hyper(?=[-_ .]?(sd|flux))": 8,
}
_STEPS = r"(?<!\d)(1[0-6]|[1-9])[-_ ]?steps?(?![a-z]|[-_ ]?\d{3})"  # not v2-step00018000"
_FEW = 10  # of an architecture's usual steps, at CFG 1


def distilled_remark(
    facts: Architecture, names: Sequence[str], usual: UsualSampler, steps: Sequence[int], advice: str
) -> str | None:
    """A sentence for a fit to the many-step limit of a distilled model; None if no name and no usual value shows one.

    Args:
        facts: About the architecture.
        names: Of the model's files, LoRAs included.
        usual: What the architecture is usually sampled with.
        steps: Step counts of the fit, ascending.
        advice: The remedy, with {sampler}, {scheduler} and {steps} of a teacher that samples as usual, and {fewer}
            steps for a solver of it.
    """
    shown = [(name, int(match[1])) for name in names if (match := re.search(_STEPS, name.lower()))]
    shown += [(n, count) for n in names for kind, count in _NAMES.items() if re.search(kind, n.lower())]
    if facts.cfg == 1 and facts.steps is not None and facts.steps <= _FEW:
        shown.append((facts.name, facts.steps))
    if not shown:
        return None
    name, count = shown[0]
    fewer = " ".join(map(str, steps)) if steps[-1] < count else max(1, count // 2)
    words = {"sampler": usual.method, "scheduler": usual.grid_name, "steps": count, "fewer": fewer}
    return (
        f"{name} looks distilled for few steps (Turbo, Lightning, ...). The many steps of this teacher converge to "
        f"another picture than such a model's own. To learn from what you sample with today, {advice.format(**words)}."
    )
