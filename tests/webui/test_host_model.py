"""The guidance of a WebUI job: AUTOMATIC1111 has one CFG, Forge further ones for hires fix and distilled models."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
from learned_solvers.samplers import Guidance

PATH = Path(__file__).resolve().parents[2] / "webui_extension" / "host_model.py"
FORGE = {"hr_cfg": 3.0, "distilled_cfg_scale": 3.5, "hr_distilled_cfg": 2.5}


def guidance_of(job, model):
    """Calls the extension's function, without the package around it, which needs its host."""
    spec = spec_from_file_location("learned_solvers.webui_extension.host_model", PATH)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.guidance_of(SimpleNamespace(**job), SimpleNamespace(**model))


@pytest.mark.parametrize(
    ("job", "distilled", "guidance"),
    [
        ({"cfg_scale": 7, "is_hr_pass": False}, None, Guidance("cfg", (7,))),
        ({"cfg_scale": 7, "is_hr_pass": True}, None, Guidance("cfg", (7,))),
        ({"cfg_scale": 7, "is_hr_pass": False, **FORGE}, False, Guidance("cfg", (7,))),
        ({"cfg_scale": 7, "is_hr_pass": True, **FORGE}, False, Guidance("cfg", (3,))),
        ({"cfg_scale": 1, "is_hr_pass": False, **FORGE}, True, Guidance("embedded", (3.5,), cfg=1)),
        ({"cfg_scale": 1, "is_hr_pass": True, **FORGE}, True, Guidance("embedded", (2.5,), cfg=3)),
        ({"cfg_scale": -1, "is_hr_pass": False}, None, None),
        ({"cfg_scale": float("nan"), "is_hr_pass": False}, None, None),
    ],
)
def test_the_guidance_of_a_pass(job, distilled, guidance):
    model = {} if distilled is None else {"use_distilled_cfg_scale": distilled}
    assert guidance_of(job, model) == guidance
