"""Videos: frames on the card, one decoded frame per picture, two experts as one model, batches of frames."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from comfy_graphs import MODELS, Graph, assert_same, differs, fit, ksampler, node, one_node, options
from comfy_host import ROOT, python_of
from learned_solvers.samplers import FlowNoise, load_solver
from learned_solvers.training.models.conditioning import write_conditioning

pytestmark = pytest.mark.slow
BOUNDARY = 0.875  # between the fourth and the fifth of 8 levels on `simple` with Wan's shift of 8


def join(graph: Graph, name: str) -> None:
    """Puts the tiny experts, both watched, in the place of the model."""
    low = {**graph.prompt["1"]["inputs"], "unet_name": "tiny_wan_low.safetensors"}
    for key, wire in (("high", ["1", 0]), ("low", graph.add("second", "UNETLoader", **low))):
        graph.add(key, "TinyWatch", model=wire, name=f"{name} {key}")
    graph.model = graph.add("joined", "JoinExperts", model=["high", 0], second_model=["low", 0], boundary=BOUNDARY)


def calls_of(graph: Graph, name: str, latent: str) -> list[list[float]]:
    """The levels of the calls of both experts, each of which the host had loaded and given the schedule."""
    seen = Graph(graph.server, dict(graph.prompt))
    for key in ("high", "low"):
        seen.show(f"{key}calls", seen.add(f"{key}seen", "TinySeen", latent=[latent, 0], name=f"{name} {key}"))
    seen.submit()
    calls = [json.loads(seen.text(f"{key}calls")) for key in ("high", "low")]
    assert [call["absent"] for call in calls] == [0, 0] and all(place for call in calls for place in call["places"])
    return [call["sigma"] for call in calls]


@pytest.mark.parametrize("sampler", ["euler", "euler_cfg_pp"])
def test_joined_experts_are_the_usual_two_samplers(server, sampler):
    graph, name = Graph.of(server, "wan"), f"usual {sampler}"
    join(graph, name)
    widgets = {"noise_seed": 7, "steps": 8, "cfg": 2.0, "sampler_name": sampler, "scheduler": "simple"}
    widgets |= {"positive": ["2", 0], "negative": ["3", 0]}
    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 5, "return_with_leftover_noise": "enable"}
    last = {"add_noise": "disable", "start_at_step": 5, "end_at_step": 10000, "return_with_leftover_noise": "disable"}
    high = graph.add("part", "KSamplerAdvanced", model=["1", 0], latent_image=["4", 0], **widgets, **first)
    two = node("KSamplerAdvanced", model=["second", 0], latent_image=high, **widgets, **last)
    graph.save(one=ksampler(sampler, 8, model=graph.model), two=two)
    graph.save(single=ksampler(sampler, 8))
    one, two, single = graph.submit("one", "two", "single")
    assert_same(one, two, 1e-6)
    assert differs(one, single)
    levels = [8 * t / (1 + 7 * t) for t in (i / 8 for i in range(8, 0, -1))]
    calls = calls_of(graph, name, "one")
    assert calls[0] + calls[1] == pytest.approx(levels, rel=1e-3) and len(calls[1]) == 3


def test_a_solver_of_joined_experts_has_its_cards_error_in_the_comparison_and_two_samplers_say_what_they_lose(server):
    graph = fit(server, "wan", name="experts", batch=2, steps="3", samples=4)
    join(graph, "fitted")
    inputs = graph.prompt["fit"]["inputs"]
    inputs["model"] = graph.model
    levels = {"scheduler": "simple", "steps": 8, "denoise": 1.0}
    inputs["sigmas"] = graph.add("sigmas", "BasicScheduler", model=graph.model, **levels)
    inputs["sampler"] = graph.add("sampler", "KSamplerSelect", sampler_name="euler")
    graph.submit()
    solver = load_solver(server.solver("experts"))
    card, step = solver.card, solver.card.steps[3]
    assert (card.boundary, card.resolution, card.checkpoint) == (BOUNDARY, "32x32x5", "tiny_wan")
    error = compared_error(server, "experts", seeds=(7, 8), boundary=BOUNDARY)  # of the held-out starts
    assert error == pytest.approx(step.error_after, rel=1e-3)


def compared_error(server, name: str, seeds: tuple[int, int], boundary: float | None) -> float:
    """The error of a solver of 3 steps on two starts in Compare Samplers, against Euler in 8 steps."""
    errors = []
    for seed in seeds:
        graph = Graph.of(server, "wan", width=32, height=32)
        if boundary is not None:
            join(graph, "compared")
        widgets = {"solver": f"{name}.safetensors", "steps": "3", "samplers": "euler", "scheduler": "simple"}
        widgets |= {"teacher": "euler", "teacher_steps": 8, "seed": seed, "cfg": 2.0, "model": graph.model}
        wires = {"positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
        graph.show("table", [graph.add("compare", "CompareSamplers", **widgets, **wires)[0], 1])
        graph.submit()
        row = next(line for line in graph.text("table").splitlines() if f"**{name}" in line)
        errors.append(float(row.split("|")[-2]))
    return (sum(error**2 for error in errors) / len(errors)) ** 0.5


@pytest.mark.parametrize("second", [True, False])
def test_the_command_fits_a_video_model_with_and_without_a_second_one(server, tmp_path, second):
    name, models = f"command{second}", server.base / "models" / "diffusion_models"
    sizes = MODELS["wan"][2]
    conds = [
        {"context": torch.randn(1, sizes["tokens"], sizes["dim"], generator=torch.Generator().manual_seed(seed))}
        for seed in (2, 1)  # negative, positive
    ]
    write_conditioning(tmp_path / "prompts.safetensors", conds, ["", "a prompt"], "WAN21_T2V")
    options = {"diffusion-model": models / "tiny_wan.safetensors", "conditioning": tmp_path / "prompts.safetensors"}
    options |= {"teacher": "euler simple 8", "output": server.solver(name), "comfyui": server.checkout, "size": "32x32"}
    options |= {"frames": 5, "steps": 3, "samples": 4, "guidance": 2, "microbatch": 2, "threads": 1}
    if second:
        options |= {"second-diffusion-model": models / "tiny_wan_low.safetensors", "boundary": BOUNDARY}
    command = [str(python_of(server.checkout)), str(ROOT / "training" / "fit_weights.py")]
    command += [word for option, value in options.items() for word in (f"--{option}", str(value))]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "WAN21_T2V (flow), 32x32x5, CFG 2" in completed.stdout
    assert ("change between the two models and back" in completed.stdout) == second
    card = load_solver(server.solver(name)).card
    assert (card.resolution, card.boundary) == ("32x32x5", BOUNDARY if second else None)
    error = compared_error(server, name, seeds=(4, 5), boundary=card.boundary)
    assert error == pytest.approx(card.steps[3].error_after, rel=1e-3)


def test_frames_and_experts_other_than_the_fits_are_remarked_and_both_parts_of_a_grid_run(server):
    graph = fit(server, "wan", name="parts", batch=2, steps="3", samples=2)
    join(graph, "parts")
    graph.prompt["fit"]["inputs"]["model"] = graph.model
    graph.submit()
    longer = Graph.of(server, "wan", width=32, height=32)
    longer.prompt["4"]["inputs"]["length"] = 9
    join(longer, "longer")
    for key, model in (("joined run", longer.model), ("single run", ["1", 0])):
        longer.save(**{key: one_node("parts.safetensors", 3, model=model)})
        longer.show(f"{key} info", [key, 1])
    longer.submit()
    texts = [longer.text(f"{key} run info") for key in ("joined", "single")]
    assert all("fitted at 32x32x5, you use 32x32x9" in text for text in texts)
    assert ["two models that change at sigma 0.875, you use one" in text for text in texts] == [False, True]
    calls = calls_of(longer, "longer", "joined run")
    table = load_solver(server.solver("parts")).table(3, FlowNoise())
    assert calls[0] + calls[1] == pytest.approx(table.sigmas.tolist(), rel=1e-5) and min(calls[0]) > BOUNDARY

    halves = Graph.of(server, "wan", width=32, height=32)
    join(halves, "halves")
    widgets = {"noise_seed": 7, "steps": 8, "cfg": 2.0, "sampler_name": "dyweight", "scheduler": "simple"}
    widgets |= {"positive": ["2", 0], "negative": ["3", 0]}
    latent = ["4", 0]
    for key, start, end in (("high", 0, 5), ("low", 5, 10000)):
        chosen = halves.add(f"{key}set", "SetLearnedSolver", model=[key, 0], solver="parts.safetensors", steps=3)
        noise = {"add_noise": "enable" if start == 0 else "disable", "start_at_step": start, "end_at_step": end}
        noise["return_with_leftover_noise"] = "enable" if start == 0 else "disable"
        run = node("KSamplerAdvanced", model=chosen, latent_image=latent, **widgets, **noise)
        halves.save(**{f"{key} half": run})
        latent = [f"{key} half", 0]
    halves.submit()
    calls = calls_of(halves, "halves", "low half")
    assert min(calls[0]) > BOUNDARY > max(calls[1]) and len(calls[0] + calls[1]) == 3
    assert "In two sampler nodes the second model starts without the calls of the first" in server.log


def test_video_with_sound_is_fitted_as_one_state_and_its_error_is_that_of_both(server):
    graph = fit(server, "ltxav", name="sound", size=64, batch=2, samples=2)
    graph.prompt["4"]["inputs"]["length"] = 17
    audio = graph.add("audio", "TinyAudioLatent", length=6, batch_size=2)
    inputs = graph.prompt["fit"]["inputs"]
    inputs["latent"] = graph.add("both", "LTXVConcatAVLatent", video_latent=["4", 0], audio_latent=audio)
    inputs["sampler"] = graph.add("sampler", "KSamplerSelect", sampler_name="euler")
    levels = {"scheduler": "simple", "steps": 7, "denoise": 1.0}
    inputs["sigmas"] = graph.add("sigmas", "BasicScheduler", model=["1", 0], **levels)
    inputs["vae"] = graph.add("vae", "TinyDecoder", name="sound")
    graph.submit()
    card = load_solver(server.solver("sound")).card
    assert card.resolution == "64x64x17" and graph.picture("picture").std() > 20
    assert shapes_of(server, "sound")[0][1:] == [128, 1, 2, 2]

    graph = Graph.of(server, "ltxav")
    graph.prompt["4"]["inputs"]["length"] = 17
    audio = graph.add("audio", "TinyAudioLatent", length=6, batch_size=1)
    latent = graph.add("both", "LTXVConcatAVLatent", video_latent=["4", 0], audio_latent=audio)
    widgets = {"seed": 5, "latent_image": latent}  # the held-out start
    runs = {"teacher": ksampler("euler", 7, **widgets), "student": one_node("sound.safetensors", 2, **widgets)}
    for key, run in runs.items():
        graph.prompt[key] = run
        streams = graph.add(f"{key}streams", "LTXVSeparateAVLatent", av_latent=[key, 0])
        for i, stream in enumerate(("video", "audio")):
            graph.add(f"{key}{stream}save", "SaveLatent", samples=[streams[0], i], filename_prefix=f"{key}{stream}")
    ends = graph.submit(*(f"{key}{stream}" for key in runs for stream in ("video", "audio")))
    teacher, student = (torch.cat([part.flatten() for part in pair]) for pair in (ends[:2], ends[2:]))
    error = float((student - teacher).double().square().mean().sqrt())
    assert error == pytest.approx(card.steps[2].error_after, rel=1e-3)


def test_a_loss_of_pictures_is_refused_for_video_with_sound(server):
    graph = fit(server, "ltxav", name="loss", size=64, loss="features")
    inputs, audio = graph.prompt["fit"]["inputs"], graph.add("audio", "TinyAudioLatent", length=6, batch_size=4)
    inputs["latent"] = graph.add("both", "LTXVConcatAVLatent", video_latent=["4", 0], audio_latent=audio)
    inputs["vae"] = graph.add("vae", "TinyDecoder", name="loss")
    assert "this latent has sound too: use l2" in graph.error()


def test_a_picture_of_a_video_is_one_decoded_frame(server):
    graph = fit(server, "wan", name="pictures", steps="1", samples=2)
    graph.prompt["fit"]["inputs"]["vae"] = graph.add("vae", "TinyDecoder", name="pictures")
    graph.submit()
    shapes = shapes_of(server, "pictures")
    assert shapes and all(shape[1:] == [16, 1, 4, 4] for shape in shapes)


def shapes_of(server, name: str) -> list[list[int]]:
    """The shapes that a TinyDecoder has decoded."""
    graph = Graph.of(server, "sd3")
    graph.show("shapes", graph.add("seen", "TinySeen", latent=["4", 0], name=name))
    graph.submit()
    return json.loads(graph.text("shapes"))


def test_the_first_frame_that_wans_vae_decodes_alone_is_that_of_the_whole_video(server):
    file = "tiny_wan_vae.safetensors"
    if file not in options(server, "VAELoader", "vae_name"):
        pytest.skip("this ComfyUI fixes the width of Wan's VAE: a tiny one cannot be made")
    graph = Graph.of(server, "wan")
    graph.save(run=ksampler("euler", 2))
    vae = graph.add("vae", "VAELoader", vae_name=file)
    for key, samples in (("whole", ["run", 0]), ("alone", graph.add("first", "TinyFirstFrame", latent=["run", 0]))):
        picture = graph.add(f"{key}frames", "VAEDecode", samples=samples, vae=vae)
        first = graph.add(f"{key}first", "ImageFromBatch", image=picture, batch_index=0, length=1)
        graph.add(key, "SaveImage", images=first, filename_prefix=key)
    graph.submit()
    whole, alone = (graph.picture(key).astype(int) for key in ("whole", "alone"))
    assert abs(whole - alone).max() <= 1 and whole.std() > 1


@pytest.mark.parametrize("mark", ["SVD", "AnimateDiff"])
def test_a_model_whose_batch_is_a_video_is_refused_before_the_fit(server, mark):
    graph = fit(server, "sd15", name=mark)
    graph.prompt["fit"]["inputs"]["model"] = graph.add("frames", "TinyFrames", model=["1", 0], mark=mark)
    assert "takes a batch as the frames of one video, not as samples" in graph.error()


@pytest.mark.parametrize(
    ("second", "boundary", "message"),
    [
        ("tiny_sd3.safetensors", 0.875, "WAN21_T2V and SD3 differ in architecture"),
        ("tiny_wan_low.safetensors", 1.5, "the boundary must be a noise level between"),
    ],
)
def test_experts_that_do_not_belong_together_are_refused(server, second, boundary, message):
    graph = Graph.of(server, "wan")
    graph.add("second", "UNETLoader", unet_name=second, weight_dtype="default")
    graph.add("joined", "JoinExperts", model=["1", 0], second_model=["second", 0], boundary=boundary)
    graph.save(run=ksampler("euler", 2, model=["joined", 0]))
    assert message in graph.error()
