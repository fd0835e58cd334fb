"""A real Forge with its UI and API for the tests, on folders of its own: nothing is written into a checkout.

Forge finds its root by the real path of its modules and serves no linked files, so all but large folders are copied.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from host_process import answers, end, free_port
from PIL import Image
from safetensors.torch import load, save_file
from torch import Tensor

HOSTS = Path(__file__).resolve().parents[1] / "hosts"
ROOT = HOSTS.parent.parent
TINY = HOSTS / "tiny_forge"
VARIABLE = "FORGE_PATH"
WANTED = (
    f"set {VARIABLE} to a checkout of Stable Diffusion WebUI Forge with a venv in it or beside it, or set FORGE_PYTHON "
    "to the python that runs it"
)
MODELS = ("eps", "refiner", "v", "flux", "edm", "picture")
EXTENSIONS = ("probe", "clash-a", "clash-z")
SETTINGS = {
    "sd_model_checkpoint": "eps.safetensors",
    "randn_source": "CPU",
    "live_previews_enable": False,
    "samples_save": False,
    "grid_save": False,
    "forge_preset": "sd",
    "hires_fix_show_sampler": True,
    "sd_noise_schedule": "Default",  # what a job overrides is restored only where it is set
    "upcast_attn": False,
}


def checkout() -> Path | None:
    """Returns the Forge checkout that FORGE_PATH names, else the one in the home folder, else None."""
    named = os.environ.get(VARIABLE)
    place = Path(named) if named else Path.home() / "forge" / "webui"
    if named and not (place / "modules_forge").is_dir():
        raise FileNotFoundError(f"{VARIABLE} names {named}, which is no Forge: name a checkout, or unset it")
    return place if (place / "modules_forge").is_dir() and python_of(place) else None


def python_of(place: Path) -> Path | None:
    """Returns the python that runs a checkout: FORGE_PYTHON, or that of a venv inside or beside it."""
    named = [Path(os.environ["FORGE_PYTHON"])] if os.environ.get("FORGE_PYTHON") else []
    venvs = [folder / "venv/bin/python" for folder in (place, place.parent)]
    return next((p for p in [*named, *venvs] if p.exists()), None)


@dataclass
class Server:
    """A running Forge; `txt2img` and `img2img` run jobs through its API."""

    python: Path
    base: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.base / "server.log").read_text(errors="replace")

    def start(self) -> None:
        data = self.base / "data"
        command = [str(self.python), str(TINY / "start.py"), str(self.base / "webui"), "--data-dir", str(data)]
        command += ["--always-cpu", "--skip-torch-cuda-test", "--skip-install", "--skip-version-check", "--api"]
        command += ["--port", str(self.port), "--no-prompt-history", "--no-download-sd-model"]
        command += ["--gradio-allowed-path", str(self.base / "webui")]
        command += ["--ui-settings-file", str(data / "config.json"), "--ui-config-file", str(data / "ui-config.json")]
        own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(data / "hf"), "GRADIO_TEMP_DIR": str(data / "gradio")}
        own |= {"GRADIO_ANALYTICS_ENABLED": "False", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "2"}
        with (self.base / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.base, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **own}
            )
        self.wait()

    def wait(self) -> None:
        """Waits until the extensions' routes answer, which are the last to be there."""
        if answers(self.process, lambda: self.get("/probe")):
            return
        self.stop()
        raise RuntimeError(f"Forge did not start:\n{self.log[-3000:]}")

    def stop(self) -> None:
        end(self.process, patience=10)

    def request(self, path: str, content: dict[str, Any] | None = None) -> bytes:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))

    def run(self, tab: str, *, model: str = "eps", **fields: Any) -> Job:
        """Runs a job through /sdapi/v1; a refusal is in the job, not raised."""
        self.request("/probe/reset", {})
        fields["override_settings"] = {"sd_model_checkpoint": f"{model}.safetensors"} | fields.get(
            "override_settings", {}
        )
        try:
            answer = json.loads(self.request(f"/sdapi/v1/{tab}", fields))
        except urllib.error.HTTPError as error:
            return Job(json.loads(error.read())["message"], {}, [], [], [])
        decoded = load(self.request("/probe/decoded"))
        latents = [decoded[str(i)] for i in range(len(decoded))]
        info = json.loads(answer["info"])
        images = [Image.open(io.BytesIO(base64.b64decode(image))) for image in answer["images"]]
        return Job("", self.get("/probe"), info["infotexts"], latents, images)


@dataclass
class Job:
    """What a job left: the error that the user sees, what the probe saw, infotexts, decoded latents, pictures."""

    error: str
    seen: dict[str, Any]
    infotexts: list[str]
    latents: list[Tensor]
    images: list[Image.Image]

    @property
    def calls(self) -> list[dict[str, Any]]:
        """One entry per sampling step: Forge may ask about both prompts in one call or in two."""
        return self.seen["calls"]

    @property
    def info(self) -> dict[str, str]:
        """Returns the first infotext's last line as Forge writes it, "key: value, ..."."""
        pairs = re.findall(r'\s*([^:,]+):\s*("(?:\\.|[^"])+"|[^,]*)(?:,|$)', self.infotexts[0].splitlines()[-1])
        return {key.strip(): value.strip().strip('"') for key, value in pairs}


def make_base(place: Path, base: Path) -> None:
    """Fills a folder with Forge, models, the test extensions, and this checkout as an extension."""
    webui, data = base / "webui", base / "data"
    webui.mkdir(parents=True)
    for entry in place.iterdir():
        if entry.name in ("backend", "packages_3rdparty", "embeddings"):  # large, and not served to the browser
            (webui / entry.name).symlink_to(entry)
        elif entry.name not in (".git", "venv", "models", "repositories", "extensions", "extensions-builtin"):
            copy = shutil.copytree if entry.is_dir() else shutil.copy
            copy(entry, webui / entry.name)
    (webui / "extensions-builtin").mkdir()
    (webui / "repositories" / "stable-diffusion-webui-assets").mkdir(parents=True)
    for entry in (place / "repositories").iterdir():
        if not (webui / "repositories" / entry.name).exists():
            (webui / "repositories" / entry.name).symlink_to(entry)
    (data / "extensions").mkdir(parents=True)
    for name in EXTENSIONS:
        (data / "extensions" / name).symlink_to(TINY / name)
    (data / "extensions" / "learned-solvers").symlink_to(ROOT, target_is_directory=True)
    (data / "models" / "Stable-diffusion").mkdir(parents=True)
    for i, name in enumerate(MODELS):
        save_file({"weight": torch.tensor([float(i)])}, data / "models" / "Stable-diffusion" / f"{name}.safetensors")
    (data / "config.json").write_text(json.dumps(SETTINGS))


def new_server(place: Path, base: Path) -> Server:
    make_base(place, base)
    python = python_of(place)
    assert python is not None
    return Server(python, base, free_port())


if __name__ == "__main__":  # python tests/webui/forge_host.py BASE: a Forge to look at by hand
    found = checkout()
    assert found is not None, WANTED
    server = new_server(found, Path(sys.argv[1]))
    server.start()
    print(server.url, "- press Enter to stop")
    input()
    server.stop()
