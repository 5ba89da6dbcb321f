"""Certifiers by name, and certificates by randomized smoothing, for a finished network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from torch import nn
from torch.utils.data import Dataset

from robust_plugin.adapters.auto_lirpa import LiRPA, proof_methods
from robust_plugin.certificates.contract import Certifier
from robust_plugin.certificates.ibp import IBP
from robust_plugin.certificates.smoothing import Smoothed
from robust_plugin.certificates.verifier import Verifier
from robust_plugin.recipes.config.evaluate import CertifierName
from robust_plugin.recipes.evaluate.measure import first_points
from robust_plugin.recipes.pages.plots import plot_radii
from robust_plugin.runtime.files import write_text
from robust_plugin.runtime.progress import ProgressOption
from robust_plugin.threat.model import ThreatModel


def certifier_of(
    name: CertifierName,
    threat: ThreatModel,
    *,
    seconds: float | None = None,
    journal: Path | None = None,
) -> Certifier | None:
    """Return a certifier by its name, or None for ``"none"``.

    Args:
        name: ``"ibp"``, ``"crown-ibp"``, or ``"cascade"``, which runs IBP, PGD, CROWN and
            alpha-CROWN in this order; PGD finds points that cannot be proved, so that the costly
            methods after it skip them. ``"cascade-fixed"`` leaves out the last method, alpha-CROWN
            on all slopes, which takes most of the time and proves few points.
        threat: norm, eps and bounds of the inputs.
        seconds: time limit of a cascade per point, above 0 (see ``Verifier``); None for no limit.
        journal: folder for finished batches of a cascade, from which an interrupted one continues;
            None writes no journal.

    Raises:
        ValueError: for an unknown name, a norm that the certifier does not support, or seconds that
            are not above 0 or are given without a cascade.
        ImportError: if auto-LiRPA is not installed, for every certifier except ibp.
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
    methods = proof_methods(threat)
    if name == "cascade-fixed":
        del methods["alpha-CROWN"]
    return Verifier(methods, seconds=seconds, journal=journal)


def smooth(
    model: nn.Module,
    points: Dataset[Any],
    n: int,
    smoothed: Smoothed,
    folder: Path,
    *,
    journal: Path,
    progress: ProgressOption = False,
) -> dict[str, Any]:
    """Certify the first points by randomized smoothing; write smoothing.txt and smoothing.png.

    Args:
        model: the base classifier.
        points: pairs (x, y).
        n: number of points to certify, from the first one; all if there are fewer.
        smoothed: the smoothed classifier, with its noise level and its number of votes.
        folder: folder for the table and for the plot of certified accuracy against radius.
        journal: folder for finished points, from which an interrupted call continues.
        progress: True for a progress bar, or a function that takes a ``Progress``.

    Returns:
        dict: the settings of the smoothing, the average certified radius, and the prediction, label
        and radius of each point, as values for JSON.
    """
    x, y = first_points(points, n, next(model.parameters()).device)
    found = smoothed.certify(model, x, y, journal=journal, progress=progress)
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
