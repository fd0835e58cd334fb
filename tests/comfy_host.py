"""A real ComfyUI server for the tests, on a base folder of its own: nothing is written into the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from host_process import answers, end

HOSTS = Path(__file__).resolve().parent / "hosts"
ROOT = HOSTS.parent.parent
VARIABLE = "COMFYUI_PATH"
WANTED = (
    f"set {VARIABLE} to a ComfyUI checkout (several: separated by '{os.pathsep}') with a venv in it, or set "
    "COMFYUI_PYTHON to the python that runs it"
)
COMFY_MODULES = {  # what a server can import that is no package
    *("comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview"),
    *("node_helpers", "nodes", "server", "aiohttp"),
}


def checkouts() -> list[Path]:
    """Returns the ComfyUI checkouts named by COMFYUI_PATH, else those found in the home folder."""
    named = os.environ.get(VARIABLE)
    places = named.split(os.pathsep) if named else [Path.home() / "ComfyUI", Path.home() / "ComfyUI-0.3"]
    if named and not all((Path(place) / "main.py").is_file() for place in places):
        raise FileNotFoundError(f"{VARIABLE} names {named}, which is no ComfyUI: name a checkout, or unset it")
    return [Path(p) for p in places if (Path(p) / "main.py").is_file() and python_of(Path(p))]


def python_of(checkout: Path) -> Path | None:
    """Returns the python that runs a checkout: COMFYUI_PYTHON, or that of a venv inside."""
    candidates = [checkout / "venv/bin/python", checkout / ".venv/bin/python"]
    if os.environ.get("COMFYUI_PYTHON"):
        candidates.insert(0, Path(os.environ["COMFYUI_PYTHON"]))
    return next((p for p in candidates if p.exists()), None)


@dataclass
class Server:
    """A running server; `submit` queues a prompt and waits for its history."""

    checkout: Path
    base: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    client: str = field(default_factory=lambda: uuid.uuid4().hex)
    memo: dict[Any, Any] = field(default_factory=dict)  # what tests need more than once

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.base / "server.log").read_text(errors="replace")

    def start(self) -> None:
        command = [str(python_of(self.checkout)), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--disable-auto-launch", "--disable-api-nodes"]
        command += ["--preview-method", "latent2rgb", "--database-url", "sqlite:///:memory:"]
        environment = {**os.environ, "LEARNED_SOLVERS_FIGURES": str(HOSTS.parent / "data"), "OMP_NUM_THREADS": "1"}
        with (self.base / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.checkout, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )
        if answers(self.process, lambda: self.get("/system_stats")):
            return
        self.stop()
        raise RuntimeError(f"ComfyUI did not start:\n{self.log[-3000:]}")

    def stop(self) -> None:
        end(self.process, patience=30)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, content: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            return {"refused": json.loads(error.read())}
        return json.loads(body) if body else None

    def submit(self, prompt: dict[str, Any], timeout: float = 300) -> dict[str, Any]:
        """Returns the history entry of a prompt, or {"refused": ...} where validation refused it."""
        answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client})
        if "refused" in answer:
            return answer
        key = answer["prompt_id"]
        deadline = time.time() + timeout
        while time.time() < deadline:
            history = self.get(f"/history/{key}")
            if key in history and history[key]["status"]["status_str"] in ("success", "error"):
                return history[key]
            time.sleep(0.05)
        raise TimeoutError(f"{key} did not finish:\n{self.log[-3000:]}")


def error_of(history: dict[str, Any]) -> str:
    """Returns the message of the exception that ended a prompt."""
    return next(m[1]["exception_message"] for m in history["status"]["messages"] if m[0] == "execution_error")


def succeeded(history: dict[str, Any]) -> dict[str, Any]:
    """Returns the history of a prompt that ran to its end."""
    assert "refused" not in history, history
    assert history["status"]["status_str"] == "success", error_of(history)
    return history


def make_base(checkout: Path, base: Path) -> None:
    """Fills a base folder: tiny models, the test pack, and this checkout under a hyphenated name."""
    (base / "custom_nodes").mkdir(parents=True)
    shutil.copytree(HOSTS / "tiny_pack", base / "custom_nodes" / "tiny-pack")
    shutil.copy(HOSTS / "scene.py", base / "custom_nodes" / "tiny-pack")
    (base / "custom_nodes" / "learned-solvers").symlink_to(ROOT, target_is_directory=True)
    command = [str(python_of(checkout)), str(HOSTS / "make_models.py"), str(checkout), str(base / "models")]
    made = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"the tiny models could not be made:\n{made.stderr[-3000:]}")


if __name__ == "__main__":  # python tests/comfy_host.py CHECKOUT BASE: a server to look at by hand
    folder = Path(sys.argv[2])
    if not folder.exists():
        make_base(Path(sys.argv[1]), folder)
    server = Server(Path(sys.argv[1]), folder, 8188)
    server.start()
    print(server.url, "- press Enter to stop")
    input()
    server.stop()
