"""What the pack costs a ComfyUI that merely starts."""

from __future__ import annotations

import json
import subprocess

import pytest
from comfy_host import HOSTS, python_of

pytestmark = pytest.mark.comfy


def test_importing_the_pack_takes_no_time_no_network_and_writes_nothing(server):
    pack = server.base / "custom_nodes" / "learned-solvers"
    command = [str(python_of(server.checkout)), str(HOSTS / "import_pack.py"), str(server.checkout), str(pack)]
    seconds = []
    for _ in range(3):  # a collection of the host's garbage may fall into one of them
        ran = subprocess.run(command, cwd=server.checkout, capture_output=True, text=True, timeout=400)
        assert ran.returncode == 0, ran.stderr[-2000:]
        seen = json.loads(ran.stdout.splitlines()[-1])
        assert seen["nodes"] > 0
        assert seen["written"] == [] and seen["network"] == []
        assert seen["training"] == []  # a server that only samples never needs it
        seconds.append(seen["seconds"])
        if seen["seconds"] < 0.1:
            break
    assert min(seconds) < 0.1  # of the processor, whatever else it is doing; the server has compiled the files already
