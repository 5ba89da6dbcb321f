"""Reports and cells of a comparison with a given number of correct points."""

from robust_plugin import Report, ThreatModel
from robust_plugin.recipes.compare.cells import Cell


def report(clean: int, robust: int, n: int = 20, first: int = 0) -> Report:
    """The first so many points right, beginning with ``first``."""

    def flags(right: int) -> tuple[bool, ...]:
        return tuple(first <= i < first + right for i in range(n))

    return Report(
        (0,) * n, {"clean": flags(clean), "PGD": flags(robust)}, {"PGD": ThreatModel("Linf", 0.1)}
    )


def cell(row: str, robust: int, validation: float | None, first: int = 0) -> Cell:
    lr = None if validation is None else 0.1
    return Cell(row, 0.05, lr, [report(18, robust, first=first)], validation)
