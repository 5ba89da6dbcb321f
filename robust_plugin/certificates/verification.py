"""Verification: proofs and attacks one after another, each on the points that are undecided.

Cheap before expensive: IBP, then PGD, which spares the expensive proofs the points that have none,
then CROWN and alpha-CROWN. Bounds are not nested (CROWN proves fewer points than IBP on networks
trained by IBP), so that the verdict is the union and names who gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import Attack, attacked
from robust_plugin.attacks.logits import check_pairs, logits_of
from robust_plugin.certificates.batch import Batch
from robust_plugin.certificates.contract import VERDICTS, Prover, Verdict, counted
from robust_plugin.copies.fast import fast_copy
from robust_plugin.runtime.description import description
from robust_plugin.runtime.distributed import unwrapped
from robust_plugin.runtime.journal import Fingerprint, Journal
from robust_plugin.runtime.random import forked
from robust_plugin.stats import wilson_interval
from robust_plugin.threat.model import ThreatModel


@dataclass(frozen=True)
class Verification:
    """What is known of each point.

    Attributes:
        verdicts: ``"verified"``, ``"falsified"``, ``"misclassified"`` (clean) or ``"unknown"``.
        stages: who verified or falsified it; None for the other verdicts.
        margins: shape [n]; the largest lower bound of min_j f_y - f_j found, -inf without any.
        x_adv: shape [n, ...]; the counterexample of a falsified point, else the point itself.
        threat: norm, eps and bounds.
    """

    verdicts: tuple[Verdict, ...]
    stages: tuple[str | None, ...]
    margins: Tensor
    x_adv: Tensor
    threat: ThreatModel

    @property
    def verified(self) -> tuple[bool, ...]:
        """Whether each point is proved; their share is the verified robust accuracy (vra)."""
        return tuple(verdict == "verified" for verdict in self.verdicts)

    @property
    def words(self) -> tuple[str, ...]:
        """Each point's verdict and who gave it, such as ``"verified by IBP"``."""
        pairs = zip(self.verdicts, self.stages, strict=True)
        return tuple(v if stage is None else f"{v} by {stage}" for v, stage in pairs)

    def share(self, verdict: Verdict) -> float:
        """Return the share of points with a verdict, in [0, 1]."""
        return self.verdicts.count(verdict) / len(self.verdicts)

    def interval(self, verdict: Verdict) -> tuple[float, float]:
        """Return the Wilson 95 % interval of ``share``."""
        return wilson_interval(self.verdicts.count(verdict), len(self.verdicts))

    def __str__(self) -> str:
        """Return a table: points by verdict and stage, the share of verified with its interval."""
        lines = [f"threat model: {self.threat}"]
        lines += [f"{words:<28}{count:6d}" for words, count in counted(self.words).items()]
        low, high = (100 * end for end in self.interval("verified"))
        share = 100 * self.share("verified")
        lines.append(f"vra {share:.1f} [{low:.1f}, {high:.1f}]  n={len(self.verdicts)}")
        return "\n".join(lines)


def verify(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    stages: Mapping[str, Prover | Attack],
    *,
    batch_size: int = 50,
    seconds: float | None = None,
    seed: int = 0,
    journal: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Return what certifiers and attacks, in their order, decide about each point.

    A certifier gets the undecided points. An attack gets those that are verified too: a
    counterexample to a proof must not stay unnoticed.

    Args:
        model: with or without a pruner attached; in evaluation mode meanwhile, then as it was.
        x: shape [n, ...], within [low, high].
        y: shape [n].
        stages: certifiers and attacks by name, of one threat model; a wrapped attack that brings
            no ``threat`` is held to that of the others.
        batch_size: points that go through the stages together.
        seconds: budget a point; what has used it up stays unknown. A stage that has begun is
            finished, its time shared evenly by its points.
        seed: of the attacks' noise, anew for each batch.
        journal: a folder from which an interrupted verification goes on. Its stages are told
            from others by ``description``.
        progress: called with the points done, and all of them.

    Raises:
        TypeError: for stages that are no mapping, and, with a journal, for a stage whose state
            cannot be read.
        ValueError: for stages of several threat models or none, and if an attack finds a
            counterexample to a point that was verified.
    """
    threat = threat_of(stages)
    threat.check_inputs(x)
    check_pairs(x, y)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; legal: at least 1, whole.")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds is {seconds}; legal: above 0, or None for no limit.")
    model, opened = unwrapped(model), None
    if journal is not None:
        opened = Journal(journal, _fingerprint(model, x, y, stages, batch_size, seconds, seed))
        with attacked(model), torch.no_grad():
            opened.check_answers(logits_of(model, x[:batch_size], y[:batch_size]))

    # For attacks; the network itself judges their points. Not needed where the journal has all.
    @cache
    def fast() -> nn.Module:
        with attacked(model):
            return fast_copy(model, x[:batch_size])

    def decided(first: int) -> dict[str, Tensor]:
        rows = slice(first, first + batch_size)
        batch = Batch(model, fast, x[rows], y[rows], threat, first)
        with forked(seed, x.device):
            for number, (name, stage) in enumerate(stages.items()):
                batch.run(number, name, stage, seconds)
        return batch.result()

    found = []
    for first in range(0, len(x), batch_size):
        unit = f"points-{first:06d}"
        done = opened.get(unit) if opened is not None else None
        if done is None:
            done = decided(first)
            if opened is not None:
                opened.put(unit, done)
        found.append(done)
        if progress is not None:
            progress(min(first + batch_size, len(x)), len(x))
    return _together(found, list(stages), threat)


def _together(
    found: Sequence[Mapping[str, Tensor]], names: Sequence[str], threat: ThreatModel
) -> Verification:
    whole = {key: torch.cat([each[key] for each in found]) for key in found[0]}
    return Verification(
        tuple(VERDICTS[code] for code in whole["verdict"].tolist()),
        tuple(names[number] if number >= 0 else None for number in whole["stage"].tolist()),
        whole["margin"],
        whole["x_adv"],
        threat,
    )


def threat_of(stages: Mapping[str, Prover | Attack]) -> ThreatModel:
    """Return the threat model that all stages speak of.

    Raises:
        TypeError: if the stages are no mapping.
        ValueError: if there is none, or several.
    """
    if not isinstance(stages, Mapping):
        raise TypeError(f"stages is {stages!r}; give a dict of certifiers and attacks by name.")
    threats = {name: stage.threat for name, stage in stages.items() if hasattr(stage, "threat")}
    if len(set(threats.values())) != 1:
        raise ValueError(
            f"the stages speak of {threats or 'no threat model'}; give certifiers and attacks of "
            "one threat model."
        )
    return cast(ThreatModel, next(iter(threats.values())))


def _fingerprint(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    stages: Mapping[str, Prover | Attack],
    batch_size: int,
    seconds: float | None,
    seed: int,
) -> dict[str, str]:
    return {
        "model": str(Fingerprint(model)),
        "points": str(Fingerprint(x, y)),
        "stages": str({name: description(stage) for name, stage in stages.items()}),
        "batch size": str(batch_size),
        "seconds": str(seconds),
        "seed": str(seed),
    }
