"""What the documents say: their commands and Python run, their links within the repository lead somewhere.

The two commands for a fresh machine are run whole by .ci/readme; here each of their parts is held to what exists.
"""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from types import ModuleType

import pytest
import torch
from learned_solvers.samplers import FlowNoise, Grid
from learned_solvers.training import compare, fit_weights
from oracles import GaussianVE, sd_sigmas
from repository import PROJECT, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("*.md", "solver_weights/*.md", "web/docs/*.md", "docs/**/*.md", "benchmarks/**/*.md", "tests/**/*.md")
DOCUMENTS = sorted(path for pattern in FOLDERS for path in ROOT.glob(pattern))
parse_args = ArgumentParser.parse_args
SCRIPTS: dict[str, ModuleType] = {"training/fit_weights.py": fit_weights, "training/compare.py": compare}


def blocks(language: str) -> list[str]:
    """Returns the README's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Returns the words of every command in the README's sh blocks, and in its running text."""
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(part, comments=True) for line in lines for part in re.split(r"\s&&\s", line)]
    return [words for words in found if words]


def names(command: list[str]) -> str:
    return " ".join(command)[:70]


# Commands


def test_the_readme_has_its_commands():
    assert len(blocks("sh")) >= 5 and len(blocks("python")) == 3
    assert {word for words in commands() for word in words} >= {"--demo", "--checkpoint", "--diffusion-model", "pytest"}


@pytest.mark.parametrize("command", commands(), ids=names)
def test_every_command_is_one_that_exists(command, monkeypatch):
    """A command of a kind that no branch here knows fails: add the branch that checks it."""
    match command:
        case (
            ["python3" | "python3.11", "-m", "venv", ".venv"] | [".", ".venv/bin/activate"] | ["python", "-m", "pytest"]
        ):
            pass
        case ["cd", "ComfyUI/custom_nodes/learned-solvers"]:
            assert PROJECT["project"]["name"] == "learned-solvers"
        case ["pip", "install", *what]:
            check_requirements([word for word in what if not word.startswith("-")])
        case ["python", script, *options]:
            monkeypatch.setattr(ArgumentParser, "parse_args", lambda *own: pytest.fail(f"parsed {parse_args(*own)}"))
            with pytest.raises(pytest.fail.Exception, match="parsed"):
                SCRIPTS[script].main(options)
        case _:
            pytest.fail(f"no test knows this command: {command}")


def check_requirements(requirements: list[str]) -> None:
    """What is installed is what CI installs, and extras are those of pyproject.toml."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for requirement in requirements:
        if extra := re.fullmatch(r"\.\[(\w+)\]", requirement):
            assert extra[1] in PROJECT["project"]["optional-dependencies"]
        elif requirement != ".":
            assert f" {requirement}" in ci


def test_every_option_that_the_text_names_exists(capsys):
    for module in SCRIPTS.values():
        with pytest.raises(SystemExit):
            module.main(["--help"])
    named, helps = set(re.findall(r"`(--[a-z-]+)", README)), capsys.readouterr().out
    assert named and {option for option in named if not re.search(rf"{option}\b", helps)} <= {"--index-url"}


@pytest.mark.parametrize("script", [*SCRIPTS, "training/import_weights.py"])
@pytest.mark.slow
def test_a_script_runs_as_the_readme_runs_it(script):
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {Path(script).name}")


# Python


@pytest.mark.slow
def test_the_python_from_the_readme_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text(blocks("python")[0], encoding="utf-8")
    values = runpy.run_path("block.py")
    assert values["pictures"].shape == (64, 1, 8, 8) and bool(values["pictures"].isfinite().all())
    assert values["table"].nfe == 5
    report = values["result"].report[5]
    assert report.error_after < report.peers[0].error  # "beside the classical solvers": better here


def test_the_second_block_samples_in_k_diffusions_way():
    model_sigmas = sd_sigmas()
    x = 14.6 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(float(model_sigmas[-1]), 0, 7)
    values = {"model": GaussianVE(), "x": x, "sigmas": sigmas, "extra_args": {}, "model_sigmas": model_sigmas}
    exec(compile(blocks("python")[1], "README.md", "exec"), values)
    exact = GaussianVE().path(x, float(model_sigmas[-1]), 0.03)
    assert float((values["x"] - exact).square().mean().sqrt()) < 0.1  # of pictures that deviate by 0.5


def test_the_third_block_makes_a_solver_with_knots():
    weights = torch.eye(6).double() * torch.tensor([0.9, 1.0, 1.1])[:, None, None]
    values = {"grid": Grid("flow_shift", {"shift": 1.0}), "weights": weights, "t_scale": torch.ones(3, 6)}
    exec(compile(blocks("python")[2], "README.md", "exec"), values)
    solver, noise = values["solver"], FlowNoise()
    assert float(solver.table(6, noise, 16).coeffs[0, 0]) == pytest.approx(-1.1 / 6)
    assert float(solver.table(6, noise).coeffs[0, 0]) == pytest.approx(-1 / 6)


# Links


def links(text: str) -> list[str]:
    """Returns the targets of a document's links and pictures, those of its reference links included."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"\]\(([^)\s]+)\)", prose)
    return inline + re.findall(r"^\[[^\]]+\]: (\S+)$", prose, re.MULTILINE) + re.findall(r"<(https?://[^>]+)>", prose)


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_link_within_the_repository_is_dead(document):
    text = document.read_text(encoding="utf-8")
    for link in links(text):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"no heading for {link}"


# All that the documents lead out to, so that a new or a misspelt one is noticed. That they answer is checked nowhere:
# tests open no connection.
EXTERNAL = {
    "https://arxiv.org/abs/2505.21114",
    "https://arxiv.org/abs/2603.11607",
    "https://github.com/AUTOMATIC1111/stable-diffusion-webui",
    "https://github.com/crowsonkb/k-diffusion",
    "https://github.com/learned-solvers/learned-solvers/commits/main",
    "https://github.com/learned-solvers/learned-solvers/security/advisories/new",
    "https://github.com/lllyasviel/stable-diffusion-webui-forge",
    "https://keepachangelog.com/en/1.1.0/",
    "https://semver.org/spec/v2.0.0.html",
}


def test_every_link_that_leads_out_is_on_the_list():
    found = {link for path in DOCUMENTS for link in links(path.read_text(encoding="utf-8")) if "://" in link}
    assert found == EXTERNAL
    assert not [link for link in found if not link.startswith("https://")]


def test_links_and_anchors_are_found():
    text = "# A b: *c*\n[x](y.md#z)\n```sh\n# no heading [a](b)\n```\n`[c](d)` <https://e.f>\n[g]: h"
    assert links(text) == ["y.md#z", "h", "https://e.f"]
    assert anchors(text) == {"a-b-c"}
