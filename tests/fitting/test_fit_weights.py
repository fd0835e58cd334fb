"""The command without a host: what it refuses, what it reckons, and where it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from learned_solvers.samplers import FlowNoise, VPNoise
from learned_solvers.training import FitJob, FitSettings, GaussNewton, Teacher, fit_weights, most_calls
from learned_solvers.training.command.demo import demo_starts
from learned_solvers.training.command.options import PROMPTS, FitCommand, parse_fit
from learned_solvers.training.data.samples import Samples
from learned_solvers.training.fit import fit
from learned_solvers.training.fit_weights import main
from learned_solvers.training.models.conditioning import read_conditioning, write_conditioning
from learned_solvers.training.models.digits import load_digits
from learned_solvers.training.models.loading import find_comfy
from learned_solvers.training.store.output import Output
from safetensors.torch import save_file

MODEL = ["--checkpoint", "absent.safetensors"]


@pytest.fixture
def comfy(tmp_path) -> Path:
    """A folder that looks like ComfyUI's from afar, with a model file that nothing can load."""
    (tmp_path / "host" / "comfy").mkdir(parents=True)
    (tmp_path / "host" / "comfy" / "sd.py").touch()
    (tmp_path / "model.safetensors").touch()
    return tmp_path / "host"


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    assert stopped.value.code not in (0, None)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--size", "512"], "must be WIDTHxHEIGHT in pixels, such as 512x512, got '512'"),
        (["--steps", "0"], "must be a whole number from 1 to 9999999, got '0'"),
        ([*MODEL, "--steps", "4", "101"], "steps must be counts from 1 to 100, got [4, 101]"),
        (["--samples", "-3"], "must be a whole number from 1 to 9999999, got '-3'"),
        (
            ["--comfyui", "/nowhere"],
            "name one model: --checkpoint FILE, or --diffusion-model FILE with --clip and --vae",
        ),
        (["--checkpoint", "a", "--diffusion-model", "b"], "; --demo runs the bundled small one, without ComfyUI"),
        ([*MODEL, "--steps", "4", "4"], "--steps names a value twice: 4 4"),
        (["--demo", "--steps", "4", "6", "8"], "--demo cannot be combined with --steps"),  # the default of other fits
        (["--demo", "--steps", "3", "--learn-grid"], "--demo cannot be combined with --steps, --learn-grid"),
        ([*MODEL, "--seed", "-1"], "must be a whole number below 2^64, got '-1'"),
        ([*MODEL, "--guidance", "5", "5"], "--guidance names a value twice"),
        ([*MODEL, "--teacher-steps", "1"], "a teacher needs at least 2 steps, got 1"),
        (
            [*MODEL, "--comfyui", "/nowhere"],
            "no ComfyUI in /nowhere: name its folder with --comfyui, or set COMFYUI_PATH",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(capsys, arguments, told):
    assert told in refused(capsys, *arguments)


def test_a_python_without_what_comfyui_needs_is_told(tmp_path, comfy):
    (comfy / "comfy" / "cli_args.py").write_text("import not_installed_here")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    command = [
        sys.executable,
        Path(fit_weights.__file__),
        "--checkpoint",
        tmp_path / "model.safetensors",
        "--comfyui",
        comfy,
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    told = f"needs not_installed_here, which {sys.executable} does not have: run this with the Python that runs your"
    assert told in done.stderr


def test_outside_of_comfyui_the_message_says_where_it_was_looked_for(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(find_comfy.__module__ + ".__file__", str(tmp_path / "1/2/3/4/comfy.py"))
    told = refused(capsys, *MODEL)
    assert told.startswith("no ComfyUI around this folder, which is in no custom_nodes") and "--comfyui" in told


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "x.pkl",
            b"\x80\x04.",
            r"published .pt, .pkl, .json files become solver files by python training/import_weights",
        ),
        ("x.pt", b"PK", "x.pt --output FOLDER"),
        ("x.safetensors", b"\x08\0\0\0\0\0\0\0no json ", "x.safetensors: not a safetensors file"),
        (
            "dyweight_sd15",
            None,
            "dyweight_sd15 has options",
        ),
        ("ds_flow-sit", None, "ds_flow-sit is a ds solver for flow models: start a dyweight fit on flow noise"),
        ("absent.safetensors", None, "cannot start from '"),
        ("dpm++ 2m", None, "a classical solver (euler, lms, ipndm, ipndm_v, deis, dpmpp_2m"),
    ],
)
def test_what_a_fit_cannot_start_from_is_refused_before_anything_is_loaded(
    capsys, monkeypatch, tmp_path, name, content, told
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    # No host is there and no model: what would load one says so.
    assert told in refused(capsys, "--checkpoint", "absent.ckpt", "--comfyui", "/nowhere", "--initial", name)


@pytest.mark.parametrize("suffix", [".safetensors", ".md", ".png"])
def test_none_of_the_three_files_is_overwritten_unasked(capsys, comfy, tmp_path, suffix):
    taken = tmp_path / f"mine{suffix}"
    taken.write_text("mine")
    output = tmp_path / "mine.safetensors"
    told = refused(capsys, "--comfyui", comfy, "--checkpoint", tmp_path / "model.safetensors", "--output", output)
    assert f"{taken} exists already: choose another --output, or add --overwrite" in told
    assert taken.read_text() == "mine"


HOLD = """if True:
    import sys
    sys.path.append(sys.argv[1])
    import conftest
    from pathlib import Path
    from learned_solvers.training import claimed
    with claimed(Path(sys.argv[2]), 0, name="a"):
        print("held", flush=True)
        input()
"""


def test_an_output_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path):
    output = Output(tmp_path / "a.safetensors", "one")
    command = [sys.executable, "-c", HOLD, str(Path(__file__).parents[1]), str(output.folder)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline()
    with pytest.raises(OSError, match=r"another process is fitting .*a\.safetensors: wait for it"), output.claimed(0):
        pass
    other.kill()
    other.wait()
    with output.claimed(0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_found_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    output = Output(tmp_path / "file" / "a.safetensors", "one")
    with pytest.raises(OSError, match=r"cannot be written .*: choose another --output"), output.claimed(0):
        pass
    with pytest.raises(OSError, match="MB free, the fit writes up to"), Output(tmp_path / "b", "").claimed(2**62):
        pass


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_a_delivery_that_was_killed_is_finished_by_the_same_command_only(tmp_path, moved):
    output = Output(tmp_path / "a.safetensors", "one")
    with output.claimed(0):
        for file in output.files:
            (output.folder / file.name).write_text("new")
        (output.folder / "delivering").write_text("one")
        for file in output.files[:moved]:  # killed here
            (output.folder / file.name).rename(file)
    if moved:
        with pytest.raises(FileExistsError):
            Output(output.solver, "another").check()
    with output.claimed(0):
        for file in output.files:
            (output.folder / file.name).write_text("new")
        output.deliver()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.md", "a.png", "a.safetensors"]


def test_a_delivery_deletes_nothing_that_someone_else_put_into_the_folder(tmp_path):
    output = Output(tmp_path / "run.safetensors", "one")
    with output.claimed(0):
        (output.folder / "mine").mkdir()
        (output.folder / "mine" / "data.txt").write_text("dear")
        (output.folder / "0123456789abcdef").mkdir()
        (output.folder / "prompts-0123456789abcdef.safetensors").touch()
        for file in output.files:
            (output.folder / file.name).write_text("new")
        output.deliver()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.fit", "run.md", "run.png", "run.safetensors"]
    left = [path.relative_to(output.folder).as_posix() for path in output.folder.rglob("*")]
    assert left == ["mine", "mine/data.txt"]


@pytest.mark.parametrize(
    ("output", "path"),
    [
        ("mine", "host/models/solver_weights/mine.safetensors"),
        ("mine.SAFETENSORS", "host/models/solver_weights/mine.safetensors"),
        ("./mine.safetensors", "mine.safetensors"),
        ("sub/mine", "sub/mine.safetensors"),
    ],
)
def test_a_name_alone_is_comfyuis_and_a_path_is_a_place(output, path, comfy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = parse_fit("", [*MODEL, "--comfyui", str(comfy), "--output", output, "--overwrite"])
    assert isinstance(command, FitCommand) and command.output.solver.absolute() == tmp_path / path


def test_the_reported_command_has_the_options_that_change_the_result_in_one_order(comfy):
    same = ["--comfyui", str(comfy), "--steps", "4", "6", "8", "--dry-run", "--overwrite"]
    options = ["--size", "64x32", "--learn-grid", "--prompts", "my prompts.txt", "--guidance", "2", "1"]
    command = parse_fit("", [*options, *same, *MODEL])
    words = "--checkpoint absent.safetensors --prompts 'my prompts.txt' --size 64x32 --guidance 2.0 1.0 --learn-grid"
    assert isinstance(command, FitCommand)
    assert command.output.command == f"`python training/fit_weights.py {words}`"


def job_of(samples: int, held_out: int, noise=None, **settings) -> FitJob:
    x, extra_args = demo_starts(samples + held_out)
    noise = noise or FlowNoise()
    starts = Samples(x * noise.sigma_max, extra_args, len(x))
    return FitJob(FitSettings(held_out=held_out, **settings), starts, noise, {})


@pytest.mark.parametrize("family", ["dyweight", "ds"])
@pytest.mark.parametrize(
    ("samples", "more", "least"),
    [
        (6, {"history": 2}, 6),
        (6, {"history": 4}, 8),
        (11, {"history": 4}, 12),
        (11, {"initial": "ipndm 2, shift 1"}, 16),
    ],
)
def test_the_reckoned_calls_bound_the_real_ones(family, samples, more, least):
    model, calls = load_digits(), 0

    def counted(x, sigma, **extra_args):
        nonlocal calls
        calls += len(x)
        return model(x, sigma, **extra_args)

    optimizer, teacher = GaussNewton(core=6, first=3), Teacher("heun", 4)
    job = job_of(samples, 2, family=family, steps=(2, 4), optimizer=optimizer, teacher=teacher, **more)
    result, most = fit(job, counted, lambda line: None), most_calls(job)
    reported = result.teacher_calls + sum(report.network_calls for report in result.report.values())
    assert most / least < reported <= calls <= most


def test_the_reckoned_history_is_the_one_that_the_fit_takes():
    def most(samples, initial, **more):
        return most_calls(job_of(samples, 80, steps=(8,), initial=initial, **more))

    assert most(255, "scan") == most(255, "scan", history=3) < most(256, "scan") == most(256, "scan", history=6)
    assert most(256, "euler") == most(256, "euler", history=3) < most(256, "scan")


def test_reckoned_calls_grow_with_steps_and_samples():
    noise = VPNoise.stable_diffusion()
    few, more = most_calls(job_of(8, 3, noise, steps=(4,))), most_calls(job_of(16, 6, noise, steps=(4,)))
    assert few < more < most_calls(job_of(16, 6, noise, steps=(4, 6)))


def test_encoded_prompts_of_another_model_are_refused(tmp_path):
    conds = [{"context": torch.zeros(1, 3, 4)}, {"context": torch.ones(1, 3, 4)}]
    file = tmp_path / "prompts.safetensors"
    write_conditioning(file, conds, ["ugly", "a cat"], "SD15")
    read = read_conditioning(file, "SD15")
    torch.testing.assert_close(read, conds, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"encoded for SD15, this model is SD3: name another file"):
        read_conditioning(file, "SD3")
    with pytest.raises(ValueError, match=r"with the negative prompt 'ugly', --negative is '': name another file"):
        read_conditioning(file, "SD15", "")
    file.write_text("nothing")
    with pytest.raises(ValueError, match="not a conditioning file"):
        read_conditioning(file, "SD15")


def test_the_bundled_prompts_are_many_and_varied():
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) >= 190
    first = lines[:86]  # what a fit of 64 samples sees
    assert len({line.partition(",")[0] for line in first}) >= 70
    lengths = sorted(len(line.split()) for line in lines)
    assert lengths[0] <= 4 and lengths[-1] >= 30
