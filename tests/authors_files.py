"""Files in the layouts of the DyWeight authors' code: the snapshot of the pixel code, the FLUX checkpoint."""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections import OrderedDict
from io import BytesIO
from types import ModuleType
from unittest import mock

import torch

WEIGHTS = torch.tensor([[1.1, 9, 9, 9], [-0.5, 1.5, 9, 9], [0.3, -1.3, 1.9, 9], [9, 0.4, -1.3, 1.8]])
MASK = torch.ones(4, 4).tril().triu(-2)
T_SCALE = torch.tensor([0.9, 1.05, 0.95])


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def _stand_in(module: ModuleType, name: str) -> object:
    """A function that pickles as module.name."""

    def function(*arguments: object) -> None:
        raise AssertionError(f"{name} was called")

    function.__module__, function.__name__, function.__qualname__ = module.__name__, name, name
    setattr(module, name, function)
    return function


def snapshot_bytes(source: str = "", **changed: object) -> bytes:
    """A pickle in the layout of the pixel code, with some entries changed.

    Its objects carry `source`, Python code that a stock unpickler executes.
    """
    modules = {name: ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "solvers")}
    reconstruct = _stand_in(modules["torch_utils.persistence"], "_reconstruct_persistent_obj")
    student, teacher = (_stand_in(modules["solvers"], name) for name in ("dyweight_sampler", "heun_sampler"))

    def persistent(class_name: str, state: dict) -> Call:
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
        return Call(reconstruct, meta)

    parameters = {"hybrid_weights": torch.nn.Parameter(WEIGHTS), "t_scale": torch.nn.Parameter(T_SCALE)}
    predictor = {
        **{"training": False, "_parameters": OrderedDict(parameters), "_buffers": OrderedDict(mask=MASK)},
        **{"_non_persistent_buffers_set": set(), "_backward_hooks": OrderedDict(), "_is_full_backward_hook": None},
        **{"num_steps": 5, "max_history_steps": 3, "afs": True, "guidance_type": None},
        **{"_init_args": (), "_init_kwargs": {"num_steps": 5}},
    }
    fit = {
        **{"solver_stu": student, "solver_tea": teacher, "teacher_steps": 35},
        **{"schedule_type": "polynomial", "schedule_rho": 7.0, "loss_type": "inception", "dataset_name": "cifar10"},
    }
    states = [{key: changed.get(key, value) for key, value in state.items()} for state in (predictor, fit)]
    content = {"predictor": persistent("Predictor", states[0]), "loss_fn": persistent("Loss", states[1])}
    with mock.patch.dict(sys.modules, modules):
        return pickle.dumps(content, protocol=4)


def checkpoint_bytes(**changed: object) -> bytes:
    """A FLUX checkpoint, with some entries changed."""
    content = {
        "window_size": 2,
        "dyweight_weights_raw": torch.tensor([[0.9, 0, 0], [-0.1, 1.0, 0], [0, -0.2, 0.96]]),
        "dyweight_t_scales": torch.tensor([1.01, 0.98, 0.95]),
        "dyweight_meta": {"K": 3, "tscale_low": 0.5, "tscale_high": 1.5},
        "dyweight_params": {"theta": torch.zeros(3, 3), "phi": torch.zeros(3)},
    }
    buffer = BytesIO()
    torch.save({**content, **changed}, buffer)
    return buffer.getvalue()


def with_entries(changed: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A FLUX checkpoint, with some entries of its zip changed or added."""
    target = BytesIO()
    with zipfile.ZipFile(BytesIO(checkpoint_bytes())) as file, zipfile.ZipFile(target, "w", compression) as copy:
        for name, entry in {**{name: file.read(name) for name in file.namelist()}, **changed}.items():
            copy.writestr(name, entry)
    return target.getvalue()
