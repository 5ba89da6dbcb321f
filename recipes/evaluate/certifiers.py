"""Certificates of a finished network: proofs by bounds, and randomized smoothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from torch import nn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from robust_plugin.adapters.auto_lirpa import LiRPA, proof_stages
from robust_plugin.certificates.contract import Certifier
from robust_plugin.certificates.ibp import IBP
from robust_plugin.certificates.smoothing import Smoothed
from robust_plugin.certificates.verifier import Verifier
from robust_plugin.recipes.config.evaluate import CertifierName
from robust_plugin.recipes.data.datasets import loader
from robust_plugin.recipes.pages.plots import plot_radii
from robust_plugin.runtime.files import write_text
from robust_plugin.threat.model import ThreatModel


def certifier_of(
    name: CertifierName,
    threat: ThreatModel,
    *,
    seconds: float | None = None,
    journal: Path | None = None,
) -> Certifier | None:
    """Return a certifier by its name, none for ``"none"``; the library that it needs is there.

    Args:
        name: ibp; crown-ibp; or cascade: IBP, then PGD, which spares the rest the points without a
            proof, then CROWN and alpha-CROWN; or cascade-fixed, which leaves out the last stage,
            alpha-CROWN on all slopes: most of the time, and few points.
        threat: norm, eps and bounds.
        seconds: of a cascade: budget a point (see ``verify``).
        journal: a folder from which an interrupted cascade goes on.

    Raises:
        ValueError: for an unknown name, a norm that the certifier does not take, or seconds that
            are not above 0 or beside another certifier than a cascade.
        ImportError: without auto-LiRPA, for all but ibp.
    """
    if name not in get_args(CertifierName):
        raise ValueError(f"certify is {name!r}; legal: {', '.join(get_args(CertifierName))}.")
    if seconds is not None and not (name.startswith("cascade") and seconds > 0):
        raise ValueError(
            f"seconds is {seconds} with certify {name}; legal: above 0, with a cascade."
        )
    if name == "none":
        return None
    if name == "ibp":
        return IBP(threat)
    by_crown = LiRPA(threat, "CROWN-IBP")
    by_crown.check_library()
    if name == "crown-ibp":
        return by_crown
    stages = proof_stages(threat)
    if name == "cascade-fixed":
        del stages["alpha-CROWN"]
    return Verifier(stages, seconds=seconds, journal=journal, progress=_bar("proofs"))


def smooth(
    model: nn.Module,
    points: Dataset[Any],
    n: int,
    smoothed: Smoothed,
    folder: Path,
    *,
    journal: Path,
) -> dict[str, Any]:
    """Certify the first points by randomized smoothing; write smoothing.txt and smoothing.png.

    Args:
        model: the base classifier.
        points: pairs (x, y).
        n: how many of the first points, at most all.
        smoothed: the noise and the votes.
        folder: for the table and the curve of certified accuracy against radius.
        journal: a folder from which an interrupted run goes on.

    Returns:
        dict: what JSON can hold: the settings, every point's answer and radius.
    """
    few = Subset(points, range(min(n, len(points))))  # type: ignore[arg-type]
    batches = loader(few, batch_size=len(few), seed=0, epoch=0, shuffle=False)
    device = next(model.parameters()).device
    x, y = (each.to(device) for each in next(iter(batches)))
    found = smoothed.certify(model, x, y, journal=journal, progress=_bar("smoothing"))
    plot_radii(found, smoothed.sigma, folder / "smoothing.png")
    write_text(folder / "smoothing.txt", f"{found.table()}\n")
    return {
        "sigma": smoothed.sigma,
        "n0": smoothed.n0,
        "n": smoothed.n,
        "alpha": smoothed.alpha,
        "acr": found.acr,
        "predictions": found.predictions.tolist(),
        "labels": found.labels.tolist(),
        "radii": found.radii.tolist(),
    }


def _bar(what: str) -> Callable[[int, int], None]:
    """Return what shows the points done, and the time left."""
    bar: Any = None

    def show(done: int, of: int) -> None:
        nonlocal bar
        bar = bar or tqdm(total=of, desc=what, unit="point", disable=None)
        bar.update(done - bar.n)
        if done == of:
            bar.close()
            bar = None

    return show
