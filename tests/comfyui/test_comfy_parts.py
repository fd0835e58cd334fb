"""Parts of a schedule: image-to-image, a second pass at a larger size, split sigmas shared with stock samplers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from comfy_situations import ORACLES, Situation, assert_same, differs, error_in, euler_solver, plain
from torch.testing import assert_close

pytestmark = pytest.mark.comfy
both_oracles = pytest.mark.parametrize("which", ORACLES)


def drawn(situation):
    """Adds a picture drawn by a stock sampler, and makes it the latent."""
    situation.add("draw", "KSamplerSelect", sampler_name="euler")
    situation.add("schedule", "BasicScheduler", model=["1", 0], scheduler="simple", steps=2, denoise=1.0)
    situation.latent = situation.run("draw", ["draw", 0], ["schedule", 0])
    return situation


def sigmas_of(situation, key="sigmas"):
    return torch.tensor(
        json.loads(situation.history["outputs"][key]["text"][0].removeprefix("tensor(").partition(")")[0])
    )


@pytest.mark.parametrize("model", ["sd15", "sd3"])
@pytest.mark.parametrize("denoise", [0.3, 0.7])
def test_image_to_image_equals_stock_euler_on_the_same_sigmas(server, model, denoise):
    situation = drawn(Situation.of(server, model, "euler"))
    situation.denoise = denoise
    situation.add("sigmas", "PreviewAny", source=["ours", 1])
    ours = situation.assert_oracle()
    sigmas = sigmas_of(situation)
    assert sigmas[-1] == 0 and len(sigmas) < 5
    assert differs(ours, situation.submit("draw")[0])
    if model == "sd3":  # where a stock sampler starts whatever its scheduler: percent_to_sigma(1 - denoise), shift 3
        assert_close(float(sigmas[0]), 3 * denoise / (1 + 2 * denoise), rtol=1e-3, atol=0.0)


@both_oracles
@pytest.mark.parametrize("model", ["sd15", "sd3"])
def test_a_picture_at_full_denoise_is_forgotten_like_by_a_stock_sampler(server, model, which):
    drawn(Situation.of(server, model, which)).assert_oracle()


@pytest.mark.parametrize("model", ["sd15", "sd3"])
def test_a_second_pass_at_a_larger_size(server, model):
    situation = Situation.of(server, model, "euler")
    situation.solver()
    situation.prompt["first"] = situation.prompt["ours"]
    low = situation.run("low", ["first", 0], ["first", 1])
    size = {"upscale_method": "bilinear", "width": 96, "height": 128, "crop": "disabled"}
    situation.latent = situation.add("larger", "LatentUpscale", samples=low, **size)
    situation.denoise = 0.5
    ours = situation.assert_oracle()
    assert ours.shape[-2:] == (16, 12)


@pytest.mark.parametrize("model", ["sd15", "sd3", "wan"])
@pytest.mark.parametrize("step", [1, 3])
def test_both_parts_of_split_sigmas_equal_stock_euler(server, model, step):
    situation = Situation.of(server, model, "euler")
    situation.solver()
    situation.add("split", "SplitSigmas", sigmas=["ours", 1], step=step)
    situation.add("nonoise", "DisableNoise")
    for high in ("ours", "theirs"):
        first = situation.run(f"{high}high", [high, 0], ["split", 0])
        for low in ("ours", "theirs"):
            wires = {"latent_image": first, "noise": ["nonoise", 0]}
            situation.run(f"{high}{low}", [low, 0], ["split", 1], **wires)
    situation.run("stock", ["theirs", 0], ["ours", 1])
    high, stock_high, whole = situation.submit("ourshigh", "theirshigh", "stock")
    assert_same(high, stock_high)
    # Learned then learned, learned then stock, stock then learned: all the same as stock then stock.
    reference = situation.submit("theirstheirs")[0]
    for latent in situation.submit("oursours", "ourstheirs", "theirsours"):
        assert_same(latent, reference)
    assert_same(reference, whole, 1e-3)  # through the model's own units and back


TABLES = [
    ("sd15", "dyweight_sd15", 4, "00036-mscoco-nfe8"),
    ("sd15", "dyweight_sd15", 6, "00037-mscoco-nfe12"),
    ("sd15", "ds_vp-dit", 5, "vp-dit"),
    ("sd3", "ds_flow-sit", 5, "flow-sit"),
]


@pytest.mark.parametrize(("model", "solver", "steps", "table"), TABLES)
def test_a_learned_part_then_a_stock_sampler_and_the_other_way_round(server, model, solver, steps, table):
    # TinyPublished runs rows of the paper's figures; a row's lost history goes to its oldest remaining gradient.
    step = 2
    situation = Situation.of(server, model, "published")
    situation.add("stock", "KSamplerSelect", sampler_name="euler")
    situation.add("nonoise", "DisableNoise")
    situation.solver()
    situation.prompt["ours"]["inputs"] |= {"solver": solver, "steps": steps}
    situation.add("split", "SplitSigmas", sigmas=["ours", 1], step=step)
    wires = {"table": table, "steps": steps}
    situation.add("first", "TinyPublished", **wires, stop=step)
    situation.add("last", "TinyPublished", **wires, start=step)
    for mine, high, low in (("learned", "ours", "stock"), ("hand", "first", "stock"), ("late", "stock", "ours"),
                            ("latehand", "stock", "last")):  # fmt: skip
        latent = situation.run(f"{mine}high", [high, 0], ["split", 0])
        situation.run(mine, [low, 0], ["split", 1], latent_image=latent, noise=["nonoise", 0])
    learned, hand, late, late_hand = situation.submit("learned", "hand", "late", "latehand")
    assert_same(learned, hand, 3e-5)
    assert_same(late, late_hand, 3e-5)
    assert differs(learned, late)


@both_oracles
def test_of_other_sigmas_only_the_ends_count(server, which):
    situation = Situation.of(server, "sd15", which)
    situation.add("other", "BasicScheduler", model=["1", 0], scheduler="simple", steps=9, denoise=1.0)
    situation.solver()
    situation.run("ours", ["ours", 0], ["other", 0])
    (ours,) = situation.submit("ours")
    assert_same(ours, plain(server, "sd15", which))


def refusal(server, model, solver, steps, kind, **inputs):
    situation = Situation.of(server, model, "published")
    situation.solver()
    situation.prompt["ours"]["inputs"] |= {"solver": solver, "steps": steps}
    sigmas = situation.add("changed", kind, sigmas=["ours", 1], **inputs)
    situation.run("ours", ["ours", 0], sigmas)
    return error_in(situation)


def test_ascending_sigmas_are_refused(server):
    assert "hand over the noise levels in descending order, unflipped" in refusal(
        server, "sd3", "ds_flow-sit", 5, "FlipSigmas"
    )


def test_a_grid_that_turns_back_has_no_parts(server):
    path = server.base / "models" / "solver_weights" / "back.safetensors"
    euler = euler_solver("flow", 4)
    weights = {**euler.parameters[4], "weights": torch.diag(torch.tensor([3.0, 1, 1, 1], dtype=torch.float64))[None]}
    replace(euler, parameters={4: weights}).save(path)
    situation = Situation.of(server, "sd3", "published")
    situation.denoise = 0.5
    situation.solver()
    situation.prompt["ours"]["inputs"] |= {"solver": path.name, "steps": 4}
    situation.run("ours", ["ours", 0], ["ours", 1])
    message = error_in(situation)
    path.unlink()
    assert "only a descending grid has parts" in message and "run it with denoise 1, unsplit" in message


def test_a_part_below_the_solvers_own_end_is_refused(server):
    # dyweight_sd15 ends at the model's lowest level; the last step of a stock schedule starts there.
    situation = Situation.of(server, "sd15", "published")
    situation.add("stock", "BasicScheduler", model=["1", 0], scheduler="karras", steps=4, denoise=1.0)
    situation.add("split", "SplitSigmas", sigmas=["stock", 0], step=3)
    situation.solver()
    situation.run("ours", ["ours", 0], ["split", 1])
    assert "the state must be noisier than the solver's own end, 0.02" in error_in(situation)
