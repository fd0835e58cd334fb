"""The cost of a fit: Levenberg-Marquardt and the papers' gradient recipe on the same model and unseen starts.

    python -m benchmarks.recipe             writes benchmarks/results/recipe.json; an hour and a half on two idle cores
    python -m benchmarks.recipe --way gauss-newton --steps 3 5     some runs, which replace only their own records

The recipe (DyWeight, arXiv 2603.11607, run.sh): 10,000 fresh starts, each with a Heun-35 teacher, one pass in batches
of 16 (625 updates), Adam with warm-up, cosine and clipping, weights of iPNDM as the start, history 3. Its learning rate
is tuned over RATES and its grid over SHIFTS, and it is charged for the best run only. Calls are network calls per
sample; a backward pass counts as two. The teacher's calls are included on both sides and also reported separately, as
the recipe's fresh starts dominate its cost. Errors are RMSE to the teacher on unseen starts.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from learned_solvers.samplers import FlowNoise, Grid, ipndm
from learned_solvers.training import GradientDescent, fit_solver
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.data.teacher import Teacher
from learned_solvers.training.data.trial import Trial
from learned_solvers.training.models.digits import digit_starts, load_digits
from learned_solvers.training.optimise.losses import make_objective
from learned_solvers.training.optimise.problem import Problem
from learned_solvers.training.spaces import make_space

from .quality import error_and_median
from .record import provenance, save

TEACHER = Teacher("heun", 35)
STEPS = (3, 5, 7)
FRESH, HELD_OUT, UNSEEN = 10_000, 16, 4096
FITTED = {3: 384, 5: 64, 7: 48}  # with few steps, samples are cheap and the last percent of error needs many
OWN_TEACHER = Teacher("ipndm", 40)  # 40 calls instead of Heun-35's 69
RATES, SHIFTS = (3e-2, 1e-1), (0.7, 1.0)  # at 1e-2 the error is 20 % higher
NOISE = FlowNoise()
WAYS = ("gauss-newton", "recipe")
RUNS: list[tuple[Any, ...]] = [("gauss-newton", n) for n in STEPS]
RUNS += [("recipe", n, shift, rate) for n in STEPS for shift in SHIFTS for rate in RATES]


def trial_of(count: int, seed: int) -> Trial:
    """Starts of the bundled model with the teacher's end states."""
    x, extra_args = digit_starts(count, seed)
    model, samples = CountedDenoiser(load_digits(), x.dtype), Samples(x, extra_args, 256)
    return Trial(model, samples, TEACHER.reference(model, samples, NOISE), count)


def recipe(fresh: Trial, unseen: Trial, steps: int, shift: float, rate: float) -> dict[str, Any]:
    """The record of one run of the papers' recipe; its calls include the teacher's for `fresh`."""
    grid = Grid("flow_shift", {"shift": shift})
    space = make_space("dyweight", steps, NOISE, grid, 3, False)
    problem = Problem.of(fresh, space, make_objective("l2"))
    validation = replace(problem.first(16), model=CountedDenoiser(fresh.model.model, torch.float32))  # a separate count
    start = space.initial(ipndm(grid.levels(steps, NOISE), 3))
    fresh.model.calls = 0
    theta, _ = GradientDescent("adam", rate=rate).fit(problem, start, validation)
    teacher_calls = TEACHER.calls * FRESH
    return {
        "way": "recipe", "steps": steps, "shift": shift, "rate": rate,
        **error_and_median(unseen.errors(space.table(theta))),
        "network_calls": fresh.model.calls + teacher_calls, "teacher_calls": teacher_calls,
    }  # fmt: skip


def gauss_newton(unseen: Trial, steps: int) -> dict[str, Any]:
    """The record of one complete fit: teacher, scan, starts and iterations."""
    x, extra_args = digit_starts(FITTED[steps] + HELD_OUT, seed=0)
    result = fit_solver(
        load_digits(), x, noise=NOISE, steps=(steps,), held_out=HELD_OUT, extra_args=extra_args,
        teacher=OWN_TEACHER.method, teacher_steps=OWN_TEACHER.steps,
    )  # fmt: skip
    return {
        "way": "gauss-newton", "steps": steps, **error_and_median(unseen.errors(result.solver.table(steps, NOISE))),
        "network_calls": result.report[steps].network_calls + result.teacher_calls,
        "teacher_calls": result.teacher_calls,
    }  # fmt: skip


def main() -> None:
    """Runs both optimisers and saves their records."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--way", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--steps", nargs="+", type=int, choices=STEPS, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = provenance(" ".join(["python -m benchmarks.recipe", *sys.argv[1:]]), threads=args.threads)
    unseen, began = trial_of(UNSEEN, seed=99), time.perf_counter()
    fresh = trial_of(FRESH, seed=1) if "recipe" in args.way else None
    teacher_seconds = time.perf_counter() - began
    names = ["-".join(map(str, run)) for run in RUNS]
    for name, (way, steps, *tuning) in zip(names, RUNS, strict=True):
        if way not in args.way or steps not in args.steps:
            continue
        began = time.perf_counter()
        record = recipe(fresh, unseen, steps, *tuning) if fresh and tuning else gauss_newton(unseen, steps)
        record["seconds"] = time.perf_counter() - began + (teacher_seconds if tuning else 0)
        print(record, flush=True)
        save("recipe", name, {"about": about, "record": record}, names)


if __name__ == "__main__":
    main()
