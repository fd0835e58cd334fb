"""Nested latents of audio and video, a picture of a batch alone, and the same picture from the same seed."""

from __future__ import annotations

import pytest
import torch
from comfy_prompts import Graph, ksampler, one_node
from comfy_situations import Situation, assert_same, both_oracles, differs, plain

pytestmark = pytest.mark.comfy


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
    samplers, sigmas = situation.samplers()
    for name, sampler in samplers.items():
        situation.sample(name, sampler, sigmas)
    save_streams(situation, "draw", *samplers)
    names = [f"{run}{stream}" for run in ("draw", *samplers) for stream in ("video", "audio")]
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
    def sample():
        situation = Situation.of(server, "sd15", "published")
        samplers, sigmas = situation.samplers()
        situation.sample("learned", samplers["learned"], sigmas)
        return situation.submit("learned")[0]

    first = sample()
    server.post("/free", {"unload_models": True, "free_memory": True})
    assert torch.equal(sample(), first)
    server.stop()
    server.start()
    assert torch.equal(sample(), first)
    assert torch.equal(plain(server, "sd15", "published"), first)
