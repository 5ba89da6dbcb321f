"""Draw the README's picture: robust accuracy against the share of weights that is kept.

    python docs/pictures/accuracy_against_size.py

The figures are those of docs/results/cifar10.md, seed 0: PGD-20 on 10,000 test points, with
Wilson's 95 % interval.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from robust_plugin.recipes.pages.colors import color_of, style_of
from robust_plugin.stats import wilson_interval

HERE = Path(__file__).parent
DATA = HERE.parent / "results/data"
FILES = ("cifar10-one-seed.json", "cifar10.json")  # 10 and 5 %; 1 %
ROWS = {  # row of the table: name in the picture
    "LWM uniform": "magnitude, uniform rates",
    "LWM at LAMP": "magnitude, LAMP rates",
    "iterative magnitude": "magnitude in rounds, LAMP rates",
    "HYDRA at LAMP": "HYDRA, LAMP rates",
    "HARP held": "HARP",
}
POINTS = 10_000


def measured() -> dict[str, dict[float, float]]:
    """Return PGD-20 accuracy by row and share kept, of seed 0; the dense network keeps 1.0."""
    found: dict[str, dict[float, float]] = {}
    for name in FILES:
        for cell in json.loads((DATA / name).read_text())["cells"]:
            found.setdefault(cell["row"], {})[cell["density"]] = cell["accuracy"]["PGD-20"][0]
    return found


def draw(path: Path) -> None:
    """Draw the picture and write it to an SVG file."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "readme", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        found = measured()
        dense = 100 * found["dense"][1.0]
        axes.axhline(dense, color=color_of("dense"), lw=1.2, label=f"dense network: {dense:.1f} %")
        for row, name in ROWS.items():
            kept = sorted(found[row])
            values = [found[row][share] for share in kept]
            ends = [wilson_interval(round(value * POINTS), POINTS) for value in values]
            below = [100 * (value - low) for value, (low, _) in zip(values, ends, strict=True)]
            above = [100 * (high - value) for value, (_, high) in zip(values, ends, strict=True)]
            line, marker = style_of(row)
            axes.errorbar(
                [100 * share for share in kept],
                [100 * value for value in values],
                [below, above],
                color=color_of(row),
                ls=line,
                marker=marker,
                ms=5,
                capsize=2,
                label=name,
            )
        axes.set_xscale("log")
        axes.set_xticks([1, 5, 10], ["1", "5", "10"])
        axes.minorticks_off()
        axes.set(xlabel="weights kept, %", ylabel="robust accuracy, %", ylim=(0, 55))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "accuracy_against_size.svg")
