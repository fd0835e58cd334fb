"""Low precision: fits to half-precision copies of the networks, judged on these copies and on the originals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from learned_solvers.training.starts.candidates import rmse

from .fidelity import Sizes, fit, unseen_of
from .peers import best_peers, least_error
from .subjects import SUBJECTS

__all__ = ["DTYPES", "precision"]

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def precision(
    name: str, dtype: str, guidance: float, steps: Sequence[int], sizes: Sizes, cache: Path | None
) -> dict[str, Any]:
    """Returns errors to the original's teacher of DyWeight fitted to the copy and of the best peer, run on both."""
    subject = SUBJECTS[name]
    unseen = unseen_of(subject, guidance, sizes.unseen, cache)
    copied = replace(unseen, model=subject.model(DTYPES[dtype]))
    result = fit(subject, "dyweight", guidance, steps, sizes, DTYPES[dtype])
    records = []
    for n in steps:
        table, peers = result.solver.table(n, subject.noise), best_peers(subject, unseen, n, sizes)
        record = {"steps": n, "ours": rmse(unseen, table), "peer": least_error(unseen, peers)}
        on_copy = {"ours": rmse(copied, table), "peer": least_error(copied, peers)}
        records.append({**record, "on_copy": on_copy})
        print(name, dtype, n, f"1/{record['peer'] / record['ours']:.2f}", on_copy, flush=True)
    return {"network": name, "dtype": dtype, "guidance": guidance, "records": records}
