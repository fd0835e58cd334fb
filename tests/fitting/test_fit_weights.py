"""The command without a host: its refusals, its bound on network calls, and its output files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fits import FLOW, NOISES, starts
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_solvers.samplers import Solver, euler, heun, sample_table
from learned_solvers.samplers.loop import Denoiser
from learned_solvers.training import (
    EFFORTS,
    FitJob,
    FitSettings,
    GradientDescent,
    LevenbergMarquardt,
    Teacher,
    fit_weights,
    most_calls,
)
from learned_solvers.training.command.options import PROMPTS, FitCommand, parse_fit
from learned_solvers.training.data.samples import CountedDenoiser, Samples
from learned_solvers.training.fit import fit
from learned_solvers.training.models.conditioning import read_conditioning, write_conditioning
from learned_solvers.training.models.host import find_comfy
from learned_solvers.training.store.output import Output
from oracles import curved, ds_solver
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

MODEL = ["--checkpoint", "absent.safetensors"]


@pytest.fixture
def comfy(tmp_path) -> Path:
    """A folder that passes for ComfyUI's, next to a model file that nothing can load."""
    (tmp_path / "host" / "comfy").mkdir(parents=True)
    (tmp_path / "host" / "comfy" / "sd.py").touch()
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path / "host"


def refusal(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        fit_weights.main([str(argument) for argument in arguments])
    message = capsys.readouterr().err
    assert stopped.value.code == (2 if message.startswith("usage:") else 1)
    return message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "512"], "must be WIDTHxHEIGHT in pixels, such as 512x512, got '512'"),
        (["--steps", "0"], "must be a whole number from 1 to 9999999, got '0'"),
        ([*MODEL, "--steps", "4", "101"], "steps must be between 1 and 100, got [4, 101]"),
        (["--comfyui", "/nowhere"], "specify one model: --checkpoint FILE, or --diffusion-model FILE"),
        (["--checkpoint", "a", "--diffusion-model", "b"], "specify one model"),
        ([*MODEL, "--steps", "4", "4"], "--steps contains duplicate values: 4 4"),
        ([*MODEL, "--guidance", "5", "5"], "--guidance contains duplicate values"),
        ([*MODEL, "--guidance", "-1"], "must be a finite number of at least 0, got '-1'"),
        (["--demo", "--steps", "4", "6", "8"], "--demo fits one step count, got 4 6 8"),
        (["--demo", "--effort", "default"], "--demo cannot be combined with --effort"),  # a default, but not its own
        (["--demo", "--samples", "3", "--seed", "1"], "--demo cannot be combined with --samples, --seed"),
        ([*MODEL, "--seed", "-1"], "must be a whole number below 2^64, got '-1'"),
        ([*MODEL, "--seed", str(2**64)], f"must be a whole number below 2^64, got '{2**64}'"),
        ([*MODEL, "--teacher-steps", "1"], "a teacher needs at least 2 steps, got 1"),
        ([*MODEL, "--comfyui", "/nowhere"], "ComfyUI not found in /nowhere: specify its folder with --comfyui"),
    ],
)
def test_wrong_arguments_are_refused(capsys, arguments, message):
    assert message in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("absent.ckpt", "absent.ckpt does not exist: pass a model file"),
        ("host", "host is a folder: pass a model file"),
        ("host/comfy/sd.safetensors", "sd.safetensors is not a readable safetensors file"),
        ("model.safetensors", f"needs not_installed_here, which {sys.executable} does not have: run this with"),
    ],
)
def test_an_unusable_model_or_python_is_refused(capsys, comfy, monkeypatch, file, message):
    (comfy / "comfy" / "sd.safetensors").touch()
    (comfy / "comfy" / "options.py").write_text("import not_installed_here")
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        paths = "--comfyui", comfy, "--output", comfy / "new"
        assert message in refusal(capsys, "--checkpoint", comfy.parent / file, *paths)
    finally:
        sys.modules.pop("comfy", None)


def test_without_comfyui_the_message_names_where_it_was_expected(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(find_comfy.__module__ + ".__file__", str(tmp_path / "1/2/3/4/comfy.py"))
    assert f"ComfyUI not found in COMFYUI_PATH or in {tmp_path}" in refusal(capsys, *MODEL)


def test_an_error_of_the_model_keeps_its_traceback(capsys, comfy, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("of the model")

    monkeypatch.setattr(fit_weights, "fit_model", fail)
    with pytest.raises(RuntimeError, match="of the model"):
        fit_weights.main([*MODEL, "--comfyui", str(comfy), "--output", str(comfy / "new")])
    assert "progress is saved" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pkl", b"\x80\x04.", "with python training/import_weights"),
        ("x.pt", b"PK", "x.pt --output FOLDER"),
        ("x.safetensors", b"\x08\0\0\0\0\0\0\0no json ", "x.safetensors: not a safetensors file"),
        ("dyweight_sd15", None, "dyweight_sd15 has options"),
        ("absent.safetensors", None, "cannot start from '"),
    ],
)
def test_an_unusable_start_is_refused_before_anything_is_loaded(capsys, monkeypatch, tmp_path, name, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    # Neither the host nor the model exists: loading them would give another message.
    assert message in refusal(capsys, *MODEL, "--comfyui", "/nowhere", "--initial", name)


@pytest.mark.parametrize("suffix", [".safetensors", ".md", ".png"])
def test_no_output_file_is_overwritten_by_default(capsys, comfy, tmp_path, suffix):
    existing = tmp_path / f"mine{suffix}"
    existing.write_text("mine")
    message = refusal(capsys, *MODEL, "--comfyui", comfy, "--output", tmp_path / "mine")
    assert f"{existing} already exists: choose another --output, or add --overwrite" in message
    assert existing.read_text() == "mine"


def test_an_output_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    output = Output(tmp_path / "file" / "a.safetensors", "one")
    with pytest.raises(OSError, match=r"cannot be written .*: choose another --output"), output.claimed(0):
        pass
    with pytest.raises(OSError, match="MB free, but the fit writes up to"), Output(tmp_path / "b", "").claimed(2**62):
        pass
    with pytest.raises(ValueError, match="is not valid UTF-8: choose another --output"):
        Output(tmp_path / "a\udce9.safetensors", "").check()
    (tmp_path / "c.md").mkdir()
    with pytest.raises(IsADirectoryError, match=r"c\.md is a folder: choose another --output"):
        Output(tmp_path / "c.safetensors", "", overwrite=True).check()
    (tmp_path / "d.safetensors").touch()
    with pytest.raises(FileExistsError, match="or move it away and run again, which delivers this fit"):
        Output(tmp_path / "d.safetensors", "one").deliver(ds_solver(5), "report")


def solver_of(output: Output) -> Solver:
    solver = ds_solver(5)
    return replace(solver, card=replace(solver.card, fit_id=output.fit_id))


def test_a_killed_delivery_is_finished_only_by_the_same_fit(tmp_path):
    output = Output(tmp_path / "a.safetensors", "one")
    work = output.folder / "0123456789abcdef"
    with output.claimed(0):
        work.mkdir()
        output.deliver(solver_of(output), "report")  # killed here
    assert not output.is_finished()
    for other in (Output(output.solver, "another"), Output(output.solver, "")):
        with pytest.raises(FileExistsError):
            other.check()
        assert not other.is_finished()
    with output.claimed(0):
        output.check()
        output.deliver(solver_of(output), "report")
        output.add_picture(Image.new("RGB", (8, 8)))
        output.clear()
    assert output.is_finished()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.md", "a.png", "a.safetensors"]
    assert output.report.read_text() == "# a\n\nreport\n\n<!-- fit one -->\n\n![the same starts](a.png)\n"
    output.solver.unlink()  # a fit may replace its own report and picture, no other's
    output.check()
    with pytest.raises(FileExistsError, match=r"a\.md already exists"):
        Output(output.solver, "another").check()


def test_a_delivery_keeps_foreign_files_in_the_folder_and_removes_an_overwritten_picture(tmp_path):
    output = Output(tmp_path / "run.safetensors", "one", overwrite=True)
    output.picture.touch()
    with output.claimed(0):
        (output.folder / "mine").mkdir()
        (output.folder / "mine" / "data.txt").write_text("dear")
        (output.folder / "0123456789abcdef").mkdir()
        (output.folder / "prompts-0123456789abcdef.work").touch()
        output.deliver(solver_of(output), "report")
        output.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.fit", "run.md", "run.safetensors"]
    kept = [path.relative_to(output.folder).as_posix() for path in output.folder.rglob("*")]
    assert kept == ["mine", "mine/data.txt"]


def test_the_reported_command_has_the_options_that_change_the_result_in_a_fixed_order(comfy):
    unreported = ["--comfyui", str(comfy), "--steps", "6", "--dry-run", "--overwrite"]
    options = ["--size", "64x32", "--prompts", "my prompts.txt", "--guidance", "2", "1", "--comfyui-args", "--novram"]
    command = parse_fit("", [*options, *unreported, *MODEL, "--output", "./y"])
    words = "--checkpoint absent.safetensors --comfyui-args --novram --prompts 'my prompts.txt' --size 64x32"
    words += " --guidance 2.0 1.0 --output ./y"
    assert isinstance(command, FitCommand)
    assert command.text == f"`python training/fit_weights.py {words}`"
    assert command.count == 24 + 4
    same, other = (parse_fit("", [*options, *MODEL, "--output", "./x", *more]) for more in ([], ["--seed", "1"]))
    assert same.output.fit_id == command.output.fit_id != other.output.fit_id


def guided(x: Tensor, sigma: Tensor, guidance: float = 1.0) -> Tensor:
    return curved(x, sigma) * (1 + 0.02 * guidance)


def job_of(samples: int, held_out: int, kind: str = "flow", size: int = 6, **options) -> FitJob:
    x = starts(kind, samples + held_out, size, torch.float32)
    options |= {"guidance_argument": "guidance"} if options.get("guidance") else {}
    return FitJob(FitSettings(held_out=held_out, **options), Samples(x, {}, len(x)), NOISES[kind], {})


@pytest.mark.parametrize(
    ("family", "kind", "samples", "options"),
    [
        ("dyweight", "flow", 30, {}),
        ("dyweight", "vp", 12, {"effort": "quick", "history": 2}),
        ("dyweight", "vp", 9, {"teacher": Teacher("heun", 8), "guidance": (1.0, 3.0, 7.0)}),
        ("dyweight", "flow", 14, {"size": 3000}),
        ("ds", "vp", 11, {"history": 4, "loss": "l1"}),
        ("ds", "flow", 20, {"effort": "thorough", "loss": "trajectory"}),
        ("dyweight", "flow", 7, {"initial": "ipndm 2, shift 1", "optimizer": LevenbergMarquardt(first=3, batch=2)}),
        ("dyweight", "flow", 8, {"optimizer": GradientDescent(batch=4, epochs=2)}),
    ],
)
def test_a_fit_makes_little_fewer_calls_than_it_said(family, kind, samples, options):
    job = job_of(samples, 2, kind, family=family, steps=(2, 4), **options)
    model = CountedDenoiser(guided, torch.float32)
    result, most = fit(job, model, lambda line: None), most_calls(job)
    if "guidance" not in options:  # the report has the middle knot
        reported = result.teacher_calls + sum(report.network_calls for report in result.report.values())
        # A backward pass counts as two calls.
        assert reported == model.calls or (model.calls < reported <= most and "optimizer" in options)
    assert most / 2.5 < model.calls <= most


class Today:
    """A sampler as a teacher, Euler's in 5 steps, that counts its own network calls."""

    calls = 0

    def __call__(self, model: Denoiser, x: Tensor, extra_args: Mapping[str, object]) -> Tensor:
        self.calls += 5 * len(x)
        return sample_table(model, x, euler(FLOW.teacher_grid(5)), extra_args, disable=True)


@settings(max_examples=16, derandomize=True, deadline=None, database=None)
@given(
    kind=st.sampled_from([*NOISES]),
    family=st.sampled_from(["dyweight", "ds"]),
    samples=st.integers(1, 12),
    held_out=st.integers(1, 5),
    size=st.sampled_from([6, 3000]),
    steps=st.sets(st.integers(2, 4), min_size=1, max_size=2),
    history=st.sampled_from([None, 1, 5]),
    effort=st.sampled_from([*EFFORTS]),
    guidance=st.sampled_from([(), (3.0,), (1.0, 3.0), (1.0, 3.0, 7.0)]),
    teacher=st.sampled_from(["ode", "heun", "table", "function"]),
)
def test_a_fit_never_makes_more_calls_than_it_said(kind, samples, held_out, steps, teacher, **options):
    sampler = Today()
    teacher = {"table": heun(NOISES[kind].teacher_grid(5)), "function": sampler}.get(teacher, teacher)
    job = job_of(samples, held_out, kind, steps=tuple(steps), teacher=teacher, teacher_steps=7, **options)
    model = CountedDenoiser(guided, torch.float32)
    fit(job, model, lambda line: None)
    assert model.calls - sampler.calls <= most_calls(job)


def test_encoded_prompts_of_another_model_are_refused(tmp_path):
    conds = [{"context": torch.zeros(1, 3, 4)}, {"context": torch.ones(1, 3, 4)}]
    file = tmp_path / "prompts.safetensors"
    write_conditioning(file, conds, ["ugly", "a cat"], "SD15")
    torch.testing.assert_close(read_conditioning(file, "SD15"), conds, rtol=0, atol=0)
    with pytest.raises(ValueError, match="encoded for SD15, but this model is SD3: pass another"):
        read_conditioning(file, "SD3")
    with pytest.raises(ValueError, match="with the negative prompt 'ugly', but --negative is ''"):
        read_conditioning(file, "SD15", "")
    file.write_text("nothing")
    with pytest.raises(ValueError, match="not a conditioning file"):
        read_conditioning(file, "SD15")


def test_the_bundled_prompts_are_many_and_varied():
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) >= 190
    assert len({line.partition(",")[0] for line in lines[:86]}) >= 70  # the prompts of a fit of 64 samples
