"""Whatever a latent is: batches, odd sizes, video, nested audio and video; the same seed gives the same picture."""

from __future__ import annotations

import pytest
import torch
from comfy_situations import ORACLES, Situation, assert_same, differs, error_in, plain

pytestmark = pytest.mark.comfy
both_oracles = pytest.mark.parametrize("which", ORACLES)
VIDEOS = ("wan", "hunyuanvideo")


@both_oracles
@pytest.mark.parametrize("model", ["sd15", "sd3", *VIDEOS])
def test_a_batch(server, model, which):
    ours = Situation.of(server, model, which, batch=3).assert_oracle()
    assert ours.shape[0] == 3 and differs(ours[0], ours[2])


@both_oracles
@pytest.mark.parametrize(("model", "width", "height"), [("sd15", 72, 104), ("sd3", 80, 144), ("sd3", 72, 104)])
def test_an_odd_size(server, model, width, height, which):
    ours = Situation.of(server, model, which, width=width, height=height).assert_oracle()
    assert ours.shape[-2:] == (height // 8, width // 8)


@both_oracles
@pytest.mark.parametrize("model", VIDEOS)
def test_a_video(server, model, which):
    ours = Situation.of(server, model, which, width=80, height=48).assert_oracle()
    assert ours.shape == (1, 16, 2, 6, 10) and differs(ours[:, :, 0], ours[:, :, 1])


def audio_and_video(server, which):
    situation = Situation.of(server, "ltxav", which)
    audio = situation.add("audio", "TinyAudioLatent", length=6, batch_size=1)
    situation.latent = situation.add("nested", "LTXVConcatAVLatent", video_latent=["4", 0], audio_latent=audio)
    return situation


def save_streams(situation, *runs):
    """Saves the two latents of nested runs, which no stock node saves as they are."""
    for run in runs:
        del situation.prompt[f"{run}save"]
        situation.add(f"{run}streams", "LTXVSeparateAVLatent", av_latent=[f"{run}run", 0])
        for i, stream in enumerate(("video", "audio")):
            prefix = f"{run}{stream}"
            situation.add(f"{prefix}save", "SaveLatent", samples=[f"{run}streams", i], filename_prefix=prefix)


@both_oracles
def test_nested_audio_and_video(server, which):
    situation = audio_and_video(server, which)
    situation.solver()
    for each in ("ours", "theirs"):
        situation.run(each, [each, 0], ["ours", 1])
    save_streams(situation, "ours", "theirs")
    video, theirs, audio, their_audio = situation.submit("oursvideo", "theirsvideo", "oursaudio", "theirsaudio")
    assert video.shape[:2] == (1, 128) and audio.shape == (1, 8, 6, 16)
    assert_same(video, theirs)
    assert_same(audio, their_audio)


@both_oracles
def test_nested_latents_keep_the_video_that_a_mask_keeps(server, which):
    situation = audio_and_video(server, which)
    situation.add("draw", "KSamplerSelect", sampler_name="euler")
    situation.add("schedule", "BasicScheduler", model=["1", 0], scheduler="simple", steps=2, denoise=1.0)
    situation.run("draw", ["draw", 0], ["schedule", 0])
    situation.add("parts", "LTXVSeparateAVLatent", av_latent=["drawrun", 0])
    keep = situation.add("keep", "SolidMask", value=0.0, width=64, height=64)
    situation.add("kept", "SetLatentNoiseMask", samples=["parts", 0], mask=keep)
    wires = {"video_latent": ["kept", 0], "audio_latent": ["parts", 1]}
    situation.latent = situation.add("again", "LTXVConcatAVLatent", **wires)
    situation.solver()
    for each in ("ours", "theirs"):
        situation.run(each, [each, 0], ["ours", 1])
    save_streams(situation, "draw", "ours", "theirs")
    names = ("drawvideo", "oursvideo", "drawaudio", "oursaudio", "theirsaudio")
    before, video, before_audio, audio, theirs = situation.submit(*names)
    assert_same(video, before)
    assert_same(audio, theirs)
    assert differs(audio, before_audio)


@pytest.mark.parametrize("connected", [False, True])
def test_a_grid_that_shifts_with_the_picture_needs_the_nested_latent_at_the_node(server, connected):
    situation = audio_and_video(server, "published")
    situation.solver()
    situation.prompt["ours"]["inputs"] |= {"solver": "dyweight_flux1-dev", "steps": 3}
    if not connected:
        del situation.prompt["ours"]["inputs"]["latent"]
    situation.run("ours", ["ours", 0], ["ours", 1])
    save_streams(situation, "ours")
    if connected:
        assert all(torch.isfinite(stream).all() for stream in situation.submit("oursvideo", "oursaudio"))
    else:
        message = error_in(situation)
        assert "shifts with the picture's size" in message and "choose a solver whose grid does not shift" in message


@both_oracles
@pytest.mark.parametrize("model", ["sd15", "sd3"])
def test_a_picture_alone_is_the_one_at_its_batch_position(server, model, which):
    # RandomNoise draws a batch from one seed; LatentFromBatch remembers the position.
    situation = Situation.of(server, model, which, batch=3)
    situation.solver()
    alone = situation.add("alone", "LatentFromBatch", samples=["4", 0], batch_index=1, length=1)
    for each in ("ours", "theirs"):
        situation.run(f"{each}batch", [each, 0], ["ours", 1])
        situation.run(f"{each}alone", [each, 0], ["ours", 1], latent_image=alone)
    batch, one, their_batch, their_one = situation.submit("oursbatch", "oursalone", "theirsbatch", "theirsalone")
    # Rounding depends on the batch size in the network itself: as much for ours as for the stock sampler.
    drift, their_drift = (float((b[1:2] - o).abs().max()) for b, o in ((batch, one), (their_batch, their_one)))
    assert drift <= 2 * their_drift + 1e-5 * float(one.abs().max())
    assert_same(one, batch[1:2])
    assert differs(one, batch[0:1])


def test_the_same_seed_gives_the_same_picture_again_and_after_a_restart(server):
    def fresh():
        situation = Situation.of(server, "sd15", "published")
        situation.solver()
        situation.run("ours", ["ours", 0], ["ours", 1])
        situation.add("euler", "KSamplerSelect", sampler_name="euler")
        situation.run("euler", ["euler", 0], ["ours", 1])
        return situation.submit("ours", "euler")

    first = fresh()
    server.post("/free", {"unload_models": True, "free_memory": True})
    again = fresh()
    server.stop()
    server.start()
    later = fresh()
    for one, other in ((first, again), (first, later)):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert differs(first[0], first[1])
    assert torch.equal(later[0], plain(server, "sd15", "published"))
