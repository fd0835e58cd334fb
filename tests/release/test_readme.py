"""Commands and Python of the README run; links of all documents lead somewhere.

.ci/readme runs the two commands for a fresh machine as a whole; here their parts are checked against what exists.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from argparse import ArgumentParser
from types import ModuleType

import pytest
import torch
from learned_solvers.samplers.families import FAMILIES
from learned_solvers.training import compare, fit_weights
from oracles import GaussianVE, sd_sigmas
from repository import PROJECT, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("*.md", "solver_weights/*.md", "web/docs/*.md", "docs/**/*.md", "benchmarks/**/*.md", "tests/**/*.md")
DOCUMENTS = sorted(path for pattern in FOLDERS for path in ROOT.glob(pattern))
SCRIPTS: dict[str, ModuleType] = {"training/fit_weights.py": fit_weights, "training/compare.py": compare}
parse_args = ArgumentParser.parse_args


def blocks(language: str) -> list[str]:
    """The README's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The words of every command in the README's sh blocks."""
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(part, comments=True) for line in lines for part in re.split(r"\s&&\s", line)]
    return [command for command in words if command]


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command)[:70])
def test_every_command_exists(command, monkeypatch):
    """A command that no branch here knows fails: add a branch that checks it."""

    def parse(*arguments: object) -> None:
        parse_args(*arguments)
        sys.exit("parsed")

    match command:
        case ["python3" | "python3.11", "-m", "venv", ".venv"] | [".", ".venv/bin/activate"]:
            pass
        case ["python", "-m", "pytest", *options]:
            assert set(options) <= {"-n", "2", "--dist", "loadgroup"}
        case ["cd", "ComfyUI/custom_nodes/learned-solvers"]:
            assert PROJECT["project"]["name"] == "learned-solvers"
        case ["pip", "install", *words]:
            for requirement in (word for word in words if not word.startswith("-")):
                if extra := re.fullmatch(r"\.\[(\w+)\]", requirement):
                    assert extra[1] in PROJECT["project"]["optional-dependencies"]
                elif requirement != ".":  # the version that CI installs
                    assert f" {requirement}" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
        case ["python", script, *options]:
            monkeypatch.setattr(ArgumentParser, "parse_args", parse)
            with pytest.raises(SystemExit, match="parsed"):
                SCRIPTS[script].main(options)
        case _:
            pytest.fail(f"no test knows this command: {command}")


def test_every_option_in_the_text_exists(capsys):
    for module in SCRIPTS.values():
        with pytest.raises(SystemExit):
            module.main(["--help"])
    options, helps = set(re.findall(r"`(--[a-z-]+)", README)), capsys.readouterr().out
    assert options and {option for option in options if not re.search(rf"{option}\b", helps)} <= {"--index-url"}
    assert {word for words in commands() for word in words} >= {"--demo", "--checkpoint", "--diffusion-model", "pytest"}


def test_the_first_block_fits_and_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text(blocks("python")[0].replace("64", "16").replace("(3, 5)", "(5,)"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = runpy.run_path("block.py")
    assert values["images"].shape == (16, 1, 8, 8) and bool(values["images"].isfinite().all())
    report = values["result"].report[5]
    assert values["table"].nfe == 5 and report.error_after < report.peers[0].error


def test_the_second_block_samples_with_k_diffusions_interface():
    model_sigmas = sd_sigmas()
    x = 14.6 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(float(model_sigmas[-1]), 0, 7)
    values = {"model": GaussianVE(), "x": x, "sigmas": sigmas, "extra_args": {}, "model_sigmas": model_sigmas}
    exec(compile(blocks("python")[1], "README.md", "exec"), values)
    exact = GaussianVE().path(x, float(model_sigmas[-1]), 0.03)
    assert float((values["x"] - exact).square().mean().sqrt()) < 0.1  # of pictures that deviate by 0.5


def links(text: str) -> list[str]:
    """The targets of a document's links and pictures, reference links included."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"\]\(([^)\s]+)\)", prose)
    return inline + re.findall(r"^\[[^\]]+\]: (\S+)$", prose, re.MULTILINE) + re.findall(r"<(https?://[^>]+)>", prose)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


EXTERNAL = (  # so that a new or misspelt link is noticed; tests open no connection
    *(family.paper for family in FAMILIES.values()),
    PROJECT["project"]["urls"]["Repository"] + "/",
    "https://github.com/AUTOMATIC1111/stable-diffusion-webui",
    "https://github.com/Haoming02/sd-webui-forge-classic/tree/neo",
    "https://github.com/crowsonkb/k-diffusion",
    "https://github.com/lllyasviel/stable-diffusion-webui-forge",
    "https://keepachangelog.com/en/1.1.0/",
    "https://semver.org/spec/v2.0.0.html",
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_link_is_dead(document):
    for link in links(document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if "://" in link:
            assert link.startswith(EXTERNAL), f"{link} is not on the list"
        else:
            assert target.exists(), f"{link} leads nowhere"
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"no heading for {link}"
