"""What the WebUI extension reads from a job and its model, on stand-ins for the hosts' objects."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

import pytest
from host_server import ROOT
from learned_solvers.samplers import Guidance

FORGE = {"hr_cfg": 3.0, "distilled_cfg_scale": 3.5, "hr_distilled_cfg": 2.5}


@pytest.fixture(scope="module")
def host_model():
    """The extension's module, without its package, which imports the host."""
    path = ROOT / "webui_extension" / "host_model.py"
    spec = spec_from_file_location("learned_solvers.webui_extension.host_model", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
def test_the_guidance_of_a_pass(host_model, job, distilled, guidance):
    model = {} if distilled is None else {"use_distilled_cfg_scale": distilled}
    assert host_model.guidance_of(SimpleNamespace(**job), SimpleNamespace(**model)) == guidance


def forge_model(*classes):
    """A model of Forge, by its architecture's class and base classes."""
    config = type("BASE", (), {"__module__": "huggingface_guess.model_list"})
    for name in reversed(classes):
        config = type(name, (config,), {"__module__": "huggingface_guess.model_list"})
    return SimpleNamespace(model_config=config())


@pytest.mark.parametrize(
    ("model", "name", "tokens"),
    [
        (forge_model("Flux"), "Flux", 64 * 48),
        (forge_model("Flux2K9B", "Flux"), "Flux2", 127 * 95),
        (forge_model("SD35"), "SD3", 64 * 48),
        (forge_model("Chroma", "FluxSchnell", "Flux"), "Chroma", 64 * 48),
        (forge_model("Mugen", "SDXL"), "Mugen", 64 * 48),
        (SimpleNamespace(is_sd1=False, is_sdxl=True), "SDXL", 64 * 48),
        (SimpleNamespace(is_sd3=True), "SD3", 64 * 48),
        (SimpleNamespace(is_sd1=False), None, 64 * 48),
    ],
)
def test_the_webuis_architectures_have_comfyuis_names(host_model, model, name, tokens):
    assert host_model.architecture(model) == name
    wrap = SimpleNamespace(inner_model=model, predictor=SimpleNamespace(prediction_type="const"))
    assert host_model.noise_of(wrap, (1, 16, 127, 95)).tokens == tokens
    assert host_model.noise_of(wrap, None).tokens is None
