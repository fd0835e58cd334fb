"""A headless Chromium for the tests of the hosts' own pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSER = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync")


@contextmanager
def running_browser() -> Iterator[Any]:
    """Yields a running browser; skips if it is not installed."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[test]'")
    if BROWSER is None:
        pytest.skip("no Chromium: apt-get install chromium, or set CHROMIUM_PATH")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield running
        running.close()


def keep_shot(page: Any, path: Path) -> None:
    """Writes a screenshot, and a copy into the folder LEARNED_SOLVERS_SHOTS if that is set."""
    page.screenshot(path=path)
    if shots := os.environ.get("LEARNED_SOLVERS_SHOTS"):
        shutil.copy(path, Path(shots) / path.name)
