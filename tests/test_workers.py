"""Which tests one worker has where pytest-xdist shares them out: hosts start once, not once a worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import group_of

HOSTS = ["ComfyUI", "ComfyUI-0.3"]


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/test_comfy_parts.py::test_a[ComfyUI]", "ComfyUI"),
        ("tests/test_comfy_nodes.py::test_b[ComfyUI-sd15-6]", "ComfyUI"),
        ("tests/test_comfy_nodes.py::test_b[ComfyUI-0.3-sd15-6]", "ComfyUI-0.3"),
        ("tests/test_comfy_nodes.py::test_b[ComfyUI-0.30-6]", "ComfyUI"),
        ("tests/test_comfy_fit.py::test_c[sd15]", "tests/test_comfy_fit.py"),
        ("tests/test_forge.py::test_d", "forge"),
        ("tests/test_forge_browser.py::test_e[page]", "forge"),
        ("tests/test_table.py::test_f", "tests/test_table.py"),
    ],
)
def test_tests_of_a_host_or_a_file_belong_together(nodeid, group):
    assert group_of(nodeid, HOSTS) == group


HOOK = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
sys.path.insert(0, {tests!r})
spec = spec_from_file_location("hooks", {tests!r} + "/conftest.py")
hooks = module_from_spec(spec)
spec.loader.exec_module(hooks)
pytest_xdist_make_scheduler = hooks.pytest_xdist_make_scheduler
"""
TESTS = """
import os, pytest

@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize("server", ["ComfyUI", "ComfyUI-0.3"])
def test_it(k, server):
    with open(server, "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + " ")
"""


def test_all_tests_of_a_host_run_in_one_of_two_workers(tmp_path):
    pytest.importorskip("xdist")
    for name in HOSTS:
        (tmp_path / "hosts" / name).mkdir(parents=True)
        (tmp_path / "hosts" / name / "main.py").touch()
    (tmp_path / "conftest.py").write_text(HOOK.format(tests=str(Path(__file__).parent)))
    for name in ("test_one.py", "test_two.py"):
        (tmp_path / name).write_text(TESTS)
    places = os.pathsep.join(str(tmp_path / "hosts" / name) for name in HOSTS)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "."]
    environment = {**os.environ, "COMFYUI_PATH": places, "COMFYUI_PYTHON": sys.executable}
    for name in [key for key in environment if key.startswith("PYTEST_")]:  # of the workers that run this test
        del environment[name]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0 and "20 passed" in ran.stdout, ran.stdout + ran.stderr
    workers = [set((tmp_path / name).read_text().split()) for name in HOSTS]
    assert [len(of_host) for of_host in workers] == [1, 1] and workers[0] != workers[1]
