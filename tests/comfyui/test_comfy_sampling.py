"""The Learned Solver node in real ComfyUI servers: their own loaders, models of the real architectures, real files."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import replace

import pytest
import torch
from comfy_host import error_of
from comfy_prompts import learned, model_nodes, node, sampled, saved_latent, with_picture
from comfy_situations import WIDE, is_wide
from learned_solvers.samplers import VPNoise, load_solver
from learned_solvers.samplers.files.solver import BUNDLED
from PIL import Image
from torch.testing import assert_close

pytestmark = pytest.mark.comfy


def info_of(history):
    return history["outputs"]["info"]["text"][0]


def run(server, model, sampler, prefix="ours", cfg=2.0, **size):
    prompt = {**model_nodes(server, model, **size), "solver": sampler}
    prompt["info"] = node("PreviewAny", source=["solver", 2])
    return server.submit(sampled(prompt, ["solver", 0], ["solver", 1], prefix, cfg=cfg))


PUBLISHED = [
    *[("sd15", "dyweight_sd15", steps, f"000{36 + i}-mscoco-nfe{2 * steps}") for i, steps in enumerate((4, 6, 8, 10))],
    *[("flux", "dyweight_flux1-dev", steps, f"flux1-dev-nfe{steps}") for steps in (3, 5, 7)],
    *[("sd15", "ds_vp-dit", steps, "vp-dit") for steps in (5, 6, 7, 8, 9, 10)],
    *[("sd3", "ds_flow-sit", steps, "flow-sit") for steps in (5, 6, 7, 8, 9, 10)],
    *[("sd3", "ds_flow-flowdcn", steps, "flow-flowdcn") for steps in (5, 6, 7, 8, 9, 10, 15)],
    *[("wan", "ds_flow-sit", steps, "flow-sit") for steps in (5, 6, 7, 8, 9, 10)],
    *[("flux", "ds_flow-sit", steps, "flow-sit") for steps in (5, 6, 7, 8, 9, 10)],
    *[("wan", "ds_flow-flowdcn", steps, "flow-flowdcn") for steps in (5, 6, 7, 8, 9, 10, 15)],
    *[("flux", "ds_flow-flowdcn", steps, "flow-flowdcn") for steps in (5, 10, 15)],
]


@pytest.mark.parametrize(("model", "solver", "steps", "table"), PUBLISHED)
def test_the_result_equals_the_published_formula_by_hand(server, model, solver, steps, table):
    # TinyPublished is written out from the papers' figures and shares nothing with this package.
    if is_wide(server, model) and (solver, steps) != ("dyweight_flux1-dev", 3):
        pytest.skip(WIDE)
    prompt = {**model_nodes(server, model, width=96), "solver": learned(solver, steps)}
    prompt["hand"] = node("TinyPublished", table=table, steps=steps)
    prompt = sampled(prompt, ["solver", 0], ["solver", 1], "ours")
    history = server.submit(sampled(prompt, ["hand", 0], ["solver", 1], "hand"))
    assert history["status"]["status_str"] == "success", error_of(history)
    ours, hand = saved_latent(server, history, "ours"), saved_latent(server, history, "hand")
    assert torch.isfinite(ours).all() and ours.ndim == (5 if model == "wan" else 4)
    assert_close(ours, hand, rtol=1e-4, atol=1e-4 * float(hand.abs().max()))


def test_a_picture_lands_on_the_disk(server):
    prompt = {**model_nodes(server, "sd15"), "solver": learned("auto", 6)}
    prompt = with_picture(sampled(prompt, ["solver", 0], ["solver", 1], "ours"), "sd15", "ours")
    history = server.submit(prompt)
    entry = history["outputs"]["picture"]["images"][0]
    with Image.open(server.base / "output" / entry["filename"]) as picture:
        assert picture.size == (64, 64)
        assert len(set(picture.convert("L").tobytes())) > 10


@pytest.mark.parametrize(
    ("model", "steps", "chosen"),
    [
        ("sd15", 6, "dyweight_sd15 (bundled): 6 steps, 6 model calls"),
        ("sd15", 7, "ds_vp-dit (bundled): 7 steps, 7 model calls"),
        ("flux", 5, "dyweight_flux1-dev (bundled): 5 steps, 5 model calls"),
        ("flux", 6, "ds_flow-sit (bundled): 6 steps, 6 model calls"),
        ("sd3", 5, "ds_flow-sit (bundled): 5 steps, 5 model calls"),
    ],
)
def test_auto_takes_the_models_own_solver_then_a_transferable_one(server, model, steps, chosen):
    prompt = {**model_nodes(server, model), "solver": learned("auto", steps)}
    info = info_of(server.submit({**prompt, "info": node("PreviewAny", source=["solver", 2])}))
    assert info.splitlines()[0] == chosen
    assert ("(transfer)" in info) == chosen.startswith("ds_")


@pytest.mark.parametrize(
    ("model", "solver", "steps", "message"),
    [
        (
            "sd3",
            "dyweight_sd15",
            6,
            "dyweight_sd15 was fitted for vp models, this model is flow: choose one for flow models",
        ),
        (
            "sd15",
            "ds_flow-sit",
            6,
            "ds_flow-sit was fitted for flow models, this model is vp: choose one for vp models",
        ),
        ("sd15", "dyweight_sd15", 5, "dyweight_sd15 was fitted for 4, 6, 8 and 10 steps, got 5: choose one of these"),
        (
            "sd15",
            "auto",
            3,
            "no solver for SD15 (vp) model has 3 steps: choose the steps of dyweight_sd15 (4, 6, 8, 10",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(server, model, solver, steps, message):
    assert message in error_of(run(server, model, learned(solver, steps)))


def test_the_sampler_refuses_another_kind_of_model_than_the_node_saw(server):
    prompt = {**model_nodes(server, "sd15"), "solver": learned("dyweight_sd15", 4, latent=False)}
    other = {f"sd3-{k}": v for k, v in model_nodes(server, "sd3").items()}
    prompt = sampled({**prompt, **other}, ["solver", 0], ["solver", 1], "ours")
    prompt["oursguider"]["inputs"] |= {"model": ["sd3-1", 0], "positive": ["sd3-2", 0], "negative": ["sd3-3", 0]}
    prompt["oursrun"]["inputs"]["latent_image"] = ["sd3-4", 0]
    assert "was fitted for vp models, this model is flow" in error_of(server.submit(prompt))


def test_the_grid_follows_the_size_that_is_sampled(server):
    with_latent = run(server, "flux", learned("dyweight_flux1-dev", 3), "with", width=128)
    without = run(server, "flux", learned("dyweight_flux1-dev", 3, latent=False), "without", width=128)
    assert_close(saved_latent(server, with_latent, "with"), saved_latent(server, without, "without"))
    assert "sigmas shown for 1024x1024" in info_of(without) and "shown for" not in info_of(with_latent)
    assert "fitted at 512x512, this picture is 128x64" in info_of(with_latent)


def test_split_sigmas_run_the_two_parts_of_the_grid(server):
    # Euler's row sums survive the cut, so a solver with no history must give the very same result in two parts.
    euler = one_entry_solver(server.base / "models" / "solver_weights" / "split.safetensors")
    prompt = {**model_nodes(server, "sd15"), "solver": learned(euler, 6)}
    prompt["split"] = node("SplitSigmas", sigmas=["solver", 1], step=2)
    prompt = sampled(prompt, ["solver", 0], ["solver", 1], "whole")
    prompt = sampled(prompt, ["solver", 0], ["split", 0], "high")
    prompt = sampled(prompt, ["solver", 0], ["split", 1], "low")
    prompt["nonoise"] = node("DisableNoise")
    prompt["lowrun"]["inputs"] |= {"latent_image": ["highrun", 0], "noise": ["nonoise", 0]}
    history = server.submit(prompt)
    assert history["status"]["status_str"] == "success", error_of(history)
    whole, low = saved_latent(server, history, "whole"), saved_latent(server, history, "low")
    assert_close(low, whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))


def one_entry_solver(path):
    """Writes ds_vp-dit's time steps without its coefficients, and returns the drop-down entry."""
    published = load_solver("ds_vp-dit")
    parameters = {n: {**p, "coeffs": torch.zeros_like(p["coeffs"])} for n, p in published.parameters.items()}
    replace(published, parameters=parameters).save(path, overwrite=True)
    return path.name


@pytest.mark.parametrize("denoise", [0.3, 0.6])
def test_denoise_below_one_starts_where_a_stock_sampler_does(server, denoise):
    prompt = {**model_nodes(server, "sd15"), "solver": learned("dyweight_sd15", 8, denoise)}
    prompt |= {"info": node("PreviewAny", source=["solver", 2]), "sigmas": node("PreviewAny", source=["solver", 1])}
    history = server.submit(sampled(prompt, ["solver", 0], ["solver", 1], "ours"))
    expected = VPNoise.stable_diffusion().sigma_at_index(torch.tensor([999 * denoise], dtype=torch.float64))
    shown = json.loads(history["outputs"]["sigmas"]["text"][0].removeprefix("tensor(").partition(")")[0])
    assert_close(torch.tensor(shown[0]), expected.float()[0], rtol=2e-3, atol=0.0)
    assert f"{len(shown) - 1} of its 8 model calls, from sigma" in info_of(history)
    assert torch.isfinite(saved_latent(server, history, "ours")).all()


def test_new_files_appear_and_changed_files_run_again_without_a_restart(server):
    folder = server.base / "models" / "solver_weights" / "mine"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "my-sd15.safetensors"
    shutil.copyfile(BUNDLED / "ds_vp-dit.safetensors", path)
    listed = server.get("/object_info/LearnedSolver")["LearnedSolver"]["input"]["required"]["solver"][0]
    assert "mine/my-sd15.safetensors" in listed

    def ran(history):
        cached = next(m[1]["nodes"] for m in history["status"]["messages"] if m[0] == "execution_cached")
        return "solver" not in cached

    entry = learned("mine/my-sd15.safetensors", 6)
    first, again = run(server, "sd15", entry), run(server, "sd15", entry)
    assert ran(first) and not ran(again)
    shutil.copyfile(BUNDLED / "dyweight_sd15.safetensors", path)
    os.utime(path, ns=(time.time_ns(), time.time_ns()))
    changed = run(server, "sd15", entry)
    assert ran(changed)
    assert not torch.equal(saved_latent(server, first, "ours"), saved_latent(server, changed, "ours"))
    path.write_bytes(b"not a solver")
    assert "my-sd15.safetensors: " in error_of(run(server, "sd15", entry))
    path.unlink()


def test_auto_prefers_the_users_own_file_for_the_architecture(server):
    path = server.base / "models" / "solver_weights" / "own.safetensors"
    published = load_solver("ds_flow-sit")
    replace(published, card=replace(published.card, architecture="SD3")).save(path)
    assert (
        info_of(run(server, "sd3", learned("auto", 6))).splitlines()[0]
        == "own.safetensors (models/solver_weights): 6 steps, 6 model calls"
    )
    path.unlink()


def websocket(server):
    import websocket

    return websocket.create_connection(f"ws://127.0.0.1:{server.port}/ws?clientId={server.client}", timeout=60)


def test_progress_and_previews_come_with_every_step(server):
    socket = websocket(server)
    prompt = {**model_nodes(server, "sd15", width=128), "solver": learned("dyweight_sd15", 8)}
    prompt["5"]["inputs"]["noise_seed"] = 99  # not cached
    history = server.submit(sampled(prompt, ["solver", 0], ["solver", 1], "ours"))
    assert history["status"]["status_str"] == "success"
    values, previews, done = set(), 0, False
    while not done:
        message = socket.recv()
        if isinstance(message, bytes):
            previews += 1
            continue
        content = json.loads(message)
        if content["type"] == "progress" and content["data"]["node"] == "oursrun":
            values.add((content["data"]["value"], content["data"]["max"]))
        done = content["type"] == "executing" and content["data"]["node"] is None
    socket.close()
    assert (8, 8) in values and all(highest == 8 for _, highest in values)
    assert previews >= 8


def test_interrupt_stops_between_model_calls(server):
    prompt = {**model_nodes(server, "sd15", width=256, height=256, batch=4), "solver": learned("ds_vp-dit", 10)}
    prompt["5"]["inputs"]["noise_seed"] = 123
    socket = websocket(server)

    def interrupt_after_the_first_step():
        while True:
            message = socket.recv()
            if not isinstance(message, bytes) and json.loads(message)["type"] == "progress":
                server.post("/interrupt", {})
                return

    watcher = threading.Thread(target=interrupt_after_the_first_step)
    watcher.start()
    history = server.submit(sampled(prompt, ["solver", 0], ["solver", 1], "ours"))
    watcher.join()
    socket.close()
    assert history["status"]["status_str"] == "error"
    assert "execution_interrupted" in [m[0] for m in history["status"]["messages"]]


@pytest.mark.parametrize("differential", [False, True])
@pytest.mark.parametrize(
    ("model", "solver", "steps"),
    [
        ("sd15", "ds_vp-dit", 6),
        ("sd15", "dyweight_sd15", 4),
        ("flux", "dyweight_flux1-dev", 3),
        ("sd3", "ds_flow-sit", 5),
    ],
)
def test_the_kept_region_of_an_inpaint_equals_the_input(server, model, solver, steps, differential):
    if is_wide(server, model):
        pytest.skip(WIDE)
    prompt = model_nodes(server, model, width=128)
    prompt["4b"] = {**prompt["4"]}
    prompt["draw"] = node("KSamplerSelect", sampler_name="euler")
    prompt["schedule"] = node("BasicScheduler", model=["1", 0], scheduler="simple", steps=2, denoise=1.0)
    prompt = sampled(prompt, ["draw", 0], ["schedule", 0], "draw")
    prompt["left"] = node("SolidMask", value=0.0, width=128, height=64)
    prompt["right"] = node("SolidMask", value=1.0, width=64, height=64)
    prompt["mask"] = node("MaskComposite", destination=["left", 0], source=["right", 0], x=64, y=0, operation="add")
    prompt["4"] = node("SetLatentNoiseMask", samples=["drawrun", 0], mask=["mask", 0])
    prompt["drawrun"]["inputs"]["latent_image"] = ["4b", 0]
    if differential:
        prompt["diff"] = node("DifferentialDiffusion", model=["1", 0])
        if "strength" in json.dumps(server.get("/object_info/DifferentialDiffusion")):
            prompt["diff"]["inputs"]["strength"] = 1.0
    prompt["solver"] = learned(solver, steps)
    prompt = sampled(prompt, ["solver", 0], ["solver", 1], "ours")
    if differential:
        prompt["oursguider"]["inputs"]["model"] = ["diff", 0]
    history = server.submit(prompt)
    assert history["status"]["status_str"] == "success", error_of(history)
    before, after = saved_latent(server, history, "draw"), saved_latent(server, history, "ours")
    half = before.shape[-1] // 2
    scale = float(before.abs().max())
    assert_close(after[..., : half - 1], before[..., : half - 1], rtol=0, atol=1e-5 * scale)
    assert float((after - before)[..., half + 1 :].abs().max()) > 1e-2 * scale


def test_a_schedule_that_learned_steps_do_not_fit_is_refused_and_left_out_of_auto(server):
    def with_zero_snr(solver):
        prompt = {**model_nodes(server, "sd15"), "solver": learned(solver, 6)}
        prompt["zsnr"] = node("ModelSamplingDiscrete", model=["1", 0], sampling="v_prediction", zsnr=True)
        prompt["solver"]["inputs"]["model"] = ["zsnr", 0]
        prompt["info"] = node("PreviewAny", source=["solver", 2])
        prompt = sampled(prompt, ["solver", 0], ["solver", 1], "ours")
        prompt["oursguider"]["inputs"]["model"] = ["zsnr", 0]
        return prompt

    four = with_zero_snr("dyweight_sd15")
    four["solver"]["inputs"]["steps"] = 4
    assert "do not fit this model's noise schedule, which starts at sigma 4" in error_of(server.submit(four))
    history = server.submit(with_zero_snr("ds_vp-dit"))
    assert torch.isfinite(saved_latent(server, history, "ours")).all()
    assert "this model's noise starts at sigma 45" in info_of(history)


def test_an_edm_model_has_its_own_solvers(server):
    prompt = {**model_nodes(server, "sd15"), "solver": learned("dyweight_cifar10", 5)}
    prompt["edm"] = node("ModelSamplingContinuousEDM", model=["1", 0], sampling="edm", sigma_max=80.0, sigma_min=0.002)
    prompt["solver"]["inputs"]["model"] = ["edm", 0]
    prompt["info"] = node("PreviewAny", source=["solver", 2])
    prompt = sampled(prompt, ["solver", 0], ["solver", 1], "ours")
    prompt["oursguider"]["inputs"]["model"] = ["edm", 0]
    history = server.submit(prompt)
    assert history["status"]["status_str"] == "success", error_of(history)
    assert info_of(history).splitlines()[0] == "dyweight_cifar10 (bundled): 5 steps, 5 model calls"
    assert torch.isfinite(saved_latent(server, history, "ours")).all()
