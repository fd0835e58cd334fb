"""What a prompt must not be able to do, and two servers that share a folder, in real ComfyUI servers."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest
from comfy_graphs import Graph, fit, node, options
from comfy_host import ROOT, Server

BUNDLED = "ds_flow-sit"


@pytest.fixture(autouse=True)
def nothing_outside(server):
    """Asserts that nothing is written outside the folder of solvers."""
    server.solvers.mkdir(parents=True, exist_ok=True)

    def outside():
        hosts = {server.base / name for name in ("output", "temp", "user", "server.log", "custom_nodes")}
        return {path for path in server.base.rglob("*") if not {path, *path.parents} & {*hosts, server.solvers}}

    before = outside()
    yield
    assert outside() == before


def get_steps(server, name):
    """The status and the answer of the route behind the steps widget."""
    try:
        return 200, server.get(f"/learned_solvers/steps?solver={urllib.parse.quote(name, errors='surrogateescape')}")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def auto(server, steps):
    """Learned Solver with `auto` on SD3, its info as `runinfo`."""
    graph = Graph.of(server, "sd3")
    graph.learn("run", "auto", steps)
    return graph


NAMES = [
    "",
    "auto",  # needs a model
    "..",
    "../x.safetensors",
    "../../models/checkpoints/tiny_sd15.safetensors",
    "/etc/passwd",
    "\n",
    "x" * 5000,
]
NAMES += ["x\0.safetensors", "..\\x.safetensors", "C:\\x.safetensors", f"{BUNDLED}.safetensors", "../solver_weights/a"]


def test_a_name_that_is_not_in_the_drop_down_is_no_solver(server):
    assert get_steps(server, BUNDLED) == (200, {"steps": [5, 6, 7, 8, 9, 10]})
    for name in NAMES:
        status, answer = get_steps(server, name)
        assert status == 404 and "no solver file named" in answer and len(answer) < 600, name
        info = node("LearnedSolverInfo", solver=name, steps=0, scheduler="simple")
        assert "refused" in server.submit({"1": info, "2": node("PreviewImage", images=["1", 0])}), name


def test_a_hostile_file_in_the_folder_is_named_once_and_hides_no_other(server):
    bomb, circle = map(server.solver, ("bomb", "circle"))
    bomb.write_bytes(b"\xff" * 7 + b"\x7f" + b"{}" * 46)
    circle.symlink_to(circle)
    server.solver("secret").symlink_to("/etc/passwd")
    latin = os.fsdecode(os.fsencode(server.solvers) + b"/caf\xe9.safetensors")
    shutil.copy(ROOT / "solver_weights" / f"{BUNDLED}.safetensors", latin)
    names = options(server, "LearnedSolver", "solver")
    assert BUNDLED in names and not any("caf" in name for name in names)
    assert get_steps(server, "caf\udce9.safetensors")[0] == 404
    for name in ("bomb", "secret"):
        status, answer = get_steps(server, f"{name}.safetensors")
        assert status == 404 and "not a safetensors file" in answer
        assert "root" not in answer.replace(str(server.base), "")
    message = f"skipped in automatic selection: {bomb}: not a safetensors file"
    for steps, count in ((5, 1), (6, 1), (7, 2)):  # named again once it has changed
        if count == 2:
            os.utime(bomb, (1, 1))
        graph = auto(server, steps)
        graph.submit()
        assert BUNDLED in graph.text("runinfo")
        assert server.log.count(message) == count
    assert "not 20: set steps to 10" in auto(server, 20).error()
    assert server.log.count(r"the name of 'caf\udce9.safetensors' in models/solver_weights is not UTF-8") == 1


OUTSIDE = ("/outside/name", "a/../../outside", "C:outside", "a\0b", "x" * 300, "é" * 120, "a\nb", "..")


@pytest.mark.parametrize(
    ("widgets", "fact"),
    [
        ({"samples": ["number", 0]}, "samples must be between 2 and 4096, got 1e+09"),
        ({"teacher_steps": ["number", 0]}, "teacher_steps must be between 2 and 1000, got 1e+09"),
        ({"cfg": float("nan")}, "cfg must be between 0 and 100, got nan"),
        *(({"file_name": name}, "file_name must be a name within models/solver_weights") for name in OUTSIDE),
    ],
)
def test_a_fit_without_end_or_outside_the_folder_is_refused(server, widgets, fact):
    graph = fit(server, "sd3", name="refused", **widgets)
    graph.add("number", "PrimitiveInt", value=10**9)
    assert fact in graph.error()


def test_a_fit_is_not_written_through_a_link_that_leads_out(server, tmp_path):
    (server.solvers / "link").symlink_to(tmp_path, target_is_directory=True)
    message = fit(server, "sd3", name="link/x").error()
    assert "is a link" in message and "models/solver_weights" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_servers_share_a_folder(server):
    small = {"samples": 2, "teacher_steps": 4}
    with Server(server.checkout, server.base) as other:
        fit(server, "sd3", name="shared", **small).submit()
        assert get_steps(other, "shared.safetensors") == (200, {"steps": [2]})
        # Both at once to one name: one is written, the other gets an error.
        with ThreadPoolExecutor(2) as pool:
            race = (fit(host, "sd3", name="race", **small, seed=seed) for seed, host in enumerate((server, other)))
            (message,) = filter(None, pool.map(Graph.outcome, race))
    assert "race.safetensors" in message and ("another process" in message or "already exists" in message)
    assert not list(server.solvers.glob("*.fit")) and not list(server.solvers.glob(".*"))
