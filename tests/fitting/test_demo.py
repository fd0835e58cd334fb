"""The demo, with a small teacher and one step count: its solver file, report and picture."""

from __future__ import annotations

import pytest
from learned_solvers.samplers import load_solver
from learned_solvers.training import Teacher
from learned_solvers.training.command import demo
from learned_solvers.training.fit_weights import main
from PIL import Image


def test_the_demo_writes_a_solver_a_report_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "STEPS", (3,))
    monkeypatch.setattr(demo, "TEACHER", Teacher("heun", 8))
    main(["--demo", "--output", str(tmp_path)])
    solver, report = load_solver(tmp_path / "dyweight_digits.safetensors"), (tmp_path / "demo.md").read_text()
    step = solver.card.steps[3]
    assert step.error_after < step.error_best_peer and str(solver.card.guidance) == "CFG 3"
    assert f"**{step.error_after:.4f}**" in report and "on 64 held-out samples" in report
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 600 and len(picture.convert("L").getcolors(256) or []) > 20
    with pytest.raises(SystemExit):
        main(["--demo", "--output", str(tmp_path)])
    assert "already exists: choose another --output, or add --overwrite" in capsys.readouterr().err
