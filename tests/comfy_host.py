"""A real ComfyUI server for the tests, on its own base folder: nothing is written into the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from host_server import HOSTS, ROOT, HostServer, find_checkouts, find_python

NO_COMFYUI = (
    f"no ComfyUI: set COMFYUI_PATH to a checkout (several: separated by '{os.pathsep}') with a venv in it, or set "
    "COMFYUI_PYTHON to the python that runs it"
)
COMFY_MODULES = {  # what ComfyUI's server can import that is not an installed package
    *("comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview"),
    *("node_helpers", "nodes", "server", "aiohttp"),
}


def checkouts() -> list[Path]:
    """The ComfyUI checkouts that can run."""
    return [c for c in find_checkouts("COMFYUI_PATH", ("ComfyUI", "ComfyUI-0.3"), "main.py") if python_of(c)]


def python_of(checkout: Path) -> Path | None:
    return find_python("COMFYUI_PYTHON", checkout / "venv", checkout / ".venv")


EACH_CHECKOUT = [pytest.param(path, id=path.name) for path in checkouts()] or [
    pytest.param(None, id="none", marks=pytest.mark.skip(reason=NO_COMFYUI))
]


@dataclass
class Server(HostServer):
    """A running ComfyUI; `submit` queues a prompt and waits for its history."""

    client: str = field(default_factory=lambda: uuid.uuid4().hex)

    title = "ComfyUI"
    ready_path = "/system_stats"

    def command(self) -> list[str]:
        command = [str(python_of(self.checkout)), str(self.checkout / "main.py"), "--cpu", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--disable-auto-launch", "--disable-api-nodes"]
        return [*command, "--preview-method", "latent2rgb", "--database-url", "sqlite:///:memory:"]

    def environment(self) -> dict[str, str]:
        return {"LEARNED_SOLVERS_FIGURES": str(ROOT / "tests" / "data"), "OMP_NUM_THREADS": "1"}

    @property
    def solvers(self) -> Path:
        return self.base / "models" / "solver_weights"

    def post(self, path: str, content: dict[str, Any]) -> Any:
        """The decoded answer, None for an empty one, {"refused": ...} for an HTTP error."""
        try:
            body = self.request(path, content)
        except urllib.error.HTTPError as error:
            return {"refused": json.loads(error.read())}
        return json.loads(body) if body else None

    def submit(self, prompt: dict[str, Any], timeout: float = 300) -> dict[str, Any]:
        """The history entry of a prompt, or {"refused": ...} where validation refused it."""
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

    @contextmanager
    def messages(self) -> Iterator[Iterator[tuple[str, Any]]]:
        """Yields what the server sends to its page until the end of a prompt: "text", "preview", or JSON's types."""
        import websocket

        self.client = uuid.uuid4().hex  # the host closes an old socket of the same client late

        def read() -> Iterator[tuple[str, Any]]:
            kind, data = "", {}
            while kind != "executing" or data["node"] is not None:
                message = socket.recv()
                if isinstance(message, bytes):
                    kind, data = ("text", message[8:].decode()) if message[:4] == b"\0\0\0\3" else ("preview", message)
                else:
                    kind, data = itemgetter("type", "data")(json.loads(message))
                yield kind, data

        address = f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}"
        with closing(websocket.create_connection(address, timeout=60)) as socket:
            yield read()


def run_script(checkout: Path, name: str, *arguments: object) -> str:
    """What a script of tests/hosts prints in a checkout's Python, where it can import ComfyUI."""
    command = [str(python_of(checkout)), str(HOSTS / name), str(checkout), *map(str, arguments)]
    completed = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=400)
    assert completed.returncode == 0, completed.stderr[-3000:]
    return completed.stdout


def make_base(checkout: Path, base: Path) -> None:
    """Fills a base folder: tiny models, the test pack, and this checkout under a hyphenated name."""
    pack = shutil.copytree(HOSTS / "tiny_pack", base / "custom_nodes" / "tiny-pack")
    shutil.copy(HOSTS / "scene.py", pack)
    (base / "custom_nodes" / "learned-solvers").symlink_to(ROOT, target_is_directory=True)
    run_script(checkout, "make_models.py", base / "models")
