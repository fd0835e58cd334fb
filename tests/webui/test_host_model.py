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
    ("cfg", "distilled", "first", "second"),
    [
        (7, None, Guidance("cfg", (7,)), Guidance("cfg", (7,))),
        (7, False, Guidance("cfg", (7,)), Guidance("cfg", (3,))),
        (1, True, Guidance("embedded", (3.5,), cfg=1), Guidance("embedded", (2.5,), cfg=3)),
        (-1, None, None, None),
        (float("nan"), None, None, None),
    ],
)
def test_the_guidance_of_a_pass(host_model, cfg, distilled, first, second):
    job = {"cfg_scale": cfg} | ({} if distilled is None else FORGE)
    model = SimpleNamespace(**({} if distilled is None else {"use_distilled_cfg_scale": distilled}))
    for is_second, guidance in ((False, first), (True, second)):
        assert host_model.guidance_of(SimpleNamespace(**job, is_hr_pass=is_second), model) == guidance


def forge_model(*classes):
    """A model of Forge, by its architecture's class and base classes."""
    config = object
    for name in ("BASE", *classes[::-1]):
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
