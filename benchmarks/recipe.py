"""What a fit costs: Gauss-Newton against the papers' gradient recipe, same model, teacher and unseen starts.

    python benchmarks/recipe.py            writes benchmarks/results/recipe.json; an hour on two idle cores

The recipe (DyWeight, arXiv 2603.11607, run.sh): 10,000 fresh starts, each with a Heun-35 teacher, one pass in batches
of 16 (625 updates), Adam with warm-up, cosine and clipping, weights of iPNDM as the start, history 3. Its learning rate
is tuned over RATES and its grid over SHIFTS, and it is charged for the best run alone. Calls are network calls per
sample; those of the teacher are counted on both sides, a backward pass as two. Errors are RMSE to the teacher on unseen
starts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))
    import _as_package  # noqa: F401

from learned_solvers.samplers import FlowNoise, Grid, SolverTable, ipndm
from learned_solvers.samplers.version import VERSION
from learned_solvers.training import GradientDescent, fit_solver
from learned_solvers.training.demo import demo_starts
from learned_solvers.training.models.digits import load_digits
from learned_solvers.training.objective import make_objective
from learned_solvers.training.problem import Problem
from learned_solvers.training.samples import CountedDenoiser, Samples
from learned_solvers.training.spaces import make_space
from learned_solvers.training.teacher import Teacher

TEACHER = Teacher("heun", 35)
STEPS = (3, 5, 7)
FRESH, HELD_OUT, UNSEEN = 10_000, 16, 4096
FITTED = {3: 384, 5: 208, 7: 48}  # few steps are cheap and have few parameters, whose last percent takes samples
OWN_TEACHER = Teacher("ipndm", 40)  # 40 calls instead of Heun-35's 69
RATES, SHIFTS = (3e-2, 1e-1), (0.7, 1.0)  # at 1e-2 it ends 20 % worse
NOISE, OBJECTIVE = FlowNoise(), make_objective("l2")
RESULTS = Path(__file__).resolve().parent / "results" / "recipe.json"


def problem_of(count: int, seed: int, teacher: Teacher = TEACHER) -> Problem:
    """Returns starts of the bundled model with their teacher's ends; `space` is still to be set."""
    x, extra_args = demo_starts(count, seed)
    model, samples = CountedDenoiser(load_digits(), x.dtype), Samples(x, extra_args, 256)
    return Problem(model, None, samples, teacher.reference(model, samples, NOISE), OBJECTIVE, count)  # pyright: ignore


def recipes(fresh: Problem, unseen: Problem, teacher_calls: int, teacher_seconds: float) -> list[dict[str, Any]]:
    """Returns a record per step count, grid and learning rate."""
    records = []
    for steps in STEPS:
        for shift in SHIFTS:
            grid = Grid("flow_shift", {"shift": shift})
            space = make_space("dyweight", steps, NOISE, grid, 3, False)
            own = Problem(fresh.model, space, fresh.samples, fresh.reference, OBJECTIVE, len(fresh.samples))
            start = space.initial(ipndm(grid.levels(steps, NOISE), 3))
            for rate in RATES:
                fresh.model.calls, began = 0, time.perf_counter()
                theta, _ = GradientDescent("adam", rate=rate).fit(own, start, unseen_of(unseen, space))
                seconds = time.perf_counter() - began + teacher_seconds
                calls = fresh.model.calls + teacher_calls
                record = {"steps": steps, "shift": shift, "rate": rate, **errors(unseen, space.table(theta))}
                records.append({**record, "network_calls": calls, "seconds": seconds})
                print(records[-1], flush=True)
    return records


def errors(unseen: Problem, table: SolverTable) -> dict[str, float]:
    """Returns the RMSE over all unseen starts, and the median of the starts' own: a few starts rule the first."""
    squares = unseen.errors(table)
    return {"error": float(squares.mean().sqrt()), "median": float(squares.median().sqrt())}


def unseen_of(unseen: Problem, space: Any) -> Problem:
    """Returns a small judge for the recipe's last line, on calls of its own."""
    few = unseen.first(16)
    return Problem(CountedDenoiser(few.model.model, torch.float32), space, few.samples, few.reference, OBJECTIVE, 16)


def gauss_newton(steps: int, unseen: Problem) -> dict[str, Any]:
    """Returns the record of one fit: teacher, scan, starts and iterations, from nothing."""
    x, extra_args = demo_starts(FITTED[steps] + HELD_OUT, seed=0)
    began = time.perf_counter()
    result = fit_solver(
        load_digits(), x, noise=NOISE, steps=(steps,), held_out=HELD_OUT, extra_args=extra_args,
        teacher=OWN_TEACHER.method, teacher_steps=OWN_TEACHER.steps,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    record = {
        "steps": steps,
        **errors(unseen, result.solver.table(steps, NOISE)),
        "network_calls": result.report[steps].network_calls + result.teacher_calls,
        "seconds": seconds,
    }
    print(record, flush=True)
    return record


def main() -> None:
    """Runs both sides and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("gauss-newton", "recipe"), help="run one side, keep the other's record")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    unseen = problem_of(UNSEEN, seed=99)
    if args.only != "gauss-newton":
        began = time.perf_counter()
        fresh = problem_of(FRESH, seed=1)
        kept["recipe"] = recipes(fresh, unseen, TEACHER.calls * FRESH, time.perf_counter() - began)
    if args.only != "recipe":
        kept["gauss_newton"] = [gauss_newton(steps, unseen) for steps in STEPS]
    about = {"command": "python benchmarks/recipe.py", "date": date.today().isoformat(), "version": VERSION}
    about |= {"torch": torch.__version__, "threads": args.threads}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"about": about, **kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
