"""ControlNet, LoRA, areas, masks and times of conditioning, and every guider: the solver samples what the host says."""

from __future__ import annotations

import json

import pytest
from comfy_prompts import node
from comfy_situations import ORACLES, Situation, assert_same, differs, plain

pytestmark = pytest.mark.comfy
both_oracles = pytest.mark.parametrize("which", ORACLES)


def controlled(server, which, start, end):
    situation = Situation.of(server, "sd15", which)
    net = situation.add("net", "ControlNetLoader", control_net_name="tiny_controlnet.safetensors")
    hint = situation.add("hint", "EmptyImage", width=64, height=64, batch_size=1, color=0x4080C0)
    wires = {"positive": ["2", 0], "negative": ["3", 0], "control_net": net, "image": hint}
    situation.add("apply", "ControlNetApplyAdvanced", **wires, strength=0.5, start_percent=start, end_percent=end)
    situation.positive, situation.negative = ["apply", 0], ["apply", 1]
    return situation


@both_oracles
def test_controlnet_works_in_its_part_of_the_schedule(server, which):
    results = [controlled(server, which, *span).assert_oracle() for span in ((0.0, 1.0), (0.0, 0.4), (0.4, 1.0))]
    results.append(plain(server, "sd15", which))
    assert all(differs(a, b) for i, a in enumerate(results) for b in results[:i])


@both_oracles
def test_a_lora_changes_the_model_that_is_sampled(server, which):
    situation = Situation.of(server, "sd15", which)
    situation.model = situation.add(
        "lora", "LoraLoaderModelOnly", model=["1", 0], lora_name="tiny_lora.safetensors", strength_model=1.0
    )
    assert differs(situation.assert_oracle(), plain(server, "sd15", which))


@both_oracles
@pytest.mark.parametrize("model", ["sd15", "sd3"])
def test_an_area_has_its_own_prompt(server, model, which):
    situation = Situation.of(server, model, which, width=128, height=64)
    place = {"width": 64, "height": 64, "x": 64, "y": 0, "strength": 1.0}
    there = situation.add("there", "ConditioningSetArea", conditioning=["3", 0], **place)
    situation.positive = situation.add("both", "ConditioningCombine", conditioning_1=["2", 0], conditioning_2=there)
    ours = situation.assert_oracle()
    without = plain(server, model, which, width=128, height=64)
    half = ours.shape[-1] // 2
    assert differs(ours[..., half:], without[..., half:])


@both_oracles
@pytest.mark.parametrize("bounds", ["default", "mask bounds"])
def test_a_masked_prompt_has_its_own_place(server, which, bounds):
    situation = Situation.of(server, "sd15", which, width=128, height=64)
    mask = situation.add("mask", "SolidMask", value=0.0, width=128, height=64)
    patch = situation.add("patch", "SolidMask", value=1.0, width=64, height=64)
    mask = situation.add("paste", "MaskComposite", destination=mask, source=patch, x=0, y=0, operation="add")
    there = situation.add(
        "there", "ConditioningSetMask", conditioning=["3", 0], mask=mask, strength=1.0, set_cond_area=bounds
    )
    situation.positive = situation.add("both", "ConditioningCombine", conditioning_1=["2", 0], conditioning_2=there)
    assert differs(situation.assert_oracle(), plain(server, "sd15", which, width=128, height=64))


@both_oracles
@pytest.mark.parametrize("model", ["sd15", "sd3"])
def test_a_prompt_has_its_own_time(server, model, which):
    results = []
    for change in (0.3, 0.6, 1.0):
        situation = Situation.of(server, model, which)
        situation.cfg = 8.0
        early = situation.add("early", "ConditioningSetTimestepRange", conditioning=["2", 0], start=0.0, end=change)
        late = situation.add("late", "ConditioningSetTimestepRange", conditioning=["3", 0], start=change, end=1.0)
        situation.positive = situation.add("both", "ConditioningCombine", conditioning_1=early, conditioning_2=late)
        results.append(situation.assert_oracle())
    assert all(differs(a, b) for i, a in enumerate(results) for b in results[:i])


GUIDERS = {
    "Basic": node("BasicGuider", conditioning=["2", 0]),
    "CFG": node("CFGGuider", positive=["2", 0], negative=["3", 0], cfg=3.0),
    "DualCFG": node(
        "DualCFGGuider", cond1=["2", 0], cond2=["2b", 0], negative=["3", 0], cfg_conds=3.0, cfg_cond2_negative=2.0
    ),
    "PerpNeg": node(
        "PerpNegGuider", positive=["2", 0], negative=["3", 0], empty_conditioning=["2b", 0], cfg=3.0, neg_scale=0.7
    ),
}


@both_oracles
@pytest.mark.parametrize("model", ["sd15", "sd3"])
@pytest.mark.parametrize("guider", GUIDERS)
def test_any_guider_guides(server, model, which, guider):
    situation = Situation.of(server, model, which)
    third = situation.prompt["2"]["inputs"] | {"seed": 3}
    situation.add("2b", "TinyConditioning", **third)
    situation.guider = GUIDERS[guider]
    inputs = server.get(f"/object_info/{guider}Guider")[f"{guider}Guider"]["input"]["required"]
    if "style" in inputs:
        situation.guider = node("DualCFGGuider", **GUIDERS[guider]["inputs"], style="regular")
    ours = situation.assert_oracle()
    assert differs(ours, plain(server, model, which))


@both_oracles
def test_at_cfg_1_the_negative_prompt_costs_nothing_and_changes_nothing(server, which):
    results, batches = [], []
    for cfg in (1.0, 2.0):
        situation = Situation.of(server, "sd15", which)
        situation.cfg = cfg
        situation.model = situation.add("watch", "TinyWatch", model=["1", 0], name=f"cfg {cfg} {which}")
        situation.solver()
        latent = situation.run("ours", ["ours", 0], ["ours", 1])
        seen = situation.add("seen", "TinySeen", latent=latent, name=f"cfg {cfg} {which}")
        situation.add("text", "PreviewAny", source=seen)
        results += situation.submit("ours")
        batches.append(json.loads(situation.history["outputs"]["text"]["text"][0])["batch"])
    assert batches == [[1] * situation.oracle.steps, [2] * situation.oracle.steps]
    basic = Situation.of(server, "sd15", which)
    basic.guider = GUIDERS["Basic"]
    assert_same(results[0], basic.pair()[0], 1e-6)
    assert differs(results[1], results[0])
