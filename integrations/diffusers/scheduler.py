"""A learned solver as a diffusers scheduler."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from ...samplers import FlowNoise, Guidance, Solver, SolverTable, load_solver, part_of_table
from ...samplers.loop import next_state
from ...samplers.remarks import mismatches, notes
from .network import FLOW, VP, Network

__all__ = ["LearnedSolverScheduler"]

_log = logging.getLogger("learned_solvers")


class LearnedSolverScheduler(SchedulerMixin, ConfigMixin):
    """A learned solver as a diffusers scheduler.

        config = pipe.scheduler.config
        pipe.scheduler = LearnedSolverScheduler.from_config(config, solver="dyweight_sd15", guidance=7.5)

    The config says what the pipeline's network predicts and its noise schedule. The solver has its own noise levels:
    options for spacing, Karras sigmas or shift have no effect, and timesteps are fractional. Half-precision states are
    kept and combined in float32.

    Args:
        solver: A bundled solver's name, the path of a file, or a Solver.
        guidance: Guidance of the run, of the kind that the solver was fitted with. None: the solver's usual one.
        tokens: Number of latent tokens of the image, H/16 * W/16 in pixels, for solvers whose grid depends on it.
            None: the number for which this config gives the pipeline's `mu`, as in the pipelines of FLUX.1 and SD3.
        prediction_type: "epsilon", "v_prediction" or "flow_prediction".
        num_train_timesteps: Number of timesteps of an eps or v model; the last timestep of a flow model.
        beta_start: First beta of an eps or v model.
        beta_end: Last beta.
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2".
        trained_betas: All betas, instead of the three above.
        rescale_betas_zero_snr: Rescale the betas to zero terminal SNR.
        use_dynamic_shifting: Whether the pipeline passes `mu`.
        base_shift: mu at `base_image_seq_len` tokens.
        max_shift: mu at `max_image_seq_len` tokens.
        base_image_seq_len: See `base_shift`.
        max_image_seq_len: See `max_shift`.

    Attributes:
        order: Network calls per timestep.
        solver: The Solver.
        table: The SolverTable of the last `set_timesteps`.
        timesteps: Timestep of each network call, shape [calls].
        sigmas: Noise level of the state at each network call, and of the result, shape [calls + 1], on the CPU.

    Raises:
        ValueError: The solver file is invalid, or was fitted for another kind of model.
    """

    order = 1
    _compatibles = [*VP, *FLOW]  # noqa: RUF012 - as in diffusers

    @register_to_config
    def __init__(
        self,
        solver: str | Path | Solver,
        guidance: float | None = None,
        tokens: int | None = None,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
    ) -> None:
        self.solver = _load(solver)
        self.register_to_config(solver=_SolverName(self.solver))
        self._network = Network.of(self.config)
        self.num_inference_steps: int | None = None
        self._logged: set[str] = set()
        # Refuses a solver for another kind of model before the run.
        self._start(self.solver.table(self.solver.steps[-1], self._network.noise.with_tokens(), guidance))

    @classmethod
    def from_solver(
        cls, solver: str | Path | Solver, guidance: float | None = None, **config: Any
    ) -> LearnedSolverScheduler:
        """A scheduler for flow models, or for eps models with Stable Diffusion's betas, as the solver has it.

        Args:
            solver: A bundled solver's name, the path of a file, or a Solver.
            guidance: Guidance of the run. None: the solver's usual one.
            config: Other arguments of the class.
        """
        solver = _load(solver)
        usual: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        if solver.prediction == "flow":
            usual = {"prediction_type": "flow_prediction"}
        return cls(solver, guidance, **{**usual, **config})

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler for the model of another scheduler's config. Pass `solver=`; see the class.

        Raises:
            ValueError: The model's ODE is another one, or `solver` is missing.
        """
        if isinstance(config, dict):
            if "solver" not in {*config, *kwargs}:
                raise ValueError("pass solver=, a bundled solver's name or the path of a file")
            # diffusers replaces the other scheduler's default values by this one's, so they are passed on as given.
            known = {key: config[key] for key in cls._get_init_keys(cls) if key in config}
            kwargs = {**known, "prediction_type": Network.of(config).prediction, **kwargs}
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, subfolder: str | None = None, **kwargs: Any) -> Any:
        """A saved scheduler, with the solver file next to its config."""
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        if folder.is_dir():
            config: Any = cls.load_config(folder)
            saved = config.get("solver")
            if saved and (file := _file_in(folder, saved)).is_file():
                kwargs = {"solver": file, **kwargs}
        return super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes the config and, next to it, the solver file; both replace existing ones, as usual in diffusers."""
        os.makedirs(save_directory, exist_ok=True)
        self.solver.save(_file_in(Path(save_directory), self.solver.name), overwrite=True)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Prepares a run of the solver with a number of network calls.

        Args:
            num_inference_steps: Network calls.
            device: Device of `timesteps`.
            sigmas: Levels 1 to 1 / n, evenly spaced, which many pipelines pass instead of n.
            mu: The pipeline's shift, see `tokens`.

        Raises:
            ValueError: The solver does not have this step count, or the sigmas are other ones.
        """
        if sigmas is not None:
            levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
            num_inference_steps = len(levels)
            usual = torch.linspace(1, 1 / max(1, len(levels)), len(levels), dtype=torch.float64)
            if not torch.allclose(levels, usual, atol=1e-4):
                raise ValueError(
                    "a learned solver has its own noise levels: pass num_inference_steps instead of sigmas"
                )
        if num_inference_steps is None:
            raise ValueError("the number of steps is missing: pass num_inference_steps")
        solver, noise, guidance = self.solver, self._network.noise, self.config["guidance"]
        step = solver.card.steps.get(num_inference_steps)
        if self._network.is_flow and noise.tokens is None and step and step.grid and step.grid.needs_tokens:
            noise = FlowNoise(self._tokens_at(mu))
        self._start(solver.table(num_inference_steps, noise, guidance), device)
        self.num_inference_steps = num_inference_steps
        fitted, run = solver.card.guidance, None
        if fitted is not None and fitted.kind != "none" and guidance is not None:
            run = Guidance(fitted.kind, (float(guidance),))
        facts = mismatches(solver, num_inference_steps, noise, architecture=solver.card.architecture, guidance=run)
        for fact in (*facts, *notes(solver, num_inference_steps)):
            if fact not in self._logged:
                _log.warning("%s: %s", solver.name, fact)
                self._logged.add(fact)

    def _tokens_at(self, mu: float | None) -> int:
        """The number of tokens for which a pipeline with this config passes `mu`; ValueError if no number does."""
        config = self.config
        rise, tokens = config["max_shift"] - config["base_shift"], math.nan
        if mu is not None and rise:
            span = config["max_image_seq_len"] - config["base_image_seq_len"]
            tokens = config["base_image_seq_len"] + (mu - config["base_shift"]) * span / rise
        if not (tokens >= 1 and abs(tokens - round(tokens)) < 1e-3):
            raise ValueError(
                f"{self.solver.name}'s noise levels depend on the image size, which this pipeline's shift does not "
                "tell: pass tokens=H/16 * W/16 to the scheduler"
            )
        return round(tokens)

    def _start(self, table: SolverTable, device: str | torch.device | None = None) -> None:
        """Prepares a run of a table."""
        self.table = self._part = table
        self.timesteps = self._network.times(table.sigmas[table.analytic_first :]).to(device)
        self.sigmas = table.levels[table.analytic_first :].float()
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._entries: dict[int, Tensor] = {}
        self._state: Tensor | None = None  # the last result, not yet rounded

    @property
    def _first_factor(self) -> float:
        """Factor of the state in an analytic first step, which needs no network; else 1."""
        table = self.table
        if not table.analytic_first:
            return 1.0
        return float(table.scale[0] + table.coeffs[0, 0] / (1 + table.sigma_start**2) ** 0.5)

    @property
    def init_noise_sigma(self) -> float:
        """Factor of unit noise in the initial state. An analytic first step has then already been made."""
        return self.table.sigma_start * self._first_factor

    @property
    def step_index(self) -> int | None:
        """Index of the current timestep; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the pipeline's first timestep; None if it has not set one."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Sets the index of the pipeline's first timestep, as pipelines for image-to-image do."""
        self._begin_index = begin_index

    def _index_of(self, timestep: float | Tensor) -> int:
        value = float(torch.as_tensor(timestep).flatten()[0])
        return int((self.timesteps.cpu() - value).abs().argmin())

    def _row(self, timestep: float | Tensor) -> int:
        """The row of `_part` for the current timestep. The first call of a run chooses the part."""
        if self._step_index is None:
            self._step_index = self._index_of(timestep) if self._begin_index is None else self._begin_index
            if self._step_index > 0:
                level = self.table.levels[self._step_index + self.table.analytic_first].item()
                self._part = part_of_table(self.table, level, self.table.sigma_end)
        return self._step_index + self._part.steps - len(self.timesteps)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """The network's input for a state [B, ...]."""
        row = self._row(timestep)  # before `_part` is read
        return self._network.input(sample, self._part.sigmas[row].item())

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next state.

        Args:
            model_output: The network's output with guidance applied, shape [B, ...].
            timestep: The current one of `timesteps`.
            sample: The state, shape [B, ...].
            return_dict: Whether to return a SchedulerOutput instead of a tuple.
        """
        i, part, entries = self._row(timestep), self._part, self._entries
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        if self._state is not None and sample.dtype != x.dtype and torch.equal(sample, self._state.to(sample.dtype)):
            x = self._state
        if part.analytic_first and i == 1:
            entries[0] = x / (self._first_factor * (1 + part.sigma_start**2) ** 0.5)
        sigma = part.sigmas[i].item()
        denoised = self._network.denoised(x, sigma, model_output.to(x.dtype))
        entries[i] = denoised if part.entry == "denoised" else (x - denoised) / sigma
        self._state = x = next_state(x, part.scale[i].item(), part.coeffs[i, : i + 1].tolist(), entries)
        for j in [j for j in entries if not part.coeffs[i + 1 :, j].any()]:
            del entries[j]
        self._step_index = (self._step_index or 0) + 1
        x = x.to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """States of clean latents [B, ...] with unit noise [B, ...] at `timesteps` [B].

        If the pipeline has set a begin index: at its first timestep, or within a run at the current one.
        """
        table, steps = self.table, len(self.timesteps)
        if not timesteps.numel():
            raise ValueError(f"the strength leaves none of {steps} steps: raise it to at least 1/{steps}")
        clean = original_samples.to(torch.promote_types(original_samples.dtype, torch.float32))
        if self._begin_index is None:
            indices = torch.tensor([self._index_of(t) for t in timesteps.flatten()])
        else:
            indices = torch.tensor([self._begin_index if self._step_index is None else self._step_index])
        at_start = (indices == 0) & table.analytic_first
        sigma = table.levels[torch.where(at_start, 0, indices + table.analytic_first)]
        factor = torch.where(at_start, self._first_factor, 1.0)
        sigma, factor = (v.to(clean).reshape(-1, *[1] * (clean.ndim - 1)) for v in (sigma, factor))
        signal = 1 - sigma if self._network.is_flow else 1
        return (factor * (signal * clean + sigma * noise.to(clean))).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, under the name that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]


class _SolverName(str):
    """A solver's name in a config. It carries the solver, which copies of the config then have."""

    solver: Solver

    def __new__(cls, solver: Solver) -> _SolverName:
        name = super().__new__(cls, solver.name)
        name.solver = solver
        return name

    def __reduce__(self) -> tuple[type[_SolverName], tuple[Solver]]:
        return _SolverName, (self.solver,)


def _load(solver: str | Path | Solver) -> Solver:
    if isinstance(solver, _SolverName):
        return solver.solver
    return solver if isinstance(solver, Solver) else load_solver(solver)


def _file_in(folder: Path, solver: str) -> Path:
    return folder / f"{Path(solver).name.removesuffix('.safetensors')}.safetensors"
