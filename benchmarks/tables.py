"""Tables of README.md that are written from the records, each between two comments with its name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from statistics import geometric_mean

from learned_solvers.samplers.files.write import write_whole

from .cost import earlier_fits, error_curve, fits_by_calls
from .guidance import leads
from .record import read_records

__all__ = ["NAMES", "with_tables", "write_tables"]

EFFORTS = ("quick", "default", "thorough")
EARLIER = (96, 480)
NAMES = {"digits": "digits", "patches": "photo patches", "shapes": "drawn shapes"}


def write_tables(document: Path) -> None:
    """Replaces the tables of a document by those of the current records."""
    text = document.read_text("utf-8")
    if (new := with_tables(text)) != text:
        write_whole(document, new.encode())
        print(f"tables written: {document}", flush=True)


def with_tables(text: str) -> str:
    """A document with the tables of the current records; those of parts that have not been measured stay."""
    for name, lines in (("cost", _cost()), ("guidance", _guidance())):
        if table := "\n".join(lines):
            between = re.compile(rf"(?<=<!-- table: {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
            text = between.sub(lambda _, table=table: f"\n{table}\n\n", text, count=1)
    return text


def _cost() -> Iterator[str]:
    """Thousand calls and error relative to the best peer's, of each effort and of the earlier method."""
    records = fits_by_calls()
    if not records:
        return
    columns = [*EFFORTS, *(f"earlier, {samples} samples" for samples in EARLIER)]
    yield f"| network | steps | {' | '.join(columns)} |"
    yield "|---" * (2 + len(columns)) + "|"
    for record in sorted(records, key=lambda record: list(NAMES).index(record["network"])):
        name, steps = record["network"], record["steps"]
        curve, earlier = error_curve(record), earlier_fits(name, steps)
        points = chain((curve[effort, None] for effort in EFFORTS), (earlier[samples] for samples in EARLIER))
        cells = [f"{calls / 1000:.1f}: {ratio:.2f}" for calls, ratio in points]
        yield f"| {NAMES[name]} | {steps} | {' | '.join(cells)} |"


def _guidance() -> Iterator[str]:
    """The best peer's error divided by the solvers', by guidance; a summary; the calls of the knots."""
    records = list(read_records("guidance").values())
    if not records:
        return
    ways = ("knots", "fitted there", "fitted at 3")
    columns = [f"{NAMES[record['network']]}: {way}" for record in records for way in ways]
    yield f"| CFG | {' | '.join(columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for points in zip(*(record["points"] for record in records), strict=True):
        ratios = chain.from_iterable(leads(point).values() for point in points)
        yield f"| {points[0]['guidance']:g} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |"
    both = [leads(point) for record in records for point in record["points"]]
    yield ""
    yield (
        f"The solver with knots has a lower error than the best peer at {sum(at['knots'] > 1 for at in both)} of "
        f"{len(both)} points; its error is at most a tenth above that of a solver fitted there at "
        f"{sum(at['dedicated'] <= 1.1 * at['knots'] for at in both)}, and at most a quarter above at "
        f"{sum(at['dedicated'] <= 1.25 * at['knots'] for at in both)}."
    )
    yield ""
    yield "| network | calls of the first knot | of each further knot | part of the first |"
    yield "|---|---|---|---|"
    for record in records:
        first, *further = (geometric_mean(calls) for calls in record["calls"].values())
        each = sum(further) / len(further)
        yield f"| {NAMES[record['network']]} | {first:,.0f} | {each:,.0f} | {each / first:.0%} |"
