"""The commands fit and compare tiny models through a real ComfyUI's loaders; the files sample in a real server.

The errors of the cards are measured again by the server: its Heun sampler as the teacher, our node with the file.
Independent commands run two at a time.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from comfy_host import NO_COMFYUI, ROOT, Server, checkouts, make_base, python_of, run_script
from comfy_prompts import Graph
from comfy_situations import euler_solver
from host_server import free_port
from learned_solvers.samplers import FlowNoise, VPNoise, load_solver
from learned_solvers.training.command.options import PROMPTS
from learned_solvers.training.models.conditioning import write_conditioning
from oracles import sd_sigmas
from PIL import Image
from safetensors import safe_open

pytestmark = [pytest.mark.comfy, pytest.mark.slow]
CHECKOUT = next(iter(checkouts()), None)
if CHECKOUT is None:
    pytest.skip(NO_COMFYUI, allow_module_level=True)
SAMPLES, HELD_OUT, TEACHER_STEPS = 4, 2, 5
NO_TINY_FLUX = "this core fixes FLUX's width: a tiny one cannot be made"


class Fitted(NamedTuple):
    """A model with its text encoder; `scale` is that of its latents, and the samples have the guidances in turn."""

    options: list[str]
    architecture: str
    scale: float
    guidance: tuple[float, ...]
    card_guidance: str
    passes: str
    recipe: str

    @property
    def files(self) -> list[str]:
        return self.options[1::2]


CLIP = ["--clip", "text_encoders/tiny_clip_l.pth"]
MODELS = {
    "sd15": Fitted(
        ["--checkpoint", "checkpoints/tiny_sd15_whole.ckpt"],
        *("SD15", 0.18215, (2,), "CFG 2", "(two passes each)", "euler, normal, 20"),
    ),
    "sd3": Fitted(
        ["--diffusion-model", "diffusion_models/tiny_sd3_clip.safetensors", *CLIP],
        *("SD3", 1.5305, (1, 2, 3), "CFG 1, 2, 3", "(two passes each, one at CFG 1)", "euler, simple, 32"),
    ),
    "flux": Fitted(
        ["--diffusion-model", "diffusion_models/tiny_flux_clip.safetensors", *CLIP],
        *("Flux", 0.3611, (2, 4), "embedded guidance 2, 4, CFG 1", "network calls, usually", "euler, simple, 20"),
    ),
}


def command(base: Path, output: Path, options: list[str], *more: str) -> list[str]:
    files = [str(base / "models" / option) if "/" in option else option for option in options]
    return [
        *(str(python_of(CHECKOUT)), str(ROOT / "training" / "fit_weights.py"), "--comfyui", str(CHECKOUT), *files),
        *("--size", "64x64", "--steps", "2", "--samples", str(SAMPLES), "--microbatch", "4"),
        *("--teacher-steps", str(TEACHER_STEPS), "--threads", "1", "--output", str(output), *more),
    ]


def fit_of(base: Path, name: str, output: Path | None = None, *more: str) -> list[str]:
    """The command of a fit; its default output is where the server finds it."""
    guidance = ["--guidance", *map(str, MODELS[name].guidance), "--microbatch", "2" if name == "sd3" else "4"]
    return command(base, output or solver_file(base, name), MODELS[name].options, *guidance, *more)


def comparison(base: Path, name: str, kind: str, *more: str, folder: str = "") -> list[str]:
    """The command of a comparison at 4 calls, with Euler's method as a solver file."""
    model = next((base / "models" / "diffusion_models").glob(f"tiny_{name}.*"))
    return [
        *(str(python_of(CHECKOUT)), str(ROOT / "training" / "compare.py"), "--comfyui", str(CHECKOUT)),
        *("--diffusion-model", str(model), "--conditioning", str(base / f"{name}.safetensors"), "--size", "64x64"),
        *("--steps", "4", "--samples", "2", "--guidance", "2", "--teacher-steps", "6", "--microbatch", "2"),
        *("--solver", str(base / f"euler_{kind}.safetensors"), "--threads", "1", "--no-plot"),
        *("--output", str(base / "compare" / (folder or name)), *more),
    ]


def solver_file(base: Path, name: str) -> Path:
    return base / "models" / "solver_weights" / f"{name}.safetensors"


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=600)


def output_of(completed: subprocess.CompletedProcess[str]) -> str:
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def write_random(path: Path, architecture: str, tokens: int, dim: int, pooled: int) -> None:
    """Writes encoded prompts."""
    generator = torch.Generator().manual_seed(0)
    conds = [{"context": torch.randn(1, tokens, dim, generator=generator)} for _ in range(5)]
    for cond in conds:
        if pooled:
            cond["pooled_output"] = torch.randn(1, pooled, generator=generator)
    write_conditioning(path, conds, [str(i) for i in range(5)], architecture)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Tiny models, and encoded prompts for some of them."""
    base = tmp_path_factory.mktemp("commands") / "base"
    make_base(CHECKOUT, base)
    write_random(base / "sd15.safetensors", "SD15", 77, 768, 0)
    write_random(base / "sd2.safetensors", "SD20", 77, 1024, 0)
    write_random(base / "sd3.safetensors", "SD3", 8, 64, 32)
    write_random(base / "other.safetensors", "SD3", 8, 32, 32)
    return base


@pytest.fixture(scope="module")
def started(base, tmp_path_factory) -> Iterator[dict[str, Future[Any]]]:
    """The independent commands, started with the first test."""
    models = base / "models"
    sd2 = ["--diffusion-model", "diffusion_models/tiny_sd21.safetensors"]
    refusals = tmp_path_factory.mktemp("refusals") / "refusals.py"
    options = [[word.format(base) for word in words] for words, _ in WRONG.values()]
    refusals.write_text(REFUSALS.format(training=str(ROOT / "training"), options=options))
    euler_solver("flow", 4).save(base / "euler_flow.safetensors")
    euler_solver("vp", 4).save(base / "euler_vp.safetensors")
    python, _, *arguments = fit_of(base, "sd3", base / "wrong.safetensors")
    commands = {name: fit_of(base, name) for name in MODELS if (models / MODELS[name].files[0]).exists()}
    commands |= {
        "dry": command(base, base / "dry.safetensors", MODELS["sd3"].options, "--dry-run"),
        "sd2": command(
            base, base / "sd2" / "a", sd2, "--initial", "euler", "--conditioning", str(base / "sd2.safetensors")
        ),
        "refusals": [python, str(refusals), *arguments],
        "compare sd15": comparison(base, "sd15", "vp", "--grids", "karras"),
        "compare sd3": comparison(base, "sd3", "flow", "--grids", "simple"),
        "compare grids": comparison(base, "sd3", "flow", folder="grids"),
    }
    with ThreadPoolExecutor(2) as pool:
        futures: dict[str, Future[Any]] = {name: pool.submit(run, words) for name, words in commands.items()}
        futures["model"] = pool.submit(run_script, CHECKOUT, "comfy_model.py", models)
        yield futures


@pytest.fixture(scope="module")
def server(base) -> Iterator[Server]:
    with Server(CHECKOUT, base) as running:
        yield running


def held_out_error(server: Server, name: str, sample: int) -> float:
    """The mean square distance of solver and teacher on one start, in the server's own nodes."""
    fitted, graph = MODELS[name], Graph(server, {})
    files = [Path(file).name for file in fitted.files]
    if name == "sd15":
        graph.model, clip = graph.add("1", "CheckpointLoaderSimple", ckpt_name=files[0]), ["1", 1]
    else:
        graph.model = graph.add("1", "UNETLoader", unet_name=files[0], weight_dtype="default")
        kind = "sd3" if name == "sd3" else "stable_diffusion"  # a lone CLIP-L
        clip = graph.add("clip", "CLIPLoader", clip_name=files[1], type=kind)
    text = PROMPTS.read_text(encoding="utf-8").splitlines()[sample]
    graph.positive = graph.add("2", "CLIPTextEncode", clip=clip, text=text)
    graph.negative = graph.add("3", "CLIPTextEncode", clip=clip, text="")
    latent = "EmptyLatentImage" if name == "sd15" else "EmptySD3LatentImage"
    graph.latent = graph.add("4", latent, width=64, height=64, batch_size=1)
    graph.add("5", "RandomNoise", noise_seed=sample)
    graph.cfg = float(fitted.guidance[sample % len(fitted.guidance)])
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


@pytest.mark.parametrize("name", MODELS)
def test_a_fitted_file_has_its_cards_error_in_the_server_and_beats_its_start(base, started, server, name):
    fitted = MODELS[name]
    if name not in started:
        pytest.skip(NO_TINY_FLUX)
    output, card = output_of(started[name].result()), load_solver(solver_file(base, name)).card
    assert "At most" in output and "One call takes" in output
    assert f"{fitted.architecture} ({'vp' if name == 'sd15' else 'flow'})" in output
    assert f"64x64, {fitted.card_guidance} (usually sampled with {fitted.recipe} steps): dyweight" in output
    assert fitted.passes in output
    assert (card.architecture, str(card.guidance)) == (fitted.architecture, fitted.card_guidance)
    assert card.resolution == "64x64"
    step = card.steps[2]
    assert (step.teacher, step.teacher_steps, step.loss) == ("heun", TEACHER_STEPS, "l2")
    assert step.error_after < step.error_before and step.network_calls > 0
    squares = [held_out_error(server, name, sample) for sample in range(SAMPLES, SAMPLES + HELD_OUT)]
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


def test_the_command_writes_a_solver_a_report_and_a_picture(base, whole):
    assert load_solver(whole).table(2, FlowNoise()).nfe == 2
    report = whole.with_suffix(".md").read_text()
    assert "| 2 |" in report and "sd3.png" in report and "Peak memory" in report
    assert "Guidance of the samples: CFG 1, 2, 3." in report
    with Image.open(whole.with_suffix(".png")) as picture:
        assert len(picture.convert("L").getcolors(256) or []) > 20
    assert not whole.with_suffix(".fit").exists()


def test_a_dry_run_prints_the_cost_and_writes_nothing(base, started):
    output = output_of(started["dry"].result())
    assert "At most" in output and "One call takes" in output and "GB resident" in output
    assert "64x64, CFG 3, 4.5, 6 (usually" in output  # SD3's usual CFG, a third less and a third more
    assert not list(base.glob("dry*"))


def has_begun(folder: Path) -> bool:
    """Whether a fit's journal has the result of a start."""
    for journal in folder.glob("*/journal.safetensors"):
        with safe_open(journal, framework="pt") as file:
            return any("start" in key for key in file.keys())  # noqa: SIM118 - not a dict
    return False


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_an_interrupted_fit_resumes_and_ends_with_the_same_file(base, whole, name):
    output = base / f"{name}.safetensors"
    process = subprocess.Popen(
        fit_of(base, "sd3", output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    deadline = time.time() + 600
    while not has_begun(output.with_suffix(".fit")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    os.kill(process.pid, getattr(signal, name))
    _, message = process.communicate()
    assert not output.exists()
    if name == "SIGINT":
        assert process.returncode == 130 and "run the same command again to resume" in message
    assert "resuming the fit" in output_of(run(fit_of(base, "sd3", output)))
    # Byte for byte, except the day on which each fit began.
    days = [load_solver(file).card.date.encode() for file in (whole, output)]
    assert output.read_bytes() == whole.read_bytes().replace(*days)


def test_two_processes_through_comfyui_find_the_result_of_one(base, whole):
    output = base / "both.safetensors"
    python, *rest = fit_of(base, "sd3", output)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    output_of(run([python, *launch, *rest]))
    one, both = load_solver(whole).parameters[2], load_solver(output).parameters[2]
    torch.testing.assert_close(dict(both), dict(one), rtol=0, atol=1e-6)


REFUSALS = """
import sys
sys.path.append({training!r})
import _as_package
from learned_solvers.training.fit_weights import main

for options in {options!r}:
    try:
        main([*sys.argv[1:], *options])
    except SystemExit as stopped:
        print(f"exit {{stopped.code}}", file=sys.stderr)
"""
VAE = "{}/models/vae/tiny_taesd.safetensors"
WRONG = {  # options, and a pattern of the message
    "prompts": (["--conditioning", "{}/other.safetensors"], "pass another file with --conditioning"),
    "size": (["--size", "60x64"], "--size must be multiples of 8 for SD3, got 60x64: use 64x64"),
    "kind": (
        ["--dry-run", "--clip", VAE],
        r"cannot load .*/tiny_taesd\.safetensors \(.*pass the model's text encoders",
    ),
    "text encoder": (
        ["--dry-run", "--diffusion-model", "{}/models/diffusion_models/tiny_sd3.safetensors"],
        r"first call .*: if the text encoders .*/tiny_clip_l\.pth are for another model, pass its own with --clip",
    ),
    "vae": (
        ["--dry-run", "--vae", VAE],
        r"latents have 4 channels, but those of SD3 have 16\): pass the model's VAE with --vae",
    ),
    "model": (
        ["--dry-run", "--diffusion-model", VAE],
        r"cannot load .*/tiny_taesd\.safetensors .*: pass a diffusion model with --diffusion-model",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_or_size_is_refused(started, name):
    *messages, rest = started["refusals"].result().stderr.split("exit 1\n")
    assert len(messages) == len(WRONG) and not rest, messages
    assert re.search(WRONG[name][1], messages[list(WRONG).index(name)])


def test_freed_text_encoders_are_not_referenced_anywhere(started):
    freed = next(line for line in started["model"].result().splitlines() if line.startswith("freed "))
    assert float(freed.split()[1]) > 200  # MB; 123 M parameters


@pytest.mark.parametrize(("name", "usual"), [("sd3", ["3.0", "4.5", "6.0"]), ("flux", ["3.5"])])
def test_each_row_of_a_call_equals_comfyuis_own_result_for_it(base, started, name, usual):
    lines = [line.split() for line in started["model"].result().splitlines()]
    if not (base / "models" / "diffusion_models" / f"tiny_{name}.safetensors").exists():
        pytest.skip(NO_TINY_FLUX)
    errors = [float(word) for line in lines if line[:1] == [name] for word in line[1:]]
    assert len(errors) == 6 and max(errors) < 2e-6, errors
    assert ["default", name, *usual] in lines


@pytest.mark.parametrize(("name", "kind"), [("sd3", "flow"), ("sd15", "vp")])
def test_comfyuis_euler_has_the_error_of_our_table(base, started, name, kind):
    output_of(started[f"compare {name}"].result())
    rows = json.loads((base / "compare" / name / "compare.json").read_text())["rows"]
    error = {row["method"]: row["error"] for row in rows}
    peers = {"euler", "heun", "lms", "ipndm", "ipndm_v", "deis", "dpmpp_2m", "res_multistep", "uni_pc", "uni_pc_bh2"}
    assert set(error) == {f"euler_{kind}", *peers}
    assert error["euler"] == pytest.approx(error[f"euler_{kind}"], rel=1e-4)
    assert all(row["used"] == (3 if row["method"] == "heun" else 4) for row in rows)
    assert len(set(error.values())) >= 9  # the samplers differ


def test_every_peer_is_compared_on_all_grids(base, started):
    output_of(started["compare grids"].result())
    record = json.loads((base / "compare" / "grids" / "compare.json").read_text())
    count = {row["method"]: row["grids"] for row in record["rows"]}
    # 5 schedulers and 3 step lists; for UniPC the schedulers also without a level.
    assert (count["euler_flow"], count["euler"], count["uni_pc"]) == (1, 8, 13)
    assert "comfyui" in record["versions"]
    with Image.open(base / "compare" / "grids" / "pictures.png") as picture:
        assert picture.width > 400 and len(picture.convert("L").getcolors(256) or []) > 20
