"""Parts of a schedule and of a picture: image-to-image, split sigmas, inpainting."""

from __future__ import annotations

import pytest
import torch
from comfy_graphs import DS_VP, Oracle, Situation, assert_same, differs, one_node
from learned_solvers.samplers import VPNoise
from torch.testing import assert_close


@pytest.mark.parametrize("model", ["sd15", "sd3"])
@pytest.mark.parametrize("denoise", [0.3, 0.7])
def test_image_to_image_starts_where_a_stock_sampler_does_and_equals_euler(server, model, denoise):
    situation = Situation.of(server, model)
    situation.latent = situation.draw()
    situation.denoise = denoise
    situation.show("sigmas", ["learnedsolver", 1])
    learned = situation.assert_oracle()
    sigmas = situation.numbers("sigmas")
    assert sigmas[-1] == 0 and len(sigmas) < 5
    assert f"{len(sigmas) - 1} of its 4 model calls, from sigma" in situation.text("learnedinfo")
    assert differs(learned, situation.sampled("draw"))
    # The level of percent_to_sigma(1 - denoise) with any scheduler: of shift 3, or of the 1000 levels.
    expected = 3 * denoise / (1 + 2 * denoise)
    if model == "sd15":
        index = torch.tensor([999 * denoise], dtype=torch.float64)
        expected = float(VPNoise.stable_diffusion().sigma_at_index(index))
    assert_close(sigmas[0], expected, rtol=2e-3, atol=0.0)


@pytest.mark.parametrize(
    ("model", "which", "step"),
    [
        *((model, "euler", step) for model in ("sd15", "sd3", "wan") for step in (1, 3)),
        *((model, "published", 2) for model in ("sd15", "sd3")),
        ("sd15", Oracle("dyweight_sd15", 6, "00037-mscoco-nfe12"), 2),
        ("sd15", DS_VP, 2),
    ],
)
def test_learned_and_stock_samplers_share_a_split_schedule(server, model, which, step):
    situation = Situation.of(server, model, which)
    (samplers, sigmas), oracle = situation.samplers(), situation.oracle
    learned, first, last = samplers["learned"], samplers["oracle"], samplers["oracle"]
    stock = situation.add("euler", "KSamplerSelect", sampler_name="euler")
    if oracle.table is not None:
        # Rows of the paper's figures; a row's lost history goes to its oldest remaining gradient.
        wires = {"table": oracle.table, "steps": oracle.steps}
        first = situation.add("first", "TinyPublished", **wires, stop=step)
        last = situation.add("last", "TinyPublished", **wires, start=step)
    runs = {"early": (learned, stock), "late": (stock, learned), "both": (learned, learned)}
    runs |= {"early by hand": (first, stock), "late by hand": (stock, last), "both by hand": (first, last)}
    for name, (high, low) in runs.items():
        situation.sample_split(name, sigmas, step, high, low)
    early, late, both, *by_hand = situation.submit(*runs)
    for learned_run, expected in zip((early, late, both), by_hand, strict=True):
        assert_same(learned_run, expected, 3e-5 if oracle.table else 1e-5)
    assert (oracle.table is not None) == differs(early, late)


# ---- inpainting

BOTH = ("euler", "published")
CASES = [(model, which) for model in ("sd15", "sd3") for which in BOTH] + [("sd15", DS_VP)]


def inpainting(server, model, which, soft=0.0, batch=1):
    """A drawn picture [.., 8, 16] whose right half is masked; the border column has the soft value."""
    situation = Situation.of(server, model, which, width=128, batch=batch)
    picture = situation.draw()
    # Masks are as large as the latent, so that nothing blurs their border.
    mask = situation.add("left", "SolidMask", value=0.0, width=16, height=8)
    for key, width, value, operation in (("right", 8, 1.0, "add"), ("border", 4, 1.0 - soft, "multiply")):
        patch = situation.add(key, "SolidMask", value=value, width=width, height=8)
        wires = {"destination": mask, "source": patch}
        mask = situation.add(f"{key}on", "MaskComposite", **wires, x=8, y=0, operation=operation)
    situation.latent = situation.add("masked", "SetLatentNoiseMask", samples=picture, mask=mask)
    return situation


def add_differential_diffusion(situation):
    situation.model = situation.add("differential_model", "DifferentialDiffusion", model=["1", 0], strength=1.0)


def assert_kept(situation, learned):
    """The left half is the drawn picture, the right half is another."""
    before = situation.sampled("draw")
    assert_same(learned[..., :8], before[..., :8])
    assert differs(learned[..., 8:], before[..., 8:])


@pytest.mark.parametrize(
    ("model", "which", "denoise"),
    [
        *((*case, 1.0) for case in CASES),
        *((model, which, 1.0) for model in ("wan", "hunyuanvideo") for which in BOTH),
        *((model, "euler", 0.6) for model in ("sd15", "sd3")),
    ],
)
def test_the_masked_region_is_the_oracles_and_the_rest_the_input(server, model, which, denoise):
    situation = inpainting(server, model, which, batch=3 if model == "sd3" else 1)
    situation.denoise = denoise
    situation.sample_pair()
    solver = situation.prompt["learnedsolver"]["inputs"]["solver"]
    situation.save(one=one_node(solver, situation.oracle.steps, denoise=denoise, latent_image=situation.latent))
    learned, oracle, one = situation.submit("learned", "oracle", "one")
    assert_same(learned[..., 8:], oracle[..., 8:])
    assert_same(one, learned)
    assert_kept(situation, learned)


@pytest.mark.parametrize("model", ["sd15", "sd3"])
@pytest.mark.parametrize(("soft", "differential"), [(0.5, True), (0.2, True), (0.5, False)])
def test_a_soft_mask_mixes_or_frees_its_region_later_as_with_stock_euler(server, model, soft, differential):
    situation = inpainting(server, model, "euler", soft)
    if differential:
        add_differential_diffusion(situation)
    learned, oracle = situation.pair()
    # A mask of 0 keeps its place also where the last call is at the model's lowest level and the host frees it.
    assert_same(learned[..., 8:], oracle[..., 8:])
    assert_kept(situation, learned)
    if model == "sd3":
        assert_same(learned, oracle)


@pytest.mark.parametrize(("model", "which"), [*CASES, *(("flux", which) for which in BOTH)])
def test_differential_diffusion_with_a_hard_mask_is_plain_inpainting(server, model, which):
    # Also where a solver calls its model at a level above the one that its state starts from, as FLUX's does.
    situation = inpainting(server, model, which)
    samplers, sigmas = situation.samplers()
    situation.sample("plain", samplers["learned"], sigmas)
    add_differential_diffusion(situation)
    situation.sample("differential", samplers["learned"], sigmas)
    plain, differential = situation.submit("plain", "differential")
    assert_same(differential, plain)
    assert_kept(situation, differential)


@pytest.mark.parametrize("model", ["sd15", "sd3", "hunyuanvideo"])
def test_a_mask_through_split_sigmas(server, model):
    situation = inpainting(server, model, "euler")
    samplers, sigmas = situation.samplers()
    for name, sampler in samplers.items():
        situation.sample_split(name, sigmas, 2, sampler, sampler, mask=["borderon", 0])
    high, stock_high, low, stock_low = situation.submit("learned high", "oracle high", "learned", "oracle")
    # An eps model's noise is 0.2 % longer at the very start than where the host puts a kept region back.
    tolerance = 5e-3 if model == "sd15" else 1e-5
    assert_same(high, stock_high, tolerance)
    assert_same(low, stock_low, tolerance)
