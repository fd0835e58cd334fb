"""A real Forge with its UI and API for the tests, on its own folders: nothing is written into a checkout."""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from host_server import HOSTS, ROOT, HostServer, find_checkouts, find_python
from safetensors.torch import load, save_file
from torch import Tensor

TINY = HOSTS / "tiny_forge"


@dataclass(frozen=True)
class Host:
    """Forge or Forge Neo: where it is, the environment variables that say so, its options, its models."""

    title: str
    variable: str
    python_variable: str
    default: str
    options: tuple[str, ...]
    models: tuple[str, ...]

    def checkout(self) -> Path | None:
        """The checkout to test, if there is one that can run."""
        found = find_checkouts(self.variable, (self.default,), "modules_forge")
        return next((checkout for checkout in found if self.python_of(checkout)), None)

    def python_of(self, checkout: Path) -> Path | None:
        return find_python(self.python_variable, checkout / "venv", checkout.parent / "venv")

    @property
    def missing(self) -> str:
        """Why the tests are skipped."""
        return (
            f"no {self.title}: set {self.variable} to a checkout of it with a venv in it or next to it, or set "
            f"{self.python_variable} to the python that runs it"
        )


_MODELS = ("eps", "refiner", "v", "flux", "picture")
FORGES = {
    "forge": Host(
        "Forge",
        "FORGE_PATH",
        "FORGE_PYTHON",
        "forge/webui",
        ("--always-cpu", "--no-download-sd-model"),
        (*_MODELS, "edm"),
    ),
    "forge_neo": Host(
        "Forge Neo",
        "FORGE_NEO_PATH",
        "FORGE_NEO_PYTHON",
        "forge-neo/webui",
        ("--cpu",),
        (*_MODELS, "sdxl", "klein", "zimage", "qwen", "wan", "wan-low"),
    ),
}
CLASHES = {"a-clash": ("samplers", "training"), "zz-clash": ("nodes", "webui_extension")}
"""Extensions loaded before and after Learned Solvers; some of their packages have the same names."""
SETTINGS = {"sd_model_checkpoint": "eps.safetensors", "randn_source": "CPU", "forge_preset": "sd"}
SETTINGS |= dict.fromkeys(("live_previews_enable", "samples_save", "grid_save", "upcast_attn"), False)
# Forge restores an overridden setting only if it is set here.
SETTINGS |= {"hires_fix_show_sampler": True, "sd_noise_schedule": "Default", "img2img_fix_steps": False}
SETTINGS |= {"refiner_use_steps": False}  # Forge Neo's
SETTINGS |= {"learned_solvers_file": "auto", "learned_solvers_nearest": False}
FIELDS = {"prompt": "a cat", "seed": 1, "width": 64, "height": 64, "cfg_scale": 3.0, "sampler_name": "DyWeight"}


@dataclass
class ForgeServer(HostServer):
    """A running Forge; `run` runs a job through its API."""

    ready_path = "/probe"  # extensions' routes are the last to be added
    host: Host = FORGES["forge"]

    @property
    def title(self) -> str:
        return self.host.title

    @property
    def is_neo(self) -> bool:
        return self.host is FORGES["forge_neo"]

    @property
    def solvers(self) -> Path:
        return self.base / "data" / "models" / "solver_weights"

    def command(self) -> list[str]:
        data = self.base / "data"
        command = [str(self.host.python_of(self.checkout)), str(TINY / "start.py"), str(self.base / "webui")]
        command += ["--data-dir", str(data), "--port", str(self.port), "--api", *self.host.options, "--skip-install"]
        command += ["--skip-torch-cuda-test", "--skip-version-check", "--no-prompt-history"]
        command += ["--gradio-allowed-path", str(self.base / "webui")]
        return [*command, "--ui-settings-file", f"{data}/config.json", "--ui-config-file", f"{data}/ui-config.json"]

    def environment(self) -> dict[str, str]:
        folders = {"HF_HOME": f"{self.base}/data/hf", "GRADIO_TEMP_DIR": f"{self.base}/data/gradio"}
        switches = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return {**folders, **switches, "OMP_NUM_THREADS": "2"}

    def run(
        self, tab: str, *, model: str = "eps", file: str | None = None, nearest: bool = False, **fields: Any
    ) -> Job:
        """Runs a job through /sdapi/v1; a refusal is in the job, not raised.

        `file` and `nearest` are the accordion's inputs; without them the job does not mention it. `fields` are those of
        the API, in addition to FIELDS.
        """
        settings = {"sd_model_checkpoint": f"{model}.safetensors", **fields.pop("override_settings", {})}
        if file or nearest:
            fields["alwayson_scripts"] = {"Learned Solvers": {"args": [file or "as in Settings", nearest]}}
        self.request("/probe/reset", {})
        try:
            answer = self.request(f"/sdapi/v1/{tab}", {**FIELDS, **fields, "override_settings": settings})
        except urllib.error.HTTPError as error:
            return Job(json.loads(error.read())["message"], {}, [], [])
        decoded = load(self.request("/probe/decoded"))
        latents = [decoded[str(i)] for i in range(len(decoded))]
        return Job("", self.get("/probe"), json.loads(json.loads(answer)["info"])["infotexts"], latents)


@dataclass
class Job:
    """The results of a job: the error shown to the user, the probe's record, infotexts, decoded latents."""

    error: str
    seen: dict[str, Any]
    infotexts: list[str]
    latents: list[Tensor]

    @property
    def calls(self) -> list[dict[str, Any]]:
        """One entry per sampling step: Forge may pass both prompts in one call or in two."""
        return self.seen["calls"]

    @property
    def info(self) -> dict[str, str]:
        """The first infotext's last line as Forge writes it, "key: value, ..."."""
        pairs = re.findall(r'\s*([^:,]+):\s*("(?:\\.|[^"])+"|[^,]*)(?:,|$)', self.infotexts[0].splitlines()[-1])
        return {key.strip(): value.strip().strip('"') for key, value in pairs}


def make_base(host: Host, checkout: Path, base: Path) -> None:
    """Fills a folder with Forge, models, the test extensions, and this checkout as an extension.

    Forge finds its root by the real path of its modules and serves no linked files: only large folders are linked.
    """
    webui, extensions, models = base / "webui", base / "data/extensions", base / "data/models/Stable-diffusion"
    for folder in (webui / "extensions-builtin", webui / "repositories/stable-diffusion-webui-assets"):
        folder.mkdir(parents=True)
    for entry in checkout.iterdir():
        if entry.name in ("backend", "packages_3rdparty", "embeddings"):  # large, and not served to the browser
            (webui / entry.name).symlink_to(entry)
        elif entry.name not in (".git", "venv", "models", "repositories", "extensions", "extensions-builtin"):
            copy = shutil.copytree if entry.is_dir() else shutil.copy
            copy(entry, webui / entry.name)
    for entry in (checkout / "repositories").glob("*"):  # Forge Neo has none
        if not (webui / "repositories" / entry.name).exists():
            (webui / "repositories" / entry.name).symlink_to(entry)
    for extension, packages in CLASHES.items():
        files = {f"{package}/__init__.py": f"OWNER = {extension!r}\n" for package in packages}
        for name, text in {**files, "scripts/clash.py": f"import {', '.join(packages)}\n"}.items():
            (extensions / extension / name).parent.mkdir(parents=True)
            (extensions / extension / name).write_text(text)
    (extensions / "probe").symlink_to(TINY / "probe")
    (extensions / "learned-solvers").symlink_to(ROOT, target_is_directory=True)
    models.mkdir(parents=True)
    (base / "data" / "tmp").mkdir()  # Forge Neo's launch.py makes it
    for i, name in enumerate(host.models):
        save_file({"weight": torch.tensor([float(i)])}, models / f"{name}.safetensors")
    (base / "data" / "config.json").write_text(json.dumps(SETTINGS))
