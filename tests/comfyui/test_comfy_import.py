"""What the pack costs a ComfyUI that merely starts."""

from __future__ import annotations

import json
import subprocess

import pytest
from comfy_host import HOSTS, python_of

pytestmark = pytest.mark.comfy


def test_importing_the_pack_loads_no_package_and_touches_no_file_and_no_network(server):
    pack = server.base / "custom_nodes" / "learned-solvers"
    command = [str(python_of(server.checkout)), str(HOSTS / "import_pack.py"), str(server.checkout), str(pack)]
    ran = subprocess.run(command, cwd=server.checkout, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr[-2000:]
    seen = json.loads(ran.stdout.splitlines()[-1])
    assert seen["nodes"] > 0
    assert seen["written"] == [] and seen["read"] == [] and seen["network"] == []
    folders = [pack, pack / "nodes", pack / "samplers", *(pack / "samplers").iterdir()]
    assert {*seen["listed"]} <= {str(folder) for folder in folders}  # where Python looks
    assert seen["foreign"] == []  # the host has all that it needs
    # A server that only samples never needs what fits a solver.
    assert seen["own"] and {name.split(".")[1] for name in seen["own"]} == {"nodes", "samplers"}
