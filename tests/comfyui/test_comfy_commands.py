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
from comfy_graphs import MODELS as SIZES
from comfy_graphs import Graph, euler_solver
from comfy_graphs import options as choices
from comfy_host import NO_COMFYUI, ROOT, Server, checkouts, make_base, python_of, run_script
from host_server import free_port
from learned_solvers.samplers import FlowNoise, VPNoise, load_solver
from learned_solvers.training.command.options import PROMPTS
from learned_solvers.training.models.conditioning import write_conditioning
from oracles import sd_sigmas
from PIL import Image
from safetensors.torch import save_file

pytestmark = [pytest.mark.comfy, pytest.mark.slow]
CHECKOUT = next(iter(checkouts()), None)
if CHECKOUT is None:
    pytest.skip(NO_COMFYUI, allow_module_level=True)
SAMPLES, HELD_OUT, TEACHER_STEPS = 4, 2, 5
NO_TINY_FLUX = "this core fixes FLUX's width: a tiny one cannot be made"


class Fitted(NamedTuple):
    """A model with its text encoder; `scale` is that of its latents, and the fit is reported at its middle guidance."""

    files: dict[str, str]
    architecture: str
    scale: float
    guidance: tuple[int, ...]
    card_guidance: str
    lora: str = ""


CLIP = {"clip": "text_encoders/tiny_clip_l.pth"}
SD3 = {"diffusion_model": "diffusion_models/tiny_sd3_clip.safetensors", **CLIP}
TURBO = {"diffusion_model": "diffusion_models/sd3-turbo_4steps.safetensors", **CLIP}
FLUX = {"diffusion_model": "diffusion_models/tiny_flux_clip.safetensors", **CLIP}
MODELS = {
    "sd15": Fitted({"checkpoint": "checkpoints/tiny_sd15_whole.ckpt"}, "SD15", 0.18215, (2,), "CFG 2"),
    "sd3": Fitted(SD3, "SD3", 1.5305, (1, 2, 3), "CFG 1, 2, 3"),
    "sd3_lora": Fitted(SD3, "SD3", 1.5305, (2,), "CFG 2", "tiny_sd3_lora.safetensors"),
    "flux": Fitted(FLUX, "Flux", 0.3611, (2, 4), "embedded guidance 2, 4, CFG 1"),
}


def words(script: str, **options: object) -> list[str]:
    """A command of the folder training; an option has one value, several in a tuple, or True for none."""
    options = {"comfyui": CHECKOUT, "size": "64x64", "threads": 1, **options}
    command = [str(python_of(CHECKOUT)), str(ROOT / "training" / script)]
    for name, value in options.items():
        values = () if value is True else value if isinstance(value, tuple) else (value,)
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    return command


def fit_of(base: Path, files: dict[str, str], output: Path, **options: object) -> list[str]:
    """The command of a fit."""
    paths = {name: base / "models" / file for name, file in files.items()}
    settings = {"steps": 2, "samples": SAMPLES, "microbatch": 4, "teacher": "heun"}
    settings |= {"teacher_steps": TEACHER_STEPS, "output": output}
    return words("fit_weights.py", **{**paths, **settings, **options})


def usual_fit(base: Path, name: str, output: Path | None = None) -> list[str]:
    """The command of a model's fit; its default output is where the server finds it."""
    settings: dict[str, Any] = {"guidance": MODELS[name].guidance, "microbatch": 2 if name == "sd3" else 4}
    if lora := MODELS[name].lora:  # found in the server's folder
        settings |= {"lora": f"{lora}:-0.5", "comfyui_args": shlex.join(["--base-directory", str(base)])}
    return fit_of(base, MODELS[name].files, output or solver_file(base, name), **settings)


def comparison(base: Path, name: str, kind: str, folder: str, **options: object) -> list[str]:
    """The command of a comparison at 4 calls, with Euler's method as a solver file."""
    model = next((base / "models" / "diffusion_models").glob(f"tiny_{name}.*"))
    files = {"diffusion_model": model, "conditioning": base / f"{name}.safetensors", "output": base / folder}
    settings = {"steps": 4, "samples": 2, "guidance": 2, "teacher_steps": 6, "microbatch": 2, "no_plot": True}
    return words("compare.py", **files, **settings, solver=base / f"euler_{kind}.safetensors", **options)


def solver_file(base: Path, name: str) -> Path:
    return base / "models" / "solver_weights" / f"{name}.safetensors"


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=600)


def output_of(completed: subprocess.CompletedProcess[str]) -> str:
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def write_random(path: Path, architecture: str, dim: int, tokens: int = 8, pooled: int = 0) -> None:
    """Writes encoded prompts."""
    generator = torch.Generator().manual_seed(0)
    conds = [{"context": torch.randn(1, tokens, dim, generator=generator)} for _ in range(5)]
    for cond in conds if pooled else ():
        cond["pooled_output"] = torch.randn(1, pooled, generator=generator)
    write_conditioning(path, conds, [str(i) for i in range(5)], architecture)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Tiny models, encoded prompts for some of them, and Euler's method as solver files."""
    base = tmp_path_factory.mktemp("commands") / "base"
    make_base(CHECKOUT, base)
    write_random(base / "sd15.safetensors", "SD15", **SIZES["sd15"][2])
    write_random(base / "sd2.safetensors", "SD20", 1024, 77)
    write_random(base / "sd3.safetensors", "SD3", **SIZES["sd3"][2])
    write_random(base / "other.safetensors", "SD3", 32, pooled=32)
    for kind in ("flow", "vp"):
        euler_solver(kind, 4).save(base / f"euler_{kind}.safetensors")
    os.link(base / "models" / SD3["diffusion_model"], base / "models" / TURBO["diffusion_model"])
    (base / "model.gguf").write_bytes(b"GGUF\3\0\0\0")
    save_file({"blocks.0.qkv.wscales": torch.ones(1)}, base / "svdq-int4_r32.safetensors")
    return base


@pytest.fixture(scope="module")
def started(base) -> Iterator[dict[str, Future[Any]]]:
    """The independent commands, started with the first test."""
    models = base / "models"
    options = [[word.format(base) for word in wrong] for wrong, _ in WRONG.values()]
    python, _, *arguments = usual_fit(base, "sd3", base / "wrong.safetensors")
    made = [name for name, model in MODELS.items() if (models / next(iter(model.files.values()))).exists()]
    commands = {name: usual_fit(base, name) for name in made}
    sd2 = {"diffusion_model": "diffusion_models/tiny_sd21.safetensors"}
    commands |= {
        "dry": fit_of(base, SD3, base / "dry.safetensors", dry_run=True),
        "turbo": fit_of(base, TURBO, base / "turbo.safetensors", dry_run=True, teacher="ode", teacher_steps=20),
        "sd2": fit_of(base, sd2, base / "sd2" / "a", initial="euler", conditioning=base / "sd2.safetensors"),
        "alone": fit_of(base, SD3, base / "alone.safetensors", guidance=3),
        "taught": fit_of(
            base,
            SD3,
            base / "taught.safetensors",
            guidance=3,
            teacher_guidance=3,
            teacher_diffusion_model=base / "models" / SD3["diffusion_model"],
        ),
        "no picture": [python, "-c", NO_PICTURE, str(ROOT / "training"), *fit_of(base, SD3, base / "blind")[2:]],
        "refusals": [python, "-c", REFUSALS, str(ROOT / "training"), json.dumps(options), *arguments],
        "compare sd15": comparison(base, "sd15", "vp", "compare sd15", grids="karras"),
        "compare sd3": comparison(base, "sd3", "flow", "compare sd3", grids="simple"),
        "compare grids": comparison(base, "sd3", "flow", "compare grids"),
    }
    with ThreadPoolExecutor(2) as pool:
        futures: dict[str, Future[Any]] = {name: pool.submit(run, line) for name, line in commands.items()}
        futures["model"] = pool.submit(run_script, CHECKOUT, "comfy_model.py", models)
        yield futures


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
    if name not in started:
        pytest.skip(NO_TINY_FLUX)
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
    words = [*fit_of(base, TURBO, base / "turbo.safetensors", samples=2), *shlex.split(advice[1])]
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


REFUSALS = """
import json, sys
sys.path.append(sys.argv[1])
import _as_package
from learned_solvers.training.fit_weights import main

for options in json.loads(sys.argv[2]):
    try:
        main([*sys.argv[3:], *options])
    except SystemExit as stopped:
        print(f"exit {stopped.code}", file=sys.stderr)
"""
VAE, DRY = "{}/models/vae/tiny_taesd.safetensors", "--dry-run"
SD3_MODEL = "{}/models/diffusion_models/tiny_sd3.safetensors"
WRONG = {  # options, and a pattern of the message
    "prompts": (["--conditioning", "{}/other.safetensors"], "pass another file with --conditioning"),
    "size": (["--size", "60x64"], "--size must be multiples of 8 for SD3, got 60x64: use 64x64"),
    "kind": ([DRY, "--clip", VAE], r"cannot load .*/tiny_taesd\.safetensors \(.*pass the model's text encoders"),
    "text encoder": (
        [DRY, "--diffusion-model", SD3_MODEL],
        r"first call .*: if the text encoders .*/tiny_clip_l\.pth are for another model, pass the right ones",
    ),
    "vae": (
        [DRY, "--vae", VAE],
        r"latents have 4 channels, but those of SD3 have 16\): pass the model's VAE with --vae",
    ),
    "teacher": (
        [DRY, "--teacher-checkpoint", "{}/models/checkpoints/tiny_sd15_whole.ckpt"],
        "SD3 and SD15 have different latent spaces",
    ),
    "loss": ([DRY, "--loss", "features"], "this model has no VAE: pass one with --vae"),
    "absent lora": (["--lora", "style.safetensors:1"], "style.safetensors is no file, and not in .*loras"),
    "lora": (
        [DRY, "--lora", "{}/models/loras/tiny_lora.safetensors"],
        r"the LoRA .*/tiny_lora.safetensors has no weights for this model \(SD3\)",
    ),
    "lora of two": (
        [
            "--lora",
            "{}/models/loras/tiny_sd3_lora.safetensors",
            "--second-diffusion-model",
            SD3_MODEL,
            "--boundary",
            ".5",
        ],
        "with --second-diffusion-model there is no --lora",
    ),
    "gguf": (["--diffusion-model", "{}/model.gguf"], r"model\.gguf is for the custom nodes ComfyUI-GGUF, which run in"),
    "nunchaku": (
        ["--diffusion-model", "{}/svdq-int4_r32.safetensors"],
        "ComfyUI-nunchaku, which run in ComfyUI only: load it there, and fit with the node Fit Learned Solver",
    ),
    "model": (
        [DRY, "--diffusion-model", VAE],
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


@pytest.mark.parametrize(
    ("name", "usual"), [("sd3", ["1.8", "3.0", "4.5", "7.2"]), ("flux", ["1.4", "2.33", "3.5", "5.6"])]
)
def test_each_row_of_a_call_equals_comfyuis_own_result_for_it(started, name, usual):
    if name not in started:
        pytest.skip(NO_TINY_FLUX)
    lines = [line.split() for line in started["model"].result().splitlines()]
    errors = [float(word) for line in lines if line[:1] == [name] for word in line[1:]]
    assert len(errors) == 6 and max(errors) < 2e-6, errors
    assert ["default", name, *usual] in lines


def test_two_models_that_do_not_fit_together_are_each_loaded_once_per_change(started):
    line = next(line for line in started["model"].result().splitlines() if line.startswith("experts "))
    error, loads, changes = map(float, line.split()[1:])
    assert error < 1e-6 and loads == 1 + changes == 5


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_teacher_that_the_host_samples_with_equals_it_and_makes_the_calls_that_it_reports(started, name):
    if name not in started:
        pytest.skip(NO_TINY_FLUX)
    lines = [line.split() for line in started["model"].result().splitlines()]
    found = {words[2]: words[3:] for words in lines if words[:2] == ["recipe", name]}
    assert found.keys() == {"dpmpp_2m", "heun", "uni_pc", "euler_ancestral"}
    assert all(float(found[method][0]) < 2e-5 for method in ("dpmpp_2m", "heun", "uni_pc")), found
    assert [int(found[method][1]) for method in ("dpmpp_2m", "heun")] == [6, 11]
    assert all(reported == counted for _, reported, counted in (found[m] for m in ("dpmpp_2m", "heun", "uni_pc")))
    assert " ".join(found["euler_ancestral"]).startswith(
        "euler_ancestral simple draws noise, so no solver can follow it"
    )


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


RESULT = """
import sys
sys.path.append(sys.argv[1])
import _as_package
from pathlib import Path
from learned_solvers.training import compare
from learned_solvers.training.command.options import parse_fit

command = parse_fit("", ["--checkpoint", "absent.safetensors", "--output", "mine", "--overwrite", *sys.argv[2:]])
print(command.output.solver)
print(compare._solver_file(Path("mine.safetensors"), command.files))
"""


DTYPE = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
import _as_package
from learned_solvers.training.models.host import Host
from learned_solvers.training.models.loading import ModelFiles, load_parts

files = ModelFiles(diffusion_model=Path(sys.argv[3]), host=Host(Path(sys.argv[2]), tuple(sys.argv[4:])))
print(load_parts(files, text_encoders=False)[0].model.get_dtype())
"""


@pytest.mark.parametrize("options", [[], ["--bf16-unet"]])
def test_comfyuis_own_options_reach_its_loaders(base, options):
    file = base / "models" / SD3["diffusion_model"]
    output = output_of(run([str(python_of(CHECKOUT)), "-c", DTYPE, str(ROOT / "training"), CHECKOUT, file, *options]))
    assert output.split()[-1] == ("torch.bfloat16" if options else "torch.float32")


def test_dynamic_vram_is_on_where_main_py_turns_it_on_and_leaves_the_model_as_it_is(base):
    output = run_script(CHECKOUT, "dynamic_vram.py", base / "models")
    if not output:
        pytest.skip("this ComfyUI has no DynamicVRAM: set COMFYUI_PATH to a newer one")
    result = json.loads(output)
    assert [case for case, (server, command) in result["cases"].items() if server != command] == []
    assert {on for (_, on), _ in result["cases"].values()} == {True, False}
    without, with_dynamic = result["calls"]  # with one for gradients first
    assert ([call[0] for call in without], [call[0] for call in with_dynamic]) == (["init"], ["init", "devices"])
    assert (result["early"], result["device"], result["difference"]) == ([], "cpu", 0.0)


class Elsewhere(Server):
    """A server whose folders are not the program's."""

    options: tuple[str, ...] = ()

    def command(self) -> list[str]:
        return [*super().command(), *self.options]


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ([], "data/models/solver_weights"),
        (["--models-directory", "{0}/big models"], "big models/solver_weights"),
        (["--extra-model-paths-config", "{0}/paths.yaml"], "yaml"),
        (["--base-directory", "{0}/other"], "other/models/solver_weights"),
    ],
)
def test_the_command_writes_where_a_server_with_its_options_lists(tmp_path, options, folder):
    """Case 06: a program, and a data folder with models and, through a link, the pack."""
    for name in ("data", "other"):
        (tmp_path / name / "models").mkdir(parents=True)
        (tmp_path / name / "custom_nodes").mkdir()
        (tmp_path / name / "custom_nodes" / "learned-solvers").symlink_to(ROOT, target_is_directory=True)
    (tmp_path / "big models").mkdir()
    (tmp_path / "paths.yaml").write_text(
        f"mine:\n  base_path: {tmp_path}\n  is_default: true\n  solver_weights: yaml\n"
    )
    options = [word.format(tmp_path) for word in options]
    command = [str(python_of(CHECKOUT)), "-c", RESULT, str(tmp_path / "data/custom_nodes/learned-solvers/training")]
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}

    def result(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, env=environment, cwd="/")

    assert "ComfyUI not found in COMFYUI_PATH or in " in result().stderr
    path = tmp_path / folder / "mine.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    euler_solver("flow").save(path)
    # Where a fit writes, and where a comparison finds it.
    lines = output_of(result("--comfyui", CHECKOUT, "--comfyui-args", shlex.join(options))).splitlines()
    assert lines[-2:] == [str(path)] * 2
    server = Elsewhere(CHECKOUT, tmp_path / "data")
    server.options = tuple(options)
    with server:
        assert "mine.safetensors" in choices(server, "LearnedSolverKSampler", "solver")


def test_the_script_for_a_gpu_measures_small_sizes():
    command = [str(python_of(CHECKOUT)), str(ROOT / "benchmarks" / "gpu.py"), str(CHECKOUT), "--small"]
    completed = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=400)
    assert completed.returncode == 0, completed.stderr[-3000:]
    parts: dict[str, Any] = {}
    for text in re.findall(r"^\{$.*?^\}$", completed.stdout, re.MULTILINE | re.DOTALL):
        parts |= json.loads(text)
    assert set(parts["steps"]["tiny"]) >= {"dyweight, history 3", "ipndm"}
    for fit in (parts["emoji"]["eager"], parts["transformer"]):
        assert 0 < fit["part_outside_the_network"] < 1 and 100 < fit["calls"] < 2000
        assert fit["seconds"] == pytest.approx(fit["calls"] * fit["milliseconds_per_call"] / 1e3)
