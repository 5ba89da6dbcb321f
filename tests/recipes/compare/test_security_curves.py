"""The security curves of a comparison: those of its runs, at the smallest density."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from comparisons import BASE, comparison
from sample_pages import security_curve
from scipy.stats import t

from robust_plugin.recipes.compare.comparison import compare
from robust_plugin.recipes.compare.security_curves import mean_line, shown_curves, stored_curves
from robust_plugin.recipes.data.train_val_test import Data


def test_the_line_is_the_mean_over_seeds_with_its_t_interval() -> None:
    one, two = security_curve(55, 50, 30, 12, 9, 3), security_curve(53, 50, 24, 12, 3, 0)
    assert mean_line([one]) == one.line
    means = [(54, 1), (50, 0), (27, 3), (12, 0), (6, 3)]  # and half the difference
    for (mean, low, high), (middle, half) in zip(mean_line([one, two]), means, strict=True):
        # the standard error of two values is half their difference
        reach = float(t.ppf(0.975, 1)) * half / 60
        assert mean == pytest.approx(middle / 60)
        assert (low, high) == pytest.approx((mean - reach, mean + reach))


def test_the_section_names_the_density_the_intervals_and_the_seed_that_looks_wrong() -> None:
    good, bad = security_curve(55, 50, 30, 12, 9, 0), security_curve(55, 50, 30, 12, 9, 6)
    shown = shown_curves({"dense": [good, good], "HARP": [good, bad]}, 0.05)
    assert shown is not None and shown.caption.startswith("5 % kept, mean over the seeds. ")
    assert "95 % t intervals over the seeds" in shown.caption
    assert shown.findings == (bad.finding("HARP, 2. seed"),)
    single = shown_curves({"HARP": [bad]}, 0.05)
    assert single is not None and single.findings == (bad.finding("HARP"),)
    assert single.caption.startswith("5 % kept. ") and " t intervals" not in single.caption
    assert shown_curves({}, 0.05) is None


def test_a_comparison_shows_the_curves_of_its_runs_at_the_smallest_density(
    tmp_path: Path, use: Callable[[Data], None], planted: Callable[..., Data]
) -> None:
    use(planted())
    rows = {"LWM": {"recipe": "magnitude"}, "HYDRA": {"recipe": "hydra"}}
    base = {**BASE, "evaluation": {**BASE["evaluation"], "curve": 16}}
    compare(comparison(base=base, rows=rows, densities=[0.1, 0.3]), tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())["security_curves"]
    assert list(content) == ["dense", "LWM", "HYDRA"]
    for row, line in content.items():
        folder = tmp_path / "seed0" / row / ("" if row == "dense" else "0.1/lr0.05")
        (curve,) = stored_curves({row: [folder]})[row]
        assert len(curve.curve.distances) == 16 and line == [list(each) for each in curve.line]
        clean = json.loads((folder / "report.json").read_text())["report"]["flags"]["clean"]
        assert line[0][0] == clean[:16].count("1") / 16
    html = (tmp_path / "report.html").read_text()
    section = html.partition("<h2>Robust accuracy against the radius</h2>")[2].partition("<h2>")[0]
    assert section.count("<svg") == 1 and "10 % kept. " in section
    assert all(f">{row}</text>" in section for row in content)
    # a report of an older version has no curve, and a method with such a report no line
    report = tmp_path / "seed0" / "LWM" / "0.1" / "lr0.05" / "report.json"
    old = json.loads(report.read_text())
    del old["security_curve"]
    report.write_text(json.dumps(old))
    assert stored_curves({"LWM": [report.parent]}) == {}
