"""``Obfuscation``: the results of the checks for obfuscated gradients, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from robust_plugin.runtime.tables import html_lines, html_table, listed

# The smallest number of points of which 2 %, the share that may stay robust at an unbounded radius,
# is one whole point. With fewer, a single point on which PGD fails would give a wrong alarm, and no
# alarm would mean little: 0 of 50 still allows up to 6 % of all points (95 %, the rule of three).
ENOUGH = 50
# The result of a check in words.
_MARKS = {True: "holds", False: "FAILS", None: "not run"}


@dataclass(frozen=True)
class Check:
    """One check for obfuscated gradients and its result.

    Attributes:
        name: the statement that should hold, in words.
        passed: whether it holds; None if the check could not run.
        detail: the measured values that the result is based on, in words.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Obfuscation:
    """The results of all checks for obfuscated gradients.

    Attributes:
        checks: the checks in the order they ran.
        n: number of points that were checked, all of them classified correctly without an attack.
    """

    checks: tuple[Check, ...]
    n: int

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks whose statement does not hold, without those that could not run."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def verdict(self) -> str:
        """One sentence about the result; for fewer than 50 points, that they are too few."""
        names = "; ".join(check.name for check in self.failed)
        if self.n < ENOUGH:
            missed = f" (on these do not hold: {names})" if names else ""
            return (
                f"too few points for a verdict on obfuscated gradients: {self.n} are right clean, "
                f"and it takes {ENOUGH}{missed}"
            )
        if not self.failed:
            ran = sum(check.passed is not None for check in self.checks)
            return f"no sign of obfuscated gradients in {ran} checks on {self.n} points"
        return f"robust accuracy is not to be trusted, for these do not hold: {names}"

    def __repr__(self) -> str:
        """Return one line: the number of checks and of points, and the verdict."""
        return (
            f"Obfuscation({len(self.checks)} checks, {len(self.failed)} failed, n={self.n}: "
            f"{listed([self.verdict])})"
        )

    def _repr_html_(self) -> str:
        """Return a table in HTML for notebooks, with one row per check."""
        rows = [["", "check", "measured"]]
        rows += [[_MARKS[check.passed], check.name, check.detail] for check in self.checks]
        return f"{html_table(rows, align='<<<')}\n{html_lines([self.verdict])}"

    def __str__(self) -> str:
        """Return one line per check, then the verdict."""
        lines = [f"{_MARKS[c.passed]:<8}{c.name}: {c.detail}" for c in self.checks]
        return "\n".join([*lines, self.verdict])
