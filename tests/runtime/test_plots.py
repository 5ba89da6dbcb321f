"""The plots of results: what is drawn, in which units, and on which axes."""

import builtins
import math

import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from robust_plugin import (
    Certificates,
    Report,
    SecurityCurve,
    ThreatModel,
    Verification,
    sparsity,
    wilson_interval,
)

THREAT = ThreatModel("Linf", eps=0.1)


def a_report() -> Report:
    right, wrong = (True,), (False,)
    return Report(
        tuple(i % 2 for i in range(20)),
        {"clean": right * 18 + wrong * 2, "PGD-10": right * 12 + wrong * 8},
        {"PGD-10": THREAT},
    )


def a_verification() -> Verification:
    return Verification(
        ("verified",) * 5 + ("falsified",) * 2 + ("unknown",),
        ("IBP",) * 3 + ("CROWN",) * 2 + ("PGD",) * 2 + (None,),
        torch.zeros(8),
        torch.zeros(8, 3),
        THREAT,
    )


CURVE = SecurityCurve("Linf", (0.0, 0.02, 0.02, 0.05, math.inf))
CERTIFICATES = Certificates(
    torch.tensor([1, 2, -1, 0]), torch.tensor([0.5, 0.25, 0.0, 1.0]), torch.tensor([1, 2, 3, 4])
)


def new_axes():
    return Figure().add_subplot()


def widths(axes) -> list[float]:
    return [bar.get_width() for bar in axes.patches]


def names(axes) -> list[str]:
    return [tick.get_text() for tick in axes.get_yticklabels()]


def error_bars(axes) -> list[tuple[float, float]]:
    lines = [line for bars in axes.containers if hasattr(bars, "lines") for line in bars.lines[2]]
    return [(s[0][0], s[1][0]) for line in lines for s in line.get_segments()]


def test_a_report_shows_accuracies_with_their_intervals_in_per_cent():
    report, axes = a_report(), new_axes()
    assert report.plot(axes) == (axes.get_figure(), axes)
    assert names(axes) == ["clean", "PGD-10"]
    assert widths(axes) == pytest.approx([90.0, 60.0])
    expected = [tuple(100 * e for e in wilson_interval(k, 20)) for k in (18, 12)]
    assert error_bars(axes) == [pytest.approx(each) for each in expected]
    assert axes.get_xlabel() == "accuracy, % of 20 points" and axes.get_xlim() == (0, 100)


def test_bars_of_a_report_are_of_the_same_points():
    whole = a_report()
    few = Report(
        whole.labels,
        whole.flags | {"AutoAttack": whole.flags["PGD-10"][:10]},
        {"PGD-10": THREAT, "AutoAttack": THREAT},
    )
    axes = new_axes()
    few.plot(axes)
    assert names(axes) == ["clean", "PGD-10", "AutoAttack", "worst case"]
    assert widths(axes) == pytest.approx([100.0] * 4)  # of the first ten
    assert axes.get_xlabel() == "accuracy, % of the first 10 points"


def test_a_curve_holds_what_accuracy_returns():
    axes = new_axes()
    CURVE.plot(axes, label="dense")
    (line,) = axes.lines
    radii, shares = line.get_xdata(), line.get_ydata()
    assert list(radii) == [0, 0.02, 0.02, 0.05] and line.get_drawstyle() == "steps-post"
    assert list(shares) == pytest.approx([80, 60, 40, 20])
    for radius in (0.0, 0.01, 0.02, 0.03, 0.05):  # the last step at or before a radius
        last = max(i for i, r in enumerate(radii) if r <= radius)
        assert shares[last] == pytest.approx(100 * CURVE.accuracy(radius))
    (band,) = axes.collections
    low, high = (100 * end for end in CURVE.interval(0.03))
    edges = band.get_paths()[0].vertices
    assert {round(y, 6) for x, y in edges if x == 0.02} >= {round(low, 6), round(high, 6)}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["dense"]


def test_certificates_fall_with_the_radius():
    axes = new_axes()
    CERTIFICATES.plot(axes)
    (line,) = axes.lines
    assert list(line.get_xdata()) == [0, 0.25, 0.5] and line.get_drawstyle() == "steps-pre"
    assert list(line.get_ydata()) == [50, 50, 25] and axes.get_legend() is None


def test_a_verification_shows_points_per_verdict_and_method():
    axes = new_axes()
    a_verification().plot(axes)
    found = dict(zip(names(axes), widths(axes), strict=True))
    assert found == {
        "verified by IBP": 3,
        "verified by CROWN": 2,
        "falsified by PGD": 2,
        "unknown": 1,
    }
    assert axes.get_xlabel() == "points of 8" and not error_bars(axes)


def test_a_sparsity_shows_kept_shares_from_zero():
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight.view(-1)[:15] = 0
        model[1].weight.view(-1)[:5] = 0
    axes = new_axes()
    sparsity(model).plot(axes)
    assert names(axes) == ["0.weight", "1.weight"]
    assert widths(axes) == pytest.approx([25.0, 50.0])
    assert axes.get_xlim() == pytest.approx((0, 52.5))


def test_given_axes_leave_pyplot_alone_and_without_axes_it_makes_one_figure():
    pyplot.close("all")
    backend = pyplot.get_backend()
    kinds = (a_report(), a_verification(), CURVE, CERTIFICATES)
    for each in kinds:
        each.plot(new_axes())
    assert pyplot.get_fignums() == []
    for count, each in enumerate(kinds, 1):
        figure, axes = each.plot()
        assert figure.axes == [axes] and len(pyplot.get_fignums()) == count
    assert pyplot.get_backend() == backend
    pyplot.close("all")
    with pytest.raises(TypeError, match="ax is a Figure; give one axes object"):
        CURVE.plot(Figure())


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ImportError, match=r"pip install 'robust-plugin\[plots\]'"):
        CURVE.plot()
