"""The Fit Learned Solver node in real ComfyUI servers, end to end on tiny models, and what it refuses."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid

import numpy as np
import pytest
import torch
from comfy_fits import fit, folder, written
from comfy_host import error_of, succeeded
from comfy_prompts import model_nodes, node, saved_latent
from learned_solvers.samplers import Guidance, load_solver
from learned_solvers.training import TEACHERS
from PIL import Image
from torch.testing import assert_close

pytestmark = [pytest.mark.comfy, pytest.mark.slow]


@pytest.fixture(autouse=True)
def left_as_found(server):
    """Removes the files that a test wrote: `auto` would take them in the tests of other modules."""
    before = written(server)
    yield
    for path in written(server) - before:
        path.unlink()


def texts(server, stop):
    """Returns a list that fills with the texts that the server shows on nodes."""
    import websocket

    # The host knows one socket per client: one that closes late must not be the new one.
    server.client = uuid.uuid4().hex
    socket = websocket.create_connection(f"ws://127.0.0.1:{server.port}/ws?clientId={server.client}", timeout=1)
    told = []

    def listen():
        while not stop.is_set():
            try:
                message = socket.recv()
            except websocket.WebSocketTimeoutException:
                continue
            except websocket.WebSocketConnectionClosedException:
                return
            if isinstance(message, bytes) and message[:4] == b"\0\0\0\3":
                told.append(message[8:].decode())
        socket.close()

    threading.Thread(target=listen, daemon=True).start()
    return told


@pytest.mark.parametrize(
    ("model", "name", "family", "guidance", "dimensions"),
    [
        ("sd3", "mine/dyweight_new", "dyweight", "CFG 2", 4),
        ("sd15", "", "ds", "CFG 2", 4),
        ("flux", "dyweight_flux", "dyweight", "embedded guidance 3.5, CFG 1", 4),
        ("wan", "dyweight_wan", "dyweight", "CFG 2", 5),
    ],
)
def test_a_fitted_file_is_in_the_drop_downs_and_samples(server, model, name, family, guidance, dimensions):
    prompt = fit(server, model, name=name, family=family, cfg=1.0 if model == "flux" else 2.0)
    if prompt["1"]["inputs"]["unet_name"].endswith(".pth"):
        pytest.skip(
            "FLUX of full width, as an old core wants it, takes minutes: run with the small one on a newer core"
        )
    wires = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    prompt["wired"] = node("LearnedSolverKSampler", **wires, seed=7, cfg=2.0, solver=["fit", 0], steps=2, denoise=1.0)
    prompt["wiredsave"] = node("SaveLatent", samples=["wired", 0], filename_prefix="wired")
    stop = threading.Event()
    told = texts(server, stop)
    history = succeeded(server.submit(prompt))
    stop.set()
    entry = f"{name or 'ds_tiny_sd15'}.safetensors"
    inputs = server.get("/object_info/LearnedSolverKSampler")["LearnedSolverKSampler"]["input"]["required"]
    assert entry in inputs["solver"][0]
    solver = load_solver(folder(server) / entry)
    step = solver.card.steps[2]
    assert solver.card.checkpoint == f"tiny_{model}" and str(solver.card.guidance) == guidance
    assert (step.teacher, step.teacher_steps) == ("dpmpp_2m", 6) and step.network_calls > 100
    report = history["outputs"]["fit"]["text"][0]
    assert f"**{step.error_after:.4f}**" in report and str(folder(server) / entry) in report
    assert any("2 steps: held-out error" in text for text in told) and any("model calls" in text for text in told)
    wired = saved_latent(server, history, "wired")
    assert torch.isfinite(wired).all() and wired.ndim == dimensions
    image = history["outputs"]["picture"]["images"][0]
    with Image.open(server.base / "output" / image["filename"]) as drawn:
        assert drawn.width > 300 and drawn.height > 150 and np.asarray(drawn).std() > 20


def test_the_result_does_not_depend_on_how_many_samples_a_call_has_nor_mixes_their_prompts(server):
    cards = []
    for batch in (1, 4):
        prompt = fit(server, "sd3", name=f"batch{batch}", batch=batch, samples=4)
        prompt["2b"] = node("TinyConditioning", tokens=8, dim=64, pooled=32, seed=5)
        prompt["both"] = node("PromptBatch", one=["2", 0], two=["2b", 0])
        prompt["fit"]["inputs"]["positive"] = ["both", 0]
        succeeded(server.submit(prompt))
        cards.append(load_solver(folder(server) / f"batch{batch}.safetensors").card.steps[2])
    one, four = cards
    assert four.error_after == pytest.approx(one.error_after, rel=2e-2)
    assert four.error_best_peer == pytest.approx(one.error_best_peer, rel=1e-3)


def test_a_fit_whose_file_was_deleted_runs_again_and_one_whose_file_is_there_does_not(server):
    prompt, path = fit(server, "sd3", name="gone"), folder(server) / "gone.safetensors"
    succeeded(server.submit(prompt))
    made = path.stat().st_mtime_ns
    succeeded(server.submit(prompt))
    assert path.stat().st_mtime_ns == made
    path.unlink()
    succeeded(server.submit(prompt))
    assert load_solver(path).steps == (2,)
    made = path.stat().st_mtime_ns
    succeeded(server.submit(prompt))
    assert path.stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("widgets", "guidance"),
    [({"cfg_range": None}, (1.34, 2, 2.66)), ({"cfg_range": 0.5, "cfg": 3.0}, (1.5, 3, 4.5)), ({"cfg": 1.0}, (1,))],
)
def test_the_samples_are_spread_around_the_guidance_unless_the_range_is_nothing(server, widgets, guidance):
    prompt = fit(server, "sd3", name="spread", samples=3, steps="1", teacher="euler", **widgets)
    if widgets.get("cfg_range", 0) is None:
        del prompt["fit"]["inputs"]["cfg_range"]  # as in a workflow from before there was such a widget
    succeeded(server.submit(prompt))
    assert load_solver(folder(server) / "spread.safetensors").card.guidance == Guidance("cfg", guidance)


def test_a_call_of_samples_at_several_guidances_finds_what_calls_of_one_find(server):
    cards = []
    for batch in (1, 3):
        name = f"several{batch}"
        prompt = fit(server, "sd3", name=name, batch=batch, samples=3, steps="1", teacher="euler", cfg_range=0.5)
        succeeded(server.submit(prompt))
        cards.append(load_solver(folder(server) / f"{name}.safetensors").card.steps[1])
    one, three = cards
    assert three.error_best_peer == pytest.approx(one.error_best_peer, rel=1e-3)


def test_what_is_no_batch_of_prompts_reaches_the_network_whole(server):
    prompt = fit(server, "sd3", name="constant", cfg=1.0, samples=2, steps="1", teacher="euler")
    prompt["told"] = node("TinyConstant", model=["1", 0])
    prompt["fit"]["inputs"]["model"] = ["told", 0]
    succeeded(server.submit(prompt))


def test_a_file_that_exists_is_kept_unless_the_widget_says_otherwise(server):
    succeeded(server.submit(fit(server, "sd3", name="kept", samples=2)))
    before = (folder(server) / "kept.safetensors").read_bytes()
    message = error_of(server.submit(fit(server, "sd3", name="kept", samples=2, seed=4)))
    assert "exists already: choose another file_name, or switch overwrite on" in message
    assert (folder(server) / "kept.safetensors").read_bytes() == before
    succeeded(server.submit(fit(server, "sd3", name="kept", samples=2, seed=4, overwrite=True)))
    assert (folder(server) / "kept.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"name": "../outside"}, "must be a name within models/solver_weights, got '../outside'"),
        ({"name": "x", "steps": "2 6"}, "dpmpp_2m with 6 steps makes 6 model calls, the solver is to make 6"),
        ({"name": "x", "samples": 2, "cfg_range": 0.5}, "2 samples are too few for guidances 1, 2, 3: take 3"),
        ({"name": "x", "steps": "4 six"}, "steps must be numbers of model calls from 1 to 100, such as 4 6 8"),
    ],
)
def test_what_cannot_be_is_refused(server, widgets, message):
    assert message in error_of(server.submit(fit(server, "sd3", **widgets)))


def test_a_lora_and_offloaded_weights_are_fitted_as_they_are(server):
    prompt = fit(server, "sd3", name="plain", samples=2, steps="1", teacher="euler")
    files = {"lora_name": "tiny_sd3_lora.safetensors", "strength_model": 1.0}
    prompt["lora"] = node("LoraLoaderModelOnly", model=["1", 0], **files)
    prompt["outside"] = node("TinyOffload", model=["lora", 0])
    for name in ("lora", "outside"):
        prompt[f"fit {name}"] = {"class_type": "FitLearnedSolver", "inputs": {**prompt["fit"]["inputs"]}}
        prompt[f"fit {name}"]["inputs"] |= {"model": [name, 0], "file_name": name}
    succeeded(server.submit(prompt))
    assert re.search(r"(?m)loaded partially.* [1-9]\d*$", server.log)  # the last number: patches added in each call
    plain, lora, outside = (load_solver(folder(server) / f"{n}.safetensors") for n in ("plain", "lora", "outside"))
    assert_close(outside.parameters[1], lora.parameters[1], rtol=1e-3, atol=1e-4)
    peers = [solver.card.steps[1].error_best_peer for solver in (plain, lora, outside)]
    assert peers[2] == pytest.approx(peers[1], rel=1e-4) and peers[1] != pytest.approx(peers[0], rel=2e-2)
    assert lora.card.checkpoint == outside.card.checkpoint == "tiny_sd3"


def test_a_quantised_model_is_fitted_as_it_is(server):
    solvers = []
    for weights in ("default", "fp8_e4m3fn"):
        prompt = fit(server, "sd3", name=weights, samples=2, steps="1", teacher="euler")
        prompt["1"]["inputs"]["weight_dtype"] = weights
        succeeded(server.submit(prompt))
        solvers.append(load_solver(folder(server) / f"{weights}.safetensors"))
    assert "model weight dtype torch.float8_e4m3fn, manual cast: torch." in server.log
    errors = [solver.card.steps[1].error_after for solver in solvers]
    # Rounded to 3 bits a weight, it is another model, but not by much.
    assert errors[0] != errors[1] and errors[1] == pytest.approx(errors[0], rel=0.2)


def test_picture_and_sound_together_are_refused_before_anything_is_sampled(server):
    prompt = model_nodes(server, "ltxav")
    prompt |= {k: v for k, v in fit(server, "ltxav", name="av").items() if k == "fit"}
    prompt["audio"] = node("TinyAudioLatent", length=6, batch_size=1)
    prompt["both"] = node("LTXVConcatAVLatent", video_latent=["4", 0], audio_latent=["audio", 0])
    prompt["fit"]["inputs"]["latent"] = ["both", 0]
    message = error_of(server.submit(prompt))
    assert (
        "holds picture and sound together" in message
        and "use a bundled solver that transfers instead of a fit" in message
    )
    assert not (folder(server) / "av.safetensors").exists()


def test_an_interrupt_leaves_nothing(server):
    before = written(server)
    stop, answer = threading.Event(), {}
    told = texts(server, stop)
    prompt = fit(server, "sd3", name="stopped", steps="8", samples=64, teacher_steps=12)
    thread = threading.Thread(target=lambda: answer.update(server.submit(prompt)))
    thread.start()
    deadline = time.time() + 120
    while not told:
        assert time.time() < deadline and thread.is_alive()
        time.sleep(0.05)
    server.post("/interrupt", {})
    thread.join(60)
    stop.set()
    assert any(message[0] == "execution_interrupted" for message in answer["status"]["messages"]), json.dumps(answer)
    assert written(server) == before


def test_the_teachers_are_those_that_a_fit_knows(server):
    listed = server.get("/object_info/FitLearnedSolver")["FitLearnedSolver"]["input"]["required"]["teacher"][0]
    assert sorted(listed) == sorted(TEACHERS)
