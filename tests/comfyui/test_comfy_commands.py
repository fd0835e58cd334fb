"""The commands fit and compare tiny models through a real ComfyUI's loaders; the files sample in a real server.

The errors of the cards are measured again by the server: its Heun sampler as the teacher, our node with the file.
Independent commands run two at a time.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from comfy_commands import (
    CHECKOUT,
    CLIP,
    FLUX,
    SAMPLES,
    SD3,
    TEACHER_STEPS,
    command_line,
    fit_command,
    has_model,
    output_of,
    require_model,
    run,
    write_random,
)
from comfy_graphs import MODELS as SIZES
from comfy_graphs import Graph, euler_solver
from comfy_host import ROOT, Server
from host_server import free_port
from learned_solvers.samplers import FlowNoise, VPNoise, load_solver
from learned_solvers.training.command.options import PROMPTS
from oracles import sd_sigmas
from PIL import Image

pytestmark = [pytest.mark.comfy, pytest.mark.slow]
HELD_OUT = 2


class Fitted(NamedTuple):
    """A model with its text encoder; `scale` is that of its latents, and the fit is reported at its middle guidance."""

    files: dict[str, str]
    architecture: str
    scale: float
    guidance: tuple[int, ...]
    card_guidance: str
    lora: str = ""


TURBO = {"diffusion_model": "diffusion_models/sd3-turbo_4steps.safetensors", **CLIP}
MODELS = {
    "sd15": Fitted({"checkpoint": "checkpoints/tiny_sd15_whole.ckpt"}, "SD15", 0.18215, (2,), "CFG 2"),
    "sd3": Fitted(SD3, "SD3", 1.5305, (1, 2, 3), "CFG 1, 2, 3"),
    "sd3_lora": Fitted(SD3, "SD3", 1.5305, (2,), "CFG 2", "tiny_sd3_lora.safetensors"),
    "flux": Fitted(FLUX, "Flux", 0.3611, (2, 4), "embedded guidance 2, 4, CFG 1"),
}


def usual_fit(base: Path, name: str, output: Path | None = None) -> list[str]:
    """The command of a model's fit; its default output is where the server finds it."""
    settings: dict[str, Any] = {"guidance": MODELS[name].guidance, "microbatch": 2 if name == "sd3" else 4}
    if lora := MODELS[name].lora:  # found in the server's folder
        settings |= {"lora": f"{lora}:-0.5", "comfyui_args": shlex.join(["--base-directory", str(base)])}
    return fit_command(base, MODELS[name].files, output or solver_file(base, name), **settings)


def comparison(base: Path, name: str, kind: str, folder: str, **options: object) -> list[str]:
    """The command of a comparison at 4 calls, with Euler's method as a solver file."""
    model = next((base / "models" / "diffusion_models").glob(f"tiny_{name}.*"))
    files = {"diffusion_model": model, "conditioning": base / f"{name}.safetensors", "output": base / folder}
    settings = {"steps": 4, "samples": 2, "guidance": 2, "teacher_steps": 6, "microbatch": 2, "no_plot": True}
    return command_line("compare.py", **files, **settings, solver=base / f"euler_{kind}.safetensors", **options)


def solver_file(base: Path, name: str) -> Path:
    return base / "models" / "solver_weights" / f"{name}.safetensors"


@pytest.fixture(scope="module")
def inputs(base) -> None:
    """Encoded prompts for some of the models, and Euler's method as solver files."""
    write_random(base / "sd15.safetensors", "SD15", **SIZES["sd15"][2])
    write_random(base / "sd2.safetensors", "SD20", 1024, 77)
    write_random(base / "sd3.safetensors", "SD3", **SIZES["sd3"][2])
    for kind in ("flow", "vp"):
        euler_solver(kind, 4).save(base / f"euler_{kind}.safetensors")
    os.link(base / "models" / SD3["diffusion_model"], base / "models" / TURBO["diffusion_model"])


@pytest.fixture(scope="module")
def started(base, inputs) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The independent commands, started with the first test."""
    made = [name for name, model in MODELS.items() if has_model(base, model.files)]
    python, _, *blind = fit_command(base, SD3, base / "blind")
    commands = {name: usual_fit(base, name) for name in made}
    sd2 = {"diffusion_model": "diffusion_models/tiny_sd21.safetensors"}
    commands |= {
        "dry": fit_command(base, SD3, base / "dry.safetensors", dry_run=True),
        "turbo": fit_command(base, TURBO, base / "turbo.safetensors", dry_run=True, teacher="ode", teacher_steps=20),
        "sd2": fit_command(base, sd2, base / "sd2" / "a", initial="euler", conditioning=base / "sd2.safetensors"),
        "alone": fit_command(base, SD3, base / "alone.safetensors", guidance=3),
        "taught": fit_command(
            base,
            SD3,
            base / "taught.safetensors",
            guidance=3,
            teacher_guidance=3,
            teacher_diffusion_model=base / "models" / SD3["diffusion_model"],
        ),
        "no picture": [python, "-c", NO_PICTURE, str(ROOT / "training"), *blind],
        "compare sd15": comparison(base, "sd15", "vp", "compare sd15", grids="karras"),
        "compare sd3": comparison(base, "sd3", "flow", "compare sd3", grids="simple"),
        "compare grids": comparison(base, "sd3", "flow", "compare grids"),
    }
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, line) for name, line in commands.items()}


@pytest.fixture(scope="module")
def host(base) -> Iterator[Server]:
    with Server(CHECKOUT, base) as running:
        yield running


def held_out_error(server: Server, name: str, sample: int) -> float:
    """The mean square distance of solver and teacher on one start, in the server's own nodes."""
    fitted, graph = MODELS[name], Graph(server, {})
    files = [Path(file).name for file in fitted.files.values()]
    if name == "sd15":
        graph.model, clip = graph.add("1", "CheckpointLoaderSimple", ckpt_name=files[0]), ["1", 1]
    else:
        graph.model = graph.add("1", "UNETLoader", unet_name=files[0], weight_dtype="default")
        kind = "sd3" if fitted.architecture == "SD3" else "stable_diffusion"  # a lone CLIP-L
        clip = graph.add("clip", "CLIPLoader", clip_name=files[1], type=kind)
    if fitted.lora:
        strength = {"strength_model": -0.5, "strength_clip": -0.5}
        graph.model = graph.add("lora", "LoraLoader", model=graph.model, clip=clip, lora_name=fitted.lora, **strength)
        clip = ["lora", 1]
    text = PROMPTS.read_text(encoding="utf-8").splitlines()[sample]
    graph.positive = graph.add("2", "CLIPTextEncode", clip=clip, text=text)
    graph.negative = graph.add("3", "CLIPTextEncode", clip=clip, text="")
    latent = "EmptyLatentImage" if name == "sd15" else "EmptySD3LatentImage"
    graph.latent = graph.add("4", latent, width=64, height=64, batch_size=1)
    graph.add("5", "RandomNoise", noise_seed=sample)
    graph.cfg = float(fitted.guidance[len(fitted.guidance) // 2])
    if name == "flux":
        embedded = {"conditioning": graph.positive, "guidance": graph.cfg}
        graph.positive, graph.cfg = graph.add("embedded", "FluxGuidance", **embedded), 1.0
    noise = VPNoise.from_sigmas(sd_sigmas()) if name == "sd15" else FlowNoise(16)  # 4x4 patches of 2x2
    levels = ", ".join(map(repr, noise.teacher_grid(TEACHER_STEPS).tolist()))
    heun = graph.add("heun", "KSamplerSelect", sampler_name="heun")
    graph.sample("teacher", heun, graph.add("levels", "TinySigmas", sigmas=levels))
    graph.sample_learned("learned", f"{name}.safetensors", 2)
    teacher, learned = graph.submit("teacher", "learned")
    return float((learned - teacher).double().square().mean())


def assert_drawn(path: Path) -> None:
    """A picture is large and more than an empty page."""
    with Image.open(path) as picture:
        assert picture.width > 400 and len(picture.convert("L").getcolors(256) or []) > 20


@pytest.mark.parametrize("name", MODELS)
def test_a_fitted_file_has_its_cards_error_in_the_server_and_beats_its_start(base, started, host, name):
    fitted = MODELS[name]
    require_model(base, fitted.files)
    output, file = output_of(started[name].result()), solver_file(base, name)
    card, report = load_solver(file).card, file.with_suffix(".md").read_text()
    assert output.startswith("Device: cpu\n")
    with_lora = f", with LoRA {Path(fitted.lora).stem} at -0.5" if fitted.lora else ""
    assert f"{fitted.architecture} ({'vp' if name == 'sd15' else 'flow'}){with_lora}, 64x64" in output
    assert card.note.endswith(f", seed 0{with_lora}")
    assert re.search(rf"64x64, {fitted.card_guidance} \(usually sampled with euler, \w+, \d+ steps\): dyweight", output)
    assert ("(two passes each, one at CFG 1)" in output, "two passes" in output) == (name == "sd3", name != "flux")
    assert (card.architecture, str(card.guidance)) == (fitted.architecture, fitted.card_guidance)
    assert card.resolution == "64x64"
    knots = [f"| 2 at guidance {value} |" for value in fitted.guidance] if len(fitted.guidance) > 1 else ["| 2 |"]
    assert all(text in report for text in (*knots, f"{name}.png", "Peak memory"))
    assert f"Guidance of the samples: {fitted.card_guidance}." in report
    assert_drawn(file.with_suffix(".png"))
    assert not file.with_suffix(".fit").exists()
    step = card.steps[2]
    assert (step.teacher, step.teacher_steps, step.loss) == ("heun", TEACHER_STEPS, "l2")
    assert step.error_after < 1.1 * step.error_before and step.network_calls > 0  # of two samples, not fitted to
    squares = [held_out_error(host, name, sample) for sample in range(SAMPLES, SAMPLES + HELD_OUT)]
    error = fitted.scale * (sum(squares) / HELD_OUT) ** 0.5
    assert error == pytest.approx(step.error_after, rel=0.01)


def test_sd2_with_v_prediction_is_fitted_from_encoded_prompts(base, started):
    output = output_of(started["sd2"].result())
    step = load_solver(base / "sd2" / "a.safetensors").card.steps[2]
    assert "SD20 (vp)" in output and step.error_after < step.error_before


@pytest.fixture(scope="module")
def whole(base, started) -> Path:
    """The solver file of an uninterrupted run."""
    output_of(started["sd3"].result())
    return solver_file(base, "sd3")


def test_a_teacher_with_the_same_model_and_guidance_leaves_the_errors_of_classical_solvers(base, started):
    outputs = [output_of(started[name].result()) for name in ("alone", "taught")]
    assert [re.search(r"and (\d+) of the teacher's", output) is None for output in outputs] == [True, False]
    alone, taught = (load_solver(base / f"{name}.safetensors") for name in ("alone", "taught"))
    assert taught.card.steps[2].teacher == "heun at guidance 3"
    assert taught.card.steps[2].error_best_peer == pytest.approx(alone.card.steps[2].error_best_peer, rel=1e-4)


def test_a_dry_run_prints_the_cost_and_writes_nothing(base, started):
    output = output_of(started["dry"].result())
    texts = ("At most", "calls at", "per second)", "GB resident", "64x64, CFG 1.8, 3, 4.5, 7.2 (usually")
    assert all(text in output for text in texts)
    assert not list(base.glob("dry*"))


def test_the_remark_on_a_distilled_model_names_a_command_that_learns_from_its_usual_steps(base, started):
    output = output_of(started["turbo"].result())
    advice = re.search(r"sd3-turbo_4steps looks distilled .* pass (--teacher .*)\.\n", output)
    assert advice and advice[1] == '--teacher "euler simple 4" --steps 2 --guidance 1'
    words = [*fit_command(base, TURBO, base / "turbo.safetensors", samples=2), *shlex.split(advice[1])]
    words[(i := words.index("--teacher-steps")) : i + 2] = []
    assert "distilled" not in output_of(run(words))
    card = load_solver(base / "turbo.safetensors").card
    assert (card.steps[2].teacher, card.steps[2].teacher_steps, str(card.guidance)) == ("euler simple", 4, "CFG 1")


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_an_interrupted_fit_resumes_and_ends_with_the_same_file(base, whole, name):
    output = base / f"{name}.safetensors"
    process = subprocess.Popen(
        usual_fit(base, "sd3", output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    deadline = time.time() + 600
    # Until the journal has the result of a start.
    while not any(b"start" in path.read_bytes() for path in output.with_suffix(".fit").glob("*/journal.work")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    os.kill(process.pid, getattr(signal, name))
    _, message = process.communicate()
    assert not output.exists()
    if name == "SIGINT":
        assert process.returncode == 130 and "run the same command again to resume" in message
    assert "resuming the fit" in output_of(run(usual_fit(base, "sd3", output)))
    # Byte for byte, except the day on which each fit began.
    days = [load_solver(file).card.date.encode() for file in (whole, output)]
    assert output.read_bytes() == whole.read_bytes().replace(*days)


def test_two_processes_through_comfyui_find_the_result_of_one(base, whole):
    output = base / "both.safetensors"
    python, *rest = usual_fit(base, "sd3", output)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    output_of(run([python, *launch, *rest]))
    one, both = load_solver(whole).parameters[2], load_solver(output).parameters[2]
    torch.testing.assert_close(dict(both), dict(one), rtol=0, atol=1e-6)


NO_PICTURE = """
import sys
sys.path.append(sys.argv[1])
import _as_package
import torch
from learned_solvers.training import fit_weights
from learned_solvers.training.models.comfy import ComfyModel
from learned_solvers.training.models.guider import _make_denoiser

decoded, make = [], _make_denoiser

def watched(*arguments):
    denoiser = make(*arguments)
    def call(*arguments, **options):
        assert not decoded
        return denoiser(*arguments, **options)
    return call

def decode(self, latents):
    decoded.append(latents)
    raise torch.cuda.OutOfMemoryError("no room for the VAE")

sys.modules[make.__module__]._make_denoiser, ComfyModel.decode = watched, decode
fit_weights.main(sys.argv[2:])
"""


def test_a_picture_that_cannot_be_decoded_costs_nothing_else(base, started):
    output = output_of(started["no picture"].result())
    sentence = "No picture (OutOfMemoryError: no room for the VAE). The solver file is complete."
    assert sentence in output and sentence in (base / "blind.md").read_text()
    assert load_solver(base / "blind.safetensors").steps == (2,)
    assert not (base / "blind.png").exists() and not (base / "blind.fit").exists()


@pytest.mark.parametrize(("name", "kind"), [("sd3", "flow"), ("sd15", "vp"), ("grids", "flow")])
def test_comfyuis_euler_has_the_error_of_our_table_and_every_peer_is_compared_on_all_grids(base, started, name, kind):
    output_of(started[f"compare {name}"].result())
    record = json.loads((base / f"compare {name}" / "compare.json").read_text())
    rows = {row["method"]: row for row in record["rows"]}
    peers = {"euler", "heun", "lms", "ipndm", "ipndm_v", "deis", "dpmpp_2m", "res_multistep", "uni_pc", "uni_pc_bh2"}
    assert set(rows) == {f"euler_{kind}", *peers} and "comfyui" in record["versions"]
    assert all(row["used"] == (3 if method == "heun" else 4) for method, row in rows.items())
    assert len({row["error"] for row in rows.values()}) >= 9  # the samplers differ
    if name == "grids":  # 5 schedulers and 3 step lists; for UniPC the schedulers also without a level
        assert [rows[method]["grids"] for method in ("euler_flow", "euler", "uni_pc")] == [1, 8, 13]
        assert_drawn(base / "compare grids" / "pictures.png")
    else:
        assert rows["euler"]["error"] == pytest.approx(rows[f"euler_{kind}"]["error"], rel=1e-4)
