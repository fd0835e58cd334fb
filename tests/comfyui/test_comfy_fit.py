"""The command fits tiny models through a real ComfyUI's loaders; its files sample in a real server.

The errors of the cards are found again by the server: its stock Heun as the teacher, our node with the file. Commands
that do not wait for each other run two at a time, a thread each.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from comfy_host import HOSTS, ROOT, WANTED, Server, checkouts, make_base, python_of
from comfy_prompts import Prompt, node, saved_latent
from host_process import free_port
from learned_solvers.samplers import FlowNoise, VPNoise, load_solver
from learned_solvers.training.command.options import PROMPTS
from learned_solvers.training.models.conditioning import write_conditioning
from oracles import sd_sigmas
from PIL import Image
from safetensors import safe_open

pytestmark = [pytest.mark.comfy, pytest.mark.slow]
CHECKOUT = next(iter(checkouts()), None)
if CHECKOUT is None:
    pytest.skip(f"no ComfyUI: {WANTED}", allow_module_level=True)
FITTED, JUDGED, TEACHER_STEPS = 4, 2, 5


@dataclass(frozen=True)
class Fitted:
    """A model with its text encoder as the command and as the server load it; `scale`: of its latents.

    The samples have the guidances in turn.
    """

    options: tuple[str, ...]
    family: str
    kind: str
    scale: float
    guidance: tuple[float, ...]
    latent: str


MODELS = {
    "sd15": Fitted(
        ("--checkpoint", "checkpoints/tiny_sd15_whole.ckpt"), "SD15", "vp", 0.18215, (2,), "EmptyLatentImage"
    ),
    "sd3": Fitted(
        ("--diffusion-model", "diffusion_models/tiny_sd3_clip.safetensors", "--clip", "text_encoders/tiny_clip_l.pth"),
        *("SD3", "flow", 1.5305, (1, 2, 3), "EmptySD3LatentImage"),
    ),
    "flux": Fitted(
        ("--diffusion-model", "diffusion_models/tiny_flux_clip.safetensors", "--clip", "text_encoders/tiny_clip_l.pth"),
        *("Flux", "flow", 0.3611, (2, 4), "EmptySD3LatentImage"),
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Tiny models, and encoded prompts for the smallest of them."""
    base = tmp_path_factory.mktemp("fit") / "base"
    make_base(CHECKOUT, base)
    write_random(base / "sd2.safetensors", "SD20", 77, 1024, 0)
    write_random(base / "other.safetensors", "SD3", 8, 32, 32)
    return base


@pytest.fixture(scope="module")
def started(base, tmp_path_factory) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The commands that need nothing of each other, under way from the first test on."""
    sd2 = (
        "--diffusion-model",
        "diffusion_models/tiny_sd21.safetensors",
        "--conditioning",
        str(base / "sd2.safetensors"),
    )
    refused = tmp_path_factory.mktemp("refused") / "refused.py"
    refused.write_text(REFUSED.format(training=str(ROOT / "training"), wrong=[w(base) for w, _ in WRONG.values()]))
    models = base / "models"
    commands = {"sd3": sd3(base, solver_file(base, "sd3"))}
    commands |= {
        name: command(base, solver_file(base, name), MODELS[name].options, *guided(name)) for name in ("sd15", "flux")
    }
    if not (base / "models" / MODELS["flux"].options[1]).exists():
        del commands["flux"]
    commands |= {
        "dry": command(base, base / "dry.safetensors", MODELS["sd3"].options, "--dry-run"),
        "sd2": command(base, base / "sd2" / "fitted.safetensors", sd2),
        "refused": [str(python_of(CHECKOUT)), str(refused), *sd3(base, base / "wrong.safetensors")[2:]],
        "apart": in_comfyui("rows_apart.py", models),
        "freed": in_comfyui("freed_encoders.py", models / MODELS["sd15"].options[1]),
    }
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, arguments) for name, arguments in commands.items()}


@pytest.fixture(scope="module")
def server(base) -> Iterator[Server]:
    server = Server(CHECKOUT, base, free_port())
    server.start()
    yield server
    server.stop()


def write_random(path: Path, family: str, tokens: int, dim: int, pooled: int) -> None:
    generator = torch.Generator().manual_seed(0)
    conds = [{"context": torch.randn(1, tokens, dim, generator=generator)} for _ in range(5)]
    for cond in conds:
        if pooled:
            cond["pooled_output"] = torch.randn(1, pooled, generator=generator)
    write_conditioning(path, conds, [str(i) for i in range(5)], family)


def in_comfyui(script: str, *arguments: Path) -> list[str]:
    """Returns the command of a script of tests/hosts in ComfyUI's Python."""
    return [str(python_of(CHECKOUT)), str(HOSTS / script), str(CHECKOUT), *map(str, arguments)]


def command(base: Path, output: Path, options: tuple[str, ...], *more: str) -> list[str]:
    files = [str(base / "models" / o) if "/" in o else o for o in options]
    return [
        *(str(python_of(CHECKOUT)), str(ROOT / "training" / "fit_weights.py"), "--comfyui", str(CHECKOUT), *files),
        *("--size", "64x64", "--steps", "2", "--samples", str(FITTED), "--microbatch", "4"),
        *("--teacher-steps", str(TEACHER_STEPS), "--threads", "1", "--output", str(output), *more),
    ]


def sd3(base: Path, output: Path, *more: str) -> list[str]:
    return command(base, output, MODELS["sd3"].options, "--microbatch", "2", *guided("sd3"), *more)


def guided(name: str) -> list[str]:
    return ["--guidance", *map(str, MODELS[name].guidance)]


def solver_file(base: Path, name: str) -> Path:
    """Where the node finds it."""
    return base / "models" / "solver_weights" / f"{name}.safetensors"


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=600)


def ran_well(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def served(base: Path, fitted: Fitted, seed: int, prompt: str, solver: str) -> Prompt:
    """The teacher and the solver on one start, in the server's own nodes."""
    noise = VPNoise.from_sigmas(sd_sigmas()) if fitted.kind == "vp" else FlowNoise(16)  # 4x4 patches of 2x2
    levels = noise.teacher_grid(TEACHER_STEPS)
    if fitted.family == "SD15":
        models = {"1": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15_whole.ckpt")}
        clip = ["1", 1]
    else:
        files = [Path(o).name for o in fitted.options if "/" in o]
        kind = "sd3" if fitted.family == "SD3" else "stable_diffusion"  # a lone CLIP-L
        models = {"1": node("UNETLoader", unet_name=files[0], weight_dtype="default")}
        models["clip"] = node("CLIPLoader", clip_name=files[1], type=kind)
        clip = ["clip", 0]
    positive, guidance = ["2", 0], float(fitted.guidance[seed % len(fitted.guidance)])
    nodes = {
        **models,
        "2": node("CLIPTextEncode", clip=clip, text=prompt),
        "3": node("CLIPTextEncode", clip=clip, text=""),
        "4": node(fitted.latent, width=64, height=64, batch_size=1),
        "5": node("RandomNoise", noise_seed=seed),
        "heun": node("KSamplerSelect", sampler_name="heun"),
        "levels": node("TinySigmas", sigmas=", ".join(repr(v) for v in levels.tolist())),
        "learned": node("LearnedSolver", model=["1", 0], solver=solver, steps=2, denoise=1.0, latent=["4", 0]),
    }
    if fitted.family == "Flux":
        nodes["embed"] = node("FluxGuidance", conditioning=positive, guidance=guidance)
        positive, guidance = ["embed", 0], 1.0
    nodes["guider"] = node("CFGGuider", model=["1", 0], positive=positive, negative=["3", 0], cfg=guidance)
    for name, sampler, sigmas in (("heun", ["heun", 0], ["levels", 0]), ("ours", ["learned", 0], ["learned", 1])):
        nodes[f"{name}run"] = node(
            "SamplerCustomAdvanced", noise=["5", 0], guider=["guider", 0], sampler=sampler, sigmas=sigmas,
            latent_image=["4", 0],
        )  # fmt: skip
        nodes[f"{name}save"] = node("SaveLatent", samples=[f"{name}run", 0], filename_prefix=f"latents/{name}")
    return nodes


@pytest.mark.parametrize("name", MODELS)
def test_a_fitted_file_has_the_card_error_in_the_server_and_beats_its_start(base, started, server, name):
    fitted = MODELS[name]
    if name not in started:
        pytest.skip("this core fixes FLUX's width at 4096, the width of T5-XXL: its 9.5 GB are not made here")
    told, output = ran_well(started[name].result()), solver_file(base, name)
    assert "At most" in told and "One call takes" in told and f"{fitted.family} ({fitted.kind})" in told
    card = load_solver(output).card
    guidance = {"sd15": "CFG 2", "sd3": "CFG 1, 2, 3", "flux": "embedded guidance 2, 4, CFG 1"}[name]
    passes = {"sd15": "of two passes each (CFG),", "sd3": "of two passes each (CFG), one where it is 1,", "flux": ""}
    usually = {"sd15": "euler, normal, 20", "sd3": "euler, simple, 32", "flux": "euler, simple, 20"}[name]
    assert f"64x64, {guidance} (usually sampled with {usually} steps): dyweight" in told
    assert passes[name] in told and (name != "flux" or "passes" not in told)
    assert (card.architecture, str(card.guidance), card.resolution) == (fitted.family, guidance, "64x64")
    step = card.steps[2]
    assert (step.teacher, step.teacher_steps, step.loss) == ("heun", TEACHER_STEPS, "l2")
    assert step.error_after < step.error_before and step.network_calls > 0
    prompts, squares = PROMPTS.read_text(encoding="utf-8").splitlines(), []
    for sample in range(FITTED, FITTED + JUDGED):
        history = server.submit(served(base, fitted, sample, prompts[sample], f"{name}.safetensors"))
        assert history["status"]["status_str"] == "success", history
        teacher, ours = (saved_latent(server, history, prefix) for prefix in ("heun", "ours"))
        squares.append((ours - teacher).double().square().mean())
    error = fitted.scale * float(torch.stack(squares).mean().sqrt())
    assert error == pytest.approx(step.error_after, rel=0.01)


def test_sd2_with_v_prediction_is_fitted_from_encoded_prompts(base, started):
    told = ran_well(started["sd2"].result())
    step = load_solver(base / "sd2" / "fitted.safetensors").card.steps[2]
    assert "SD20 (vp)" in told and step.error_after < step.error_before


@pytest.fixture(scope="module")
def whole(base, started) -> Path:
    """The solver file of an uninterrupted run."""
    ran_well(started["sd3"].result())
    return solver_file(base, "sd3")


def test_the_command_writes_a_solver_a_report_and_a_picture(base, whole):
    assert load_solver(whole).table(2, FlowNoise()).nfe == 2
    report = whole.with_suffix(".md").read_text()
    assert "| 2 |" in report and "sd3.png" in report and "Peak memory" in report
    assert "Guidance of the samples: CFG 1, 2, 3." in report
    with Image.open(whole.with_suffix(".png")) as picture:
        assert len(picture.convert("L").getcolors(256) or []) > 20
    assert not whole.with_suffix(".fit").exists()
    before = whole.read_bytes()
    again = run(sd3(base, whole))
    assert again.returncode == 1 and "exists already: choose another --output, or add --overwrite" in again.stderr
    assert whole.read_bytes() == before


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(base, started):
    told = ran_well(started["dry"].result())
    assert "At most" in told and "One call takes" in told and "GB resident" in told
    assert "64x64, CFG 3, 4.5, 6 (usually" in told  # what is usual for SD3, a third less and a third more
    assert not list(base.glob("dry*"))


def begun(folder: Path) -> bool:
    """Whether a fit's journal knows of a start that was tried."""
    for journal in folder.glob("*/journal.safetensors"):
        with safe_open(journal, framework="pt") as file:
            return any("start" in key for key in file.keys())  # noqa: SIM118 - not a dict
    return False


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_an_interrupted_fit_goes_on_and_ends_with_the_same_file(base, whole, name):
    output = base / f"{name}.safetensors"
    process = subprocess.Popen(
        sd3(base, output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    deadline = time.time() + 600
    while not begun(output.with_suffix(".fit")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    os.kill(process.pid, getattr(signal, name))
    _, told = process.communicate()
    assert not output.exists()
    if name == "SIGINT":
        assert process.returncode == 130 and "run the same command again to resume" in told
    assert "going on with the fit" in ran_well(run(sd3(base, output)))
    # Byte for byte, but for the day on which each fit began: midnight may be between them.
    days = [load_solver(file).card.date.encode() for file in (whole, output)]
    assert output.read_bytes() == whole.read_bytes().replace(*days)


def test_two_processes_through_comfyui_find_what_one_finds(base, whole):
    output = base / "both.safetensors"
    python, *rest = sd3(base, output)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    ran_well(run([python, *launch, *rest]))
    one, both = load_solver(whole).parameters[2], load_solver(output).parameters[2]
    torch.testing.assert_close(dict(both), dict(one), rtol=0, atol=1e-6)


REFUSED = """
import sys
sys.path.append({training!r})
import _as_package
from learned_solvers.training.fit_weights import main

for wrong in {wrong!r}:
    try:
        main([*sys.argv[1:], *wrong])
    except SystemExit as stopped:
        print(f"exit {{stopped.code}}", file=sys.stderr)
"""
WRONG: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "prompts": (lambda base: ["--conditioning", f"{base}/other.safetensors"], "name another file with --conditioning"),
    "size": (lambda base: ["--size", "60x64"], "--size must be multiples of 8 for SD3, got 60x64: 64x64"),
    "kind": (
        lambda base: ["--dry-run", "--clip", f"{base}/models/vae/tiny_taesd.safetensors"],
        r"cannot load .*/tiny_taesd\.safetensors \(.*\): name the model's text encoders with --clip",
    ),
    "text encoder": (
        lambda base: ["--dry-run", "--diffusion-model", f"{base}/models/diffusion_models/tiny_sd3.safetensors"],
        r"first call .*: do the text encoders .*/tiny_clip_l\.pth belong to it\? Name its own with --clip",
    ),
    "vae": (
        lambda base: ["--dry-run", "--vae", f"{base}/models/vae/tiny_taesd.safetensors"],
        r"cannot load .*/tiny_taesd\.safetensors .*latents of 4 channels, those of SD3 have 16.*name the model's VAE",
    ),
    "model": (
        lambda base: ["--dry-run", "--diffusion-model", f"{base}/models/vae/tiny_taesd.safetensors"],
        r"cannot load .*/tiny_taesd\.safetensors .*: name a diffusion model with --diffusion-model",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_or_size_is_refused_with_its_name_and_the_remedy(started, name):
    *told, rest = started["refused"].result().stderr.split("exit 1\n")
    assert len(told) == len(WRONG) and not rest, told
    assert re.search(WRONG[name][1], told[list(WRONG).index(name)])


def test_freed_text_encoders_are_held_by_nothing(started):
    assert float(ran_well(started["freed"].result()).split()[-1]) > 200  # MB; 123 M parameters


@pytest.mark.parametrize(("name", "usual"), [("sd3", ["3.0", "4.5", "6.0"]), ("flux", ["3.5"])])
def test_rows_of_one_call_have_the_guidance_that_comfyui_gives_each_alone(base, started, name, usual):
    told = [line.split() for line in ran_well(started["apart"].result()).splitlines()]
    if not (base / "models" / "diffusion_models" / f"tiny_{name}.safetensors").exists():
        pytest.skip("this core fixes FLUX's width: a tiny one cannot be made")
    errors = [float(word) for line in told if line[:1] == [name] for word in line[1:]]
    assert len(errors) == 6 and max(errors) < 2e-6, errors
    assert ["default", name, *usual] in told
