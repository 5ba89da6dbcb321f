"""``verify``: run provers and attacks one after another on the points that are still undecided.

Cheap methods come first: IBP, then PGD, which finds the points that no proof can cover, then CROWN
and alpha-CROWN. No prover is always the strongest (CROWN proves fewer points than IBP on networks
trained by IBP), so a point is verified if any prover verifies it, and the result names that prover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import Attack, attacked
from robust_plugin.attacks.logits import check_pairs, logits_of
from robust_plugin.certificates.batch import Batch
from robust_plugin.certificates.contract import VERDICTS, Prover, Verdict, counted
from robust_plugin.copies.fast import fast_copy
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.distributed import unwrapped
from robust_plugin.runtime.journal import Fingerprint, Journal, by_points
from robust_plugin.runtime.plots import bars
from robust_plugin.runtime.progress import ProgressOption, check_progress, reporting
from robust_plugin.runtime.random import forked
from robust_plugin.runtime.settings_digest import description
from robust_plugin.runtime.tables import html_lines, html_table, listed
from robust_plugin.runtime.values import check_call, is_number, is_whole
from robust_plugin.stats import wilson_interval
from robust_plugin.threat.model import ThreatModel


@explain_wrong_calls
@dataclass(frozen=True)
class Verification:
    """The verdict on each of n points, and the method that gave it.

    Attributes:
        verdicts: one verdict per point: ``"verified"`` (proved), ``"falsified"`` (an attack found
            an adversarial example), ``"misclassified"`` (the clean prediction is wrong) or
            ``"unknown"``.
        methods: for each point, the name of the method that verified or falsified it; None for the
            other two verdicts.
        margins: largest lower bound of min_{j != y} f_y - f_j that a prover has found for each
            point, shape [n]; -inf if no prover has run on the point.
        x_adv: the adversarial example of each falsified point, the input itself for all other
            points; shape [n, ...].
        threat: threat model of all verdicts.
    """

    verdicts: tuple[Verdict, ...]
    methods: tuple[str | None, ...]
    margins: Tensor
    x_adv: Tensor
    threat: ThreatModel

    @property
    def verified(self) -> tuple[bool, ...]:
        """Whether each point is verified; the share of True is the verified robust accuracy."""
        return tuple(verdict == "verified" for verdict in self.verdicts)

    @property
    def words(self) -> tuple[str, ...]:
        """Each point's verdict and the method that gave it, such as ``"verified by IBP"``."""
        pairs = zip(self.verdicts, self.methods, strict=True)
        return tuple(v if method is None else f"{v} by {method}" for v, method in pairs)

    def share(self, verdict: Verdict) -> float:
        """Return the share of points with the given verdict, in [0, 1]."""
        return self._count(verdict) / len(self.verdicts)

    def interval(self, verdict: Verdict) -> tuple[float, float]:
        """Return the Wilson 95 % interval of the share of points with the given verdict.

        Returns:
            tuple: lower and upper end, in [0, 1].
        """
        return wilson_interval(self._count(verdict), len(self.verdicts))

    def _count(self, verdict: Verdict) -> int:
        if verdict not in VERDICTS:
            raise ValueError(f"verdict is {verdict!r}; legal: {', '.join(VERDICTS)}.")
        return self.verdicts.count(verdict)

    def __repr__(self) -> str:
        """Return one line: the number of points for each verdict and method."""
        shown = [f"{count} {words}" for words, count in counted(self.words).items()]
        return f"Verification(n={len(self.verdicts)}: {listed(shown)})"

    def _repr_html_(self) -> str:
        """Return the table of ``str`` in HTML for notebooks."""
        above, *_, below = str(self).splitlines()
        rows = [[words, str(count)] for words, count in counted(self.words).items()]
        table = html_table([["verdict", "points"], *rows], align="<>")
        return "\n".join([html_lines([above]), table, html_lines([below])])

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw the number of points for each verdict and method, as bars.

        Args:
            ax: matplotlib axes to draw on; None for a new figure.

        Returns:
            tuple: matplotlib's figure and axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        label = f"points of {len(self.verdicts)}"
        return bars(counted(self.words), {}, ax, label=label, limit=len(self.verdicts))

    def __str__(self) -> str:
        """Return a table with the number of points for each verdict and method.

        The first line is the threat model. The last line is the verified robust accuracy (vra) in
        per cent with its 95 % interval.
        """
        lines = [f"threat model: {self.threat}"]
        lines += [f"{words:<28}{count:6d}" for words, count in counted(self.words).items()]
        low, high = (100 * end for end in self.interval("verified"))
        share = 100 * self.share("verified")
        lines.append(f"vra {share:.1f} [{low:.1f}, {high:.1f}]  n={len(self.verdicts)}")
        return "\n".join(lines)


@explain_wrong_calls
def verify(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    methods: Mapping[str, Prover | Attack],
    *,
    batch_size: int = 50,
    seconds: float | None = None,
    seed: int = 0,
    journal: str | Path | None = None,
    progress: ProgressOption = False,
) -> Verification:
    """Run provers and attacks in the given order, and return the verdict on each point.

    A prover gets the points that are still undecided. An attack gets the verified points too,
    because an adversarial example there means that a proof is wrong.

    Args:
        model: network with or without a pruner attached. It runs in evaluation mode, and its modes
            are restored.
        x: inputs, shape [n, ...], within [low, high].
        y: labels, shape [n].
        methods: provers and attacks by name, in the order they run, all of one threat model. An
            attack without a ``threat`` attribute is checked against the threat model of the others.
        batch_size: number of points that run through the methods together.
        seconds: time limit per point, in seconds; a point that has reached it stays unknown. A
            method that has begun is finished, and its time counts in equal parts for its points.
            None for no limit.
        seed: seed of the attacks' random numbers, set anew for each batch.
        journal: folder in which finished batches are kept, so that an interrupted call continues
            from there; None to keep nothing. The folder can be used again only with the same model,
            points, arguments and methods; two methods are the same if ``description`` (in
            ``runtime/settings_digest.py``) returns the same text for them.
        progress: True for a progress bar of tqdm, or a function that is called with a ``Progress``
            at the start, after each batch and at the end; False to report nothing.

    Raises:
        TypeError: if ``methods`` is not a mapping, or, with a journal, if the state of a method
            cannot be read.
        ValueError: for methods of several threat models or none, a journal of another computation,
            and if an attack finds an adversarial example for a verified point.
    """
    check_call(model, x, y)
    threat = threat_of(methods)
    threat.check_inputs(x)
    check_pairs(x, y)
    y = y if y.is_floating_point() else y.long()  # floats are refused below
    if not (is_whole(batch_size) and batch_size >= 1):
        raise ValueError(f"batch_size is {batch_size!r}; legal: at least 1, whole.")
    if seconds is not None and not (is_number(seconds) and seconds > 0):
        raise ValueError(f"seconds is {seconds!r}; legal: above 0, or None for no limit.")
    if not is_whole(seed):
        raise ValueError(f"seed is {seed!r}; legal: a whole number.")
    check_progress(progress)
    model, opened = unwrapped(model), None
    if journal is not None:
        opened = Journal(journal, _fingerprint(model, x, y, methods, batch_size, seconds, seed))
        with attacked(model), torch.no_grad():
            opened.check_answers(logits_of(model, x[:batch_size], y[:batch_size]))

    # The attacks run on this copy, the network itself judges their points. It is made when first
    # needed, since the journal may have all batches.
    @cache
    def fast() -> nn.Module:
        with attacked(model):
            return fast_copy(model, x[:batch_size])

    def decided(rows: slice) -> dict[str, Tensor]:
        batch = Batch(model, fast, x[rows], y[rows], threat, rows.start)
        with forked(seed, x.device):
            for number, (name, method) in enumerate(methods.items()):
                batch.run(number, name, method, seconds)
        return batch.result()

    task = f"verify: {', '.join(methods)}"
    with reporting(progress, task, total=len(x), unit="points") as show:
        found = by_points(len(x), batch_size, decided, journal=opened, show=show)
    return _verification(found, list(methods), threat)


def _verification(
    whole: Mapping[str, Tensor], names: Sequence[str], threat: ThreatModel
) -> Verification:
    """Return a Verification made of the tensors that ``Batch.result`` returns.

    Args:
        whole: these tensors for all points, by the keys of ``Batch.result``.
        names: names of the methods in the order they run.
        threat: threat model of all methods.
    """
    return Verification(
        tuple(VERDICTS[code] for code in whole["verdict"].tolist()),
        tuple(names[number] if number >= 0 else None for number in whole["stage"].tolist()),
        whole["margin"],
        whole["x_adv"],
        threat,
    )


def threat_of(methods: Mapping[str, Prover | Attack]) -> ThreatModel:
    """Return the threat model that all methods share.

    Args:
        methods: provers and attacks by name; those without a ``threat`` attribute are left out.

    Raises:
        TypeError: if ``methods`` is not a mapping.
        ValueError: if no method has a threat model, or if the methods have several.
    """
    if not isinstance(methods, Mapping):
        raise TypeError(f"methods is {methods!r}; give a dict of provers and attacks by name.")
    for name, each in methods.items():
        if isinstance(each, type) or not (callable(each) or isinstance(each, Prover)):
            shown = each.__name__ if isinstance(each, type) else repr(each)
            raise TypeError(
                f"the method {name!r} is {shown}; give what it makes, such as IBP(threat) or "
                "pgd(threat)."
            )
    threats = {name: each.threat for name, each in methods.items() if hasattr(each, "threat")}
    if len(set(threats.values())) != 1:
        raise ValueError(
            f"the methods have {threats or 'no threat model'}; give provers and attacks of one "
            "threat model."
        )
    return cast(ThreatModel, next(iter(threats.values())))


def _fingerprint(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    methods: Mapping[str, Prover | Attack],
    batch_size: int,
    seconds: float | None,
    seed: int,
) -> dict[str, str]:
    return {
        "model": str(Fingerprint(model)),
        "points": str(Fingerprint(x, y)),
        "stages": str({name: description(method) for name, method in methods.items()}),
        "batch size": str(batch_size),
        "seconds": str(seconds),
        "seed": str(seed),
    }
