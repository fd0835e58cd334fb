"""Commands and Python of the documents run; their links lead somewhere.

.ci/readme runs the two commands for a fresh machine as a whole; here their parts are checked against what exists.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from argparse import ArgumentParser

import pytest
import torch
from learned_solvers.samplers.families import FAMILIES
from learned_solvers.training import compare, fit_weights
from oracles import GaussianVE, sd_sigmas
from repository import PROJECT, ROOT

from benchmarks import __main__ as benchmarks

FOLDERS = ("*.md", "solver_weights/*.md", "web/docs/*.md", "docs/**/*.md", "benchmarks/**/*.md", "tests/**/*.md")
DOCUMENTS = sorted(path for pattern in FOLDERS for path in ROOT.glob(pattern))
SCRIPTS = {"training/fit_weights.py": fit_weights.main, "training/compare.py": compare.main}
SCRIPTS |= {"benchmarks": benchmarks.main}
REPOSITORY = PROJECT["project"]["urls"]["Repository"]
parse_args = ArgumentParser.parse_args


def blocks(language: str, *documents: str) -> list[str]:
    """The blocks of code in a language, of all documents without `documents`."""
    texts = (path.read_text(encoding="utf-8") for path in [ROOT / name for name in documents] or DOCUMENTS)
    return [block for text in texts for block in re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)]


def commands(*documents: str) -> list[list[str]]:
    """The words of every command in sh blocks."""
    lines = [line for block in blocks("sh", *documents) for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(part, comments=True) for line in lines for part in re.split(r"\s&&\s", line)]
    return [command for command in words if command]


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command)[:70])
def test_every_command_exists(command, monkeypatch):
    """A command that no branch here knows fails: add a branch that checks it."""

    def parse(*arguments: object) -> None:
        parse_args(*arguments)
        sys.exit("parsed")

    monkeypatch.setattr(ArgumentParser, "parse_args", parse)
    match command:
        case ["python3" | "python3.11", "-m", "venv", ".venv"] | [".", ".venv/bin/activate"]:
            pass
        case ["git", "clone", address]:
            assert address == REPOSITORY
        case ["cd", "ComfyUI/custom_nodes"]:
            pass
        case ["cd", folder]:
            assert folder == "ComfyUI/custom_nodes/" + REPOSITORY.rpartition("/")[2]
        case ["python", "-m", "pytest", *options]:
            folders = set(options) - {"-n", "2", "--dist", "loadgroup"}
            assert all((ROOT / folder).is_dir() for folder in folders)
        case ["pip", "install", *words]:
            for requirement in (word for word in words if not word.startswith("-")):
                if extras := re.fullmatch(r"\.\[([\w,]+)\]", requirement):
                    assert {*extras[1].split(",")} <= PROJECT["project"]["optional-dependencies"].keys()
                elif requirement != ".":  # the version that CI installs
                    assert f" {requirement}" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
        case ["python", "docs/fit_diffusers.py" as script, *_]:  # tests/integrations runs it
            assert (ROOT / script).is_file()
        case ["python", "-m", script, *options] | ["python", script, *options]:
            with pytest.raises(SystemExit, match="parsed"):
                SCRIPTS[script](options)
        case [script]:
            assert (ROOT / script).is_file()
        case _:
            pytest.fail(f"no test knows this command: {command}")


def test_every_option_in_the_text_exists(capsys):
    for main in SCRIPTS.values():
        with pytest.raises(SystemExit):
            main(["--help"])
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/fit.md"))
    options, helps = set(re.findall(r"`(?:[^`\n]* )?(--[a-z-]+)", text)), capsys.readouterr().out
    assert options and {o for o in options if not re.search(rf"{o}\b", helps)} <= {"--nproc-per-node", "--lowvram"}
    words = {word for words in commands("README.md", "docs/fit.md") for word in words}
    assert words >= {"--demo", "--checkpoint", "--diffusion-model"}


def test_the_first_block_fits_and_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = blocks("python", "docs/python.md")[0]
    (tmp_path / "block.py").write_text(block.replace("64", "16").replace("(3, 5)", "(5,)"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = runpy.run_path("block.py")
    assert values["images"].shape == (16, 1, 8, 8) and bool(values["images"].isfinite().all())
    report = values["result"].report[5]
    assert values["table"].nfe == 5 and report.error_after < report.peers[0].error


def test_the_second_block_samples_with_k_diffusions_interface(tmp_path):
    model_sigmas = sd_sigmas()
    x = 14.6 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(float(model_sigmas[-1]), 0, 7)
    values = {"model": GaussianVE(), "x": x, "sigmas": sigmas, "extra_args": {}, "model_sigmas": model_sigmas}
    (tmp_path / "block.py").write_text(blocks("python", "docs/python.md")[1])
    values = runpy.run_path(str(tmp_path / "block.py"), values)
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
    REPOSITORY + "/",
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
