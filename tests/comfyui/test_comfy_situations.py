"""What a graph does to model, conditioning or latent: the solver samples as its oracle does, and not as without it.

Latents of any shape, nested ones of audio and video, a picture of a batch alone, and one from the same seed again.
"""

from __future__ import annotations

import pytest
import torch
from comfy_graphs import DS_VP, Graph, Situation, assert_same, both_oracles, differs, ksampler, node, one_node, plain


def controlnet(start, end):
    def change(situation):
        net = situation.add("net", "ControlNetLoader", control_net_name="tiny_controlnet.safetensors")
        hint = situation.add("hint", "EmptyImage", width=64, height=64, batch_size=1, color=0x4080C0)
        wires = {"positive": ["2", 0], "negative": ["3", 0], "control_net": net, "image": hint}
        situation.add("apply", "ControlNetApplyAdvanced", **wires, strength=0.5, start_percent=start, end_percent=end)
        situation.positive, situation.negative = ["apply", 0], ["apply", 1]

    return change


def patch(kind, **inputs):
    def change(situation):
        situation.model = situation.add("patch", kind, model=["1", 0], **inputs)

    return change


def combine(situation, first, second):
    situation.positive = situation.add("both", "ConditioningCombine", conditioning_1=first, conditioning_2=second)


def area(situation):
    place = {"width": 64, "height": 64, "x": 64, "y": 0, "strength": 1.0}
    combine(situation, ["2", 0], situation.add("area", "ConditioningSetArea", conditioning=["3", 0], **place))


def masked_prompt(bounds):
    def change(situation):
        mask = situation.add("mask", "SolidMask", value=0.0, width=128, height=64)
        right = situation.add("right", "SolidMask", value=1.0, width=64, height=64)
        mask = situation.add("paste", "MaskComposite", destination=mask, source=right, x=64, y=0, operation="add")
        masked = {"conditioning": ["3", 0], "mask": mask, "strength": 1.0, "set_cond_area": bounds}
        combine(situation, ["2", 0], situation.add("masked", "ConditioningSetMask", **masked))

    return change


def prompts_in_turn(switch):
    def change(situation):
        early = situation.add("early", "ConditioningSetTimestepRange", conditioning=["2", 0], start=0.0, end=switch)
        late = situation.add("late", "ConditioningSetTimestepRange", conditioning=["3", 0], start=switch, end=1.0)
        combine(situation, early, late)

    return change


def two_guidances(situation):
    conds = {"cond1": ["2", 0], "cond2": ["3", 0], "negative": ["3", 0]}
    situation.guider = node("DualCFGGuider", **conds, cfg_conds=3.0, cfg_cond2_negative=2.5, style="regular")


def picture(situation):
    situation.latent = situation.draw()


V_PREDICTION = {"sampling": "v_prediction", "zsnr": False}
LORA = {"lora_name": "tiny_lora.safetensors", "strength_model": 1.0}
SITUATIONS = {  # the models, and the change
    "ControlNet": (("sd15",), controlnet(0.0, 1.0)),
    "early ControlNet": (("sd15",), controlnet(0.0, 0.4)),
    "late ControlNet": (("sd15",), controlnet(0.4, 1.0)),
    "LoRA": (("sd15",), patch("LoraLoaderModelOnly", **LORA)),
    "area": (("sd15", "sd3"), area),
    "masked prompt": (("sd15",), masked_prompt("default")),
    "masked prompt in its bounds": (("sd15",), masked_prompt("mask bounds")),
    "early switch": (("sd15", "sd3"), prompts_in_turn(0.3)),
    "late switch": (("sd15", "sd3"), prompts_in_turn(0.6)),
    "two guidances": (("sd15", "sd3"), two_guidances),
    "full denoise of a picture": (("sd15",), picture),
    "v prediction": (("sd15",), patch("ModelSamplingDiscrete", **V_PREDICTION)),
    "zero terminal SNR": (("sd15",), patch("ModelSamplingDiscrete", **V_PREDICTION | {"zsnr": True})),
    "FLUX's sampling": (  # passes the network sigma, SD3's passes it 1000 sigma
        ("sd3", "flux"),
        patch("ModelSamplingFlux", max_shift=1.15, base_shift=0.5, width=128, height=64),
    ),
    "shift 1": (("sd3",), patch("ModelSamplingSD3", shift=1.0)),
    "shift 6": (("sd3",), patch("ModelSamplingSD3", shift=6.0)),
}


@both_oracles
@pytest.mark.parametrize(("case", "model"), [(case, m) for case, (models, _) in SITUATIONS.items() for m in models])
def test_the_solver_samples_what_its_oracle_does(server, case, model, which):
    if case == "zero terminal SNR" and which == "published":
        which = DS_VP  # dyweight_sd15 is not defined there
    situation = Situation.of(server, model, which, width=128)
    SITUATIONS[case][1](situation)
    learned, without = situation.assert_oracle(), plain(server, model, which, width=128)
    if case.startswith("shift"):
        assert_same(learned, without, 1e-6)  # a solver has its own levels
    elif model != "flux":  # whose own sampling that is
        half = 8 if "area" in case or "masked" in case else 0
        assert differs(learned[..., half:], without[..., half:])


SHAPES = {
    "batch": ("sd15", {"batch": 3}, (3, 4, 8, 8)),
    "batch of a flow model": ("sd3", {"batch": 3}, (3, 16, 8, 8)),
    "odd size": ("sd15", {"width": 72, "height": 104}, (1, 4, 13, 9)),
    "even size of a flow model": ("sd3", {"width": 80, "height": 144}, (1, 16, 18, 10)),
    "odd size of a flow model": ("sd3", {"width": 72, "height": 104}, (1, 16, 13, 9)),
    "videos": ("wan", {"width": 80, "height": 48, "batch": 3}, (3, 16, 2, 6, 10)),
    "videos with embedded guidance": ("hunyuanvideo", {"width": 80, "height": 48, "batch": 3}, (3, 16, 2, 6, 10)),
}


@both_oracles
@pytest.mark.parametrize("case", SHAPES)
def test_a_latent_of_any_shape(server, case, which):
    model, size, shape = SHAPES[case]
    learned = Situation.of(server, model, which, **size).assert_oracle()
    assert learned.shape == shape
    assert shape[0] == 1 or differs(learned[0], learned[2])
    assert len(shape) == 4 or differs(learned[:, :, 0], learned[:, :, 1])


def audio_and_video(server, which):
    situation = Situation.of(server, "ltxav", which)
    audio = situation.add("audio", "TinyAudioLatent", length=6, batch_size=1)
    situation.latent = situation.add("nested", "LTXVConcatAVLatent", video_latent=["4", 0], audio_latent=audio)
    return situation


def save_streams(situation, *runs):
    """Saves the two latents of nested runs, which no stock node saves as they are."""
    for run in runs:
        del situation.prompt[f"{run}save"]
        situation.add(f"{run}streams", "LTXVSeparateAVLatent", av_latent=[run, 0])
        for i, stream in enumerate(("video", "audio")):
            wire = [f"{run}streams", i]
            situation.add(f"{run}{stream}save", "SaveLatent", samples=wire, filename_prefix=f"{run}{stream}")


@both_oracles
@pytest.mark.parametrize("masked", [False, True])
def test_nested_audio_and_video_whose_video_a_mask_may_keep(server, which, masked):
    situation = audio_and_video(server, which)
    situation.draw()
    if masked:
        situation.add("parts", "LTXVSeparateAVLatent", av_latent=["draw", 0])
        keep = situation.add("keep", "SolidMask", value=0.0, width=64, height=64)
        situation.add("kept", "SetLatentNoiseMask", samples=["parts", 0], mask=keep)
        wires = {"video_latent": ["kept", 0], "audio_latent": ["parts", 1]}
        situation.latent = situation.add("again", "LTXVConcatAVLatent", **wires)
    situation.sample_pair()
    runs = ("draw", "learned", "oracle")
    save_streams(situation, *runs)
    names = [f"{run}{stream}" for run in runs for stream in ("video", "audio")]
    drawn_video, drawn_audio, video, audio, oracle_video, oracle_audio = situation.submit(*names)
    assert video.shape[:2] == (1, 128) and audio.shape == (1, 8, 6, 16)
    assert_same(video, drawn_video if masked else oracle_video)
    assert_same(audio, oracle_audio)
    assert differs(audio, drawn_audio)


@pytest.mark.parametrize("connected", [False, True])
def test_a_grid_that_depends_on_the_size_needs_the_nested_latent_at_the_node(server, connected):
    situation = audio_and_video(server, "published")
    situation.sample("run", *situation.learn("flux", "dyweight_flux1-dev", 3, latent=connected))
    save_streams(situation, "run")
    if connected:
        assert all(torch.isfinite(stream).all() for stream in situation.submit("runvideo", "runaudio"))
    else:
        message = situation.error()
        assert "the grid of dyweight_flux1-dev depends on the image size" in message and "Connect the" in message


@pytest.mark.parametrize(("model", "solver"), [("sd15", "dyweight_sd15"), ("sd3", "ds_flow-sit")])
def test_a_picture_alone_is_the_one_at_its_batch_position(server, model, solver):
    # A batch of noise is drawn from one seed; LatentFromBatch remembers the position.
    graph = Graph.of(server, model, batch=3)
    alone = graph.add("alone", "LatentFromBatch", samples=["4", 0], batch_index=1, length=1)
    for name, latent in (("batch", ["4", 0]), ("alone", alone)):
        graph.save(**{f"learned {name}": one_node(solver, 6, latent_image=latent)})
        graph.save(**{f"stock {name}": ksampler("euler", 6, latent_image=latent)})
    runs = ("learned batch", "learned alone", "stock batch", "stock alone")
    batch, one, stock_batch, stock_one = graph.submit(*runs)
    # Rounding depends on the batch size in the network itself: as much with the learned sampler as with the stock one.
    drift, stock_drift = (float((b[1:2] - o).abs().max()) for b, o in ((batch, one), (stock_batch, stock_one)))
    assert drift <= 2 * stock_drift + 1e-5 * float(one.abs().max())
    assert_same(one, batch[1:2])
    assert differs(one, batch[0:1])


def test_the_same_seed_gives_the_same_picture_again_and_after_a_restart(server):
    first = plain(server, "sd15", "published", again=True)
    server.post("/free", {"unload_models": True, "free_memory": True})
    assert torch.equal(plain(server, "sd15", "published", again=True), first)
    server.stop()
    server.start()
    assert torch.equal(plain(server, "sd15", "published", again=True), first)
