"""The plot of a comparison: error to the teacher against network calls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from PIL import Image

from .canvas import Canvas
from .measure import Result

__all__ = ["draw_errors", "select_lines"]

_PEER_LINES = 4  # more where the best peer differs between more numbers of calls
_LEARNED_COLOURS = ("#d62728", "#e8820e", "#8e3bb0")
_PEER_COLOURS = ("#1f4e79", "#4a86b8", "#7a7a7a", "#ababab", "#2f8f83", "#7fb7ae")
_LEFT, _TOP, _WIDTH, _HEIGHT = 70, 76, 540, 330


def draw_errors(title: str, results: Sequence[Result]) -> Image.Image:
    """Draws learned solvers thick and the best peers thin, each name at the end of its line, 800 pixels wide."""
    canvas = Canvas(800, 460, fine=2)
    message = _lead(results)
    canvas.text(16, 22, message or title, 16, canvas.INK, width=768)
    canvas.text(16, 46, title if message else "", 14, width=768)
    lines, calls = select_lines(results), sorted({result.calls for result in results})
    errors = [result.error for line in lines.values() for result in line] or [1.0]
    area = canvas.at(_LEFT, _TOP)
    height = area.axis(_WIDTH, _HEIGHT, min(errors) / 1.1, max(errors) * 1.1, logarithmic=True)
    stride = (_WIDTH - 40) / max(1, calls[-1] - calls[0])
    for n in calls:
        area.text(20 + stride * (n - calls[0]), _HEIGHT + 14, str(n), anchor="mm")
    area.text(_WIDTH / 2, _HEIGHT + 36, "network calls (vertical axis: RMSE to the teacher)", anchor="mm")
    of_learned, of_peers, labels = cycle(_LEARNED_COLOURS), cycle(_PEER_COLOURS), []
    colours = {name: next(of_learned if line[0].learned else of_peers) for name, line in lines.items()}
    for name, line in reversed(lines.items()):  # learned solvers on top
        learned, colour = line[0].learned, colours[name]
        points = [(20 + stride * (result.calls - calls[0]), height(result.error)) for result in line]
        area.line(points, colour, 3.5 if learned else 1.5)
        for x, y in points:
            area.disc(x, y, 4.5 if learned else 3, colour)
        labels.append((points[-1][1], name, colour))
    bottom = -17.0
    for y, name, colour in sorted(labels):
        bottom = max(y, bottom + 17)  # labels that would overlap are moved apart
        area.text(_WIDTH + 10, bottom, name, 14, colour, width=800 - _LEFT - _WIDTH - 20)
    return canvas.reduced()


def select_lines(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by solver: learned ones, the best peer of each number of calls, and the peers best on average."""
    lines: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.calls):
        if 0 < result.error < float("inf") and result.used == result.calls:  # an unused call would be drawn twice
            lines.setdefault(result.method, []).append(result)
    by_calls = [[r for line in lines.values() for r in line if r.calls == n] for n in {r.calls for r in results}]
    orders = [[r.method for r in sorted(group, key=lambda result: result.error)] for group in by_calls]
    learned = [name for name, line in lines.items() if line[0].learned]
    needed = {next((name for name in order if name not in learned), None) for order in orders}

    def rank(name: str) -> tuple[bool, int]:
        ranks = (order.index(name) if name in order else len(order) for order in orders)
        return name not in needed, sum(ranks)

    peers = sorted((name for name in lines if name not in learned), key=rank)
    return {name: lines[name] for name in [*learned, *peers[: max(_PEER_LINES, len(needed - {None}))]]}


def _lead(results: Sequence[Result]) -> str:
    """The lead over the best peer as text; empty unless a learned solver is closer at each number of calls."""
    ratios = []
    for calls in {result.calls for result in results if result.learned}:
        learned, peers = ([r.error for r in results if (r.calls, r.learned) == (calls, k)] for k in (True, False))
        if peers:
            ratios.append(min(peers) / min(learned))
    if not ratios or min(ratios) < 1:
        return ""
    span = dict.fromkeys(f"{ratio:.1f}" for ratio in (min(ratios), max(ratios)))
    return f"{' to '.join(span)} times closer to the teacher than the best stock sampler on its best grid"
