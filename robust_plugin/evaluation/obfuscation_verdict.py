"""``Obfuscation``: the results of the checks for obfuscated gradients, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

# The smallest number of points of which 2 %, the share that may stay robust at an unbounded radius,
# is one whole point. With fewer, a single point on which PGD fails would give a wrong alarm, and no
# alarm would mean little: 0 of 50 still allows up to 6 % of all points (95 %, the rule of three).
_ENOUGH = 50


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
        if self.n < _ENOUGH:
            missed = f" (on these do not hold: {names})" if names else ""
            return (
                f"too few points for a verdict on obfuscated gradients: {self.n} are right clean, "
                f"and it takes {_ENOUGH}{missed}"
            )
        if not self.failed:
            ran = sum(check.passed is not None for check in self.checks)
            return f"no sign of obfuscated gradients in {ran} checks on {self.n} points"
        return f"robust accuracy is not to be trusted, for these do not hold: {names}"

    def __str__(self) -> str:
        """Return one line per check, then the verdict."""
        marks = {True: "holds", False: "FAILS", None: "not run"}
        lines = [f"{marks[c.passed]:<8}{c.name}: {c.detail}" for c in self.checks]
        return "\n".join([*lines, self.verdict])
