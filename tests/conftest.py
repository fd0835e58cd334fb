"""Imports this checkout as `learned_solvers`, whatever its folder is called and whatever else is installed.

All tests of one ComfyUI checkout share one server: pytest runs them together, whatever their modules. So it does on
several workers (pytest-xdist's `-n 2`): a host's tests go to one of them.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from browser_host import running_browser
from comfy_host import WANTED, Server, checkouts, make_base
from host_process import free_port

ROOT, NAME = Path(__file__).resolve().parent.parent, "learned_solvers"
if NAME not in sys.modules:
    spec = spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    sys.modules[NAME] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
sys.path.append(str(ROOT))  # for benchmarks; behind everything, as nodes/ would shadow a host's module


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Groups tests for `pytest -n 2 --dist loadgroup`: one worker has all tests of a host, else all of a file.

    The file that takes longest comes first: at the end one of two workers would be left alone with it.
    """
    hosts = {path.name for path in checkouts()}
    for item in items:
        parameters = getattr(item, "callspec", None)
        server = set() if parameters is None else set(parameters._idlist)
        group = next(iter(server & hosts), "forge" if item.get_closest_marker("forge") else item.path.name)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path.name != "test_fit_digits.py")


def pytest_collection_finish(session):
    """Refuses a pytest with which pytest-xdist groups nothing: both workers would start every host."""
    if getattr(session.config.option, "loadgroup", False) and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError(
            "pytest-xdist does not group tests with this pytest: install the versions of pyproject.toml"
        )


torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

NONE = pytest.param(None, id="none", marks=pytest.mark.skip(reason=f"no ComfyUI: {WANTED}"))


@pytest.fixture(scope="session", params=[pytest.param(path, id=path.name) for path in checkouts()] or [NONE])
def server(request, tmp_path_factory):
    """A running ComfyUI with the tiny models, for each checkout. A test that adds files to it removes them again."""
    base = tmp_path_factory.mktemp("comfy") / "base"
    make_base(request.param, base)
    running = Server(request.param, base, free_port())
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def forge(tmp_path_factory):
    """Returns a running Forge with this checkout as an extension, one for all tests of the session."""
    from forge_host import WANTED, checkout, new_server

    if (place := checkout()) is None:
        pytest.skip(f"no Forge: {WANTED}")
    server = new_server(place, tmp_path_factory.mktemp("forge") / "base")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def browser():
    """Returns a running browser, one for all hosts' pages."""
    with running_browser() as running:
        yield running
