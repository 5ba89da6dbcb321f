"""Which classes a network takes for which, as a matrix or, for many classes, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from robust_plugin.recipes.pages.run_facts import UnderAttack
from robust_plugin.recipes.pages.svg import drawing, short_name, svg_of

# Most classes of a matrix; more would be too small to read.
MATRIX_CLASSES = 20
# Number of lines of the table.
_LINES = 12


@dataclass(frozen=True)
class Confusion:
    """The predictions of a network under an attack, as the macro ``confusion`` shows them.

    Attributes:
        attack: name of the attack.
        points: number of points.
        matrices: for a few classes, matrices as SVG without and with the attack, each with a
            caption; else empty.
        lines: for many classes, the largest confusions under the attack as rows of a table.
    """

    attack: str
    points: int
    matrices: tuple[tuple[str, str], ...]
    lines: list[list[str]]


def confusion_of(attacked: UnderAttack, class_names: Sequence[str], color: str) -> Confusion:
    """Return the predictions under an attack as matrices or, for many classes, as a table.

    Args:
        attacked: predictions without and with the attack.
        class_names: name of each class.
        color: colour of the matrices.
    """
    kinds = (
        ("without an attack", attacked.clean),
        (f"under {attacked.attack}", attacked.adversarial),
    )
    few = len(class_names) <= MATRIX_CLASSES
    matrices = tuple(
        (
            confusion_matrix(
                attacked.labels,
                predictions,
                class_names,
                title=f"true and predicted class {what}",
                color=color,
            ),
            what,
        )
        for what, predictions in (kinds if few else ())
    )
    lines = largest_confusions(attacked.labels, attacked.adversarial, class_names)
    return Confusion(attacked.attack, len(attacked.labels), matrices, [] if few else lines)


def confusion_matrix(
    labels: Sequence[int],
    predictions: Sequence[int],
    class_names: Sequence[str],
    *,
    title: str,
    color: str,
) -> str:
    """Return a matrix as SVG: a row for each true class, a column for each predicted class.

    A cell has the share of the points of its row, in per cent, and is darker for a larger share.

    Args:
        labels: true class of each point.
        predictions: predicted class of each point.
        class_names: name of each class; at most ``MATRIX_CLASSES``.
        title: what the matrix shows.
        color: colour of a cell with all points of its row.
    """
    from matplotlib.patches import Rectangle

    n, names = len(class_names), [short_name(name) for name in class_names]
    counts, sizes = Counter(zip(labels, predictions, strict=True)), Counter(labels)
    longest = max(map(len, names))
    side = max(2.2, 0.34 * n)
    figure, axes = drawing(side + 0.7 + 0.08 * longest, side + 0.5 + 0.06 * longest)
    for (label, prediction), count in counts.items():
        share = count / sizes[label]
        axes.add_patch(
            Rectangle(
                (prediction - 0.5, label - 0.5), 1, 1, color=color, alpha=0.08 + 0.6 * share, lw=0
            )
        )
        text = f"{100 * share:.0f}"
        axes.text(prediction, label, text, ha="center", va="center", fontsize=8)
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect="equal")
    axes.set(xlabel="predicted class", ylabel="true class")
    steep = {"rotation": 45, "ha": "right"} if longest > 2 else {}
    axes.set_xticks(range(n), names, fontsize=8, **steep)
    axes.set_yticks(range(n), names, fontsize=8)
    return svg_of(figure, title)


def largest_confusions(
    labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str]
) -> list[list[str]]:
    """Return the most frequent confusions as rows of a table, the most frequent one first.

    Args:
        labels: true class of each point.
        predictions: predicted class of each point.
        class_names: name of each class.

    Returns:
        list: rows with the true class, the predicted class, the number of points, and their share
        of the points of the true class in per cent.
    """
    sizes = Counter(labels)
    wrong = Counter(
        (label, prediction)
        for label, prediction in zip(labels, predictions, strict=True)
        if label != prediction
    )
    ranked = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    return [
        [
            class_names[label],
            class_names[prediction],
            str(count),
            f"{100 * count / sizes[label]:.0f} %",
        ]
        for (label, prediction), count in ranked[:_LINES]
    ]
