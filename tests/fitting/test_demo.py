"""The demo: a fit for the bundled model, its report and its picture."""

from __future__ import annotations

import pytest
from learned_solvers.training.command.demo import GUIDANCE, run_demo
from PIL import Image


@pytest.mark.slow
def test_the_demo_writes_a_solver_a_table_and_a_picture(tmp_path):
    said = []
    result = run_demo(tmp_path, log=said.append)
    told = (tmp_path / "demo.md").read_text()
    assert "on 64 held-out starts" in told and "*Before* is what each fit started from (3 calls: " in told
    for steps, report in result.report.items():
        assert f"| {steps} |" in told and f"{steps} calls: {report.start}" in told
        assert report.error_after < report.peers[0].error
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 600 and len(picture.convert("L").getcolors(256) or []) > 20
    with pytest.raises(FileExistsError, match="choose another --output, or add --overwrite"):
        run_demo(tmp_path)
    assert GUIDANCE == 3.0
