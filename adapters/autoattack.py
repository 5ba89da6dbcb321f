"""AutoAttack (Croce and Hein 2020), the parameter-free ensemble that robust accuracy is quoted by.

The components and their parameters are those of ``pyautoattack``, or of the GitHub package
``autoattack``. In Linf and L2 the runs themselves are ours (apgd.py, fab.py, square.py in the
core), which take the library's steps from the library's noise and drop fooled points on the way; in
L1, and for random networks, its own loops run. The verdicts are the library's.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.attacks.apgd import apgd
from robust_plugin.attacks.cascade import Progress, cascade
from robust_plugin.attacks.contract import Attack, SuspectNetwork, guarded
from robust_plugin.attacks.fab import FabSettings, fab
from robust_plugin.attacks.logits import check_logits
from robust_plugin.attacks.losses import dlr_loss, targeted_dlr_loss
from robust_plugin.attacks.square import square
from robust_plugin.attacks.survivors import AllFooled, Standing
from robust_plugin.copies.fast import fast_copy
from robust_plugin.evaluation.sanity import findings, refuse_random
from robust_plugin.runtime.distributed import rank_and_world
from robust_plugin.runtime.journal import Fingerprint, Journal
from robust_plugin.threat.layers import UnitBox
from robust_plugin.threat.model import ThreatModel, check_threat

Version = Literal["standard", "plus", "rand", "screen"]

# The library's versions, and the fifth of the standard one that a first look costs.
_COMPONENTS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "screen": ("apgd-ce", "apgd-t"),
}
# DLR divides by the distance of the first to the third logit, targeted DLR to the fourth too.
_LEAST_CLASSES = 4
# Points of which a look at the network is taken.
_LOOK = 32


@dataclass(frozen=True)
class AutoAttack:
    """AutoAttack as an attack: ``attack(model, x, y) -> x_adv``, best on all points at once.

    Points that it cannot fool come back as they were. Under torch.distributed the processes share
    the batches, and each returns all points: call it on every process, or it waits for the others.

    Attributes:
        threat: norm (Linf, L2 or L1), eps and bounds.
        version: ``"standard"``, ``"plus"``, ``"rand"`` for stochastic defences, or ``"screen"``:
            apgd-ce and apgd-t alone, which is a screening and no AutoAttack.
        seed: of the random starts; None draws one from torch's global generator at each call.
        batch_size: points attacked at a time; the verdicts are a function of it too.
        journal: a folder from which an interrupted evaluation goes on.
        progress: called after each batch.

    Raises:
        ValueError: for an unknown version or a journal without a seed; when called, for fewer than
            four classes, a random network (but by ``"rand"``), the journal of something else, or
            several processes without a seed.
        ImportError: when called without the library.

    Warns:
        SuspectNetwork: when called, for what ``findings`` finds, such as gradients of zero.
    """

    threat: ThreatModel
    version: Version = "standard"
    seed: int | None = None
    batch_size: int = 250
    journal: Path | None = field(default=None, repr=False, compare=False)
    progress: Callable[[Progress], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_threat(self.threat)
        if self.version not in get_args(Version):
            raise ValueError(f"version is {self.version!r}; legal: {', '.join(_COMPONENTS)}.")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size!r}; legal: at least 1, whole.")
        if not (self.seed is None or isinstance(self.seed, int)):
            raise ValueError(f"seed is {self.seed!r}; legal: a whole number, or None.")
        if self.journal is not None and self.seed is None:
            raise ValueError("a journal goes on with the same noise; give a seed.")

    @property
    def name(self) -> str:
        """The row's name in a report."""
        if self.version == "screen":
            return "screening (apgd-ce, apgd-t)"
        return "AutoAttack" if self.version == "standard" else f"AutoAttack {self.version}"

    @property
    def whole(self) -> bool:
        """That ``evaluate`` hands over all points in one call."""
        return True

    @property
    def for_random(self) -> bool:
        """Whether it is made for networks that are random on purpose."""
        return self.version == "rand"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return adversarial inputs of the shape of ``x``."""
        return guarded(self._run, self.threat)(model, x, y)

    def check_classes(self, classes: int) -> None:
        """Raise now what a call would raise after hours of training.

        Raises:
            ImportError: without the library.
            ValueError: for fewer than four classes.
        """
        _library()
        if classes < _LEAST_CLASSES:
            instead = (
                "No attack here moves in L1 with so few; take torchattack('EADL1', threat)"
                if self.threat.norm == "L1"
                else "Take pgd(threat, loss='margin', restarts=..., keep='best')"
            )
            raise ValueError(
                f"the model has {classes} classes; AutoAttack's DLR loss needs {_LEAST_CLASSES}. "
                f"{instead}."
            )

    def check_points(self, x: Tensor) -> None:
        """Raise now what the last component would raise after all the others have run.

        Raises:
            ValueError: for inputs that are no images, of which Square draws squares.
        """
        if x.dim() != 4 and "square" in _COMPONENTS[self.version]:
            raise ValueError(
                f"inputs have shape {tuple(x.shape)}; AutoAttack's Square draws squares on images, "
                "[batch, channels, height, width]. Take version='screen' (apgd-ce and apgd-t), or "
                "give images that the model reshapes."
            )

    @property
    def versions(self) -> dict[str, str]:
        """The library's version by its name."""
        package = _library()[0]
        return {package: metadata.version(package)}

    def _run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        self._look(model, x, y)
        if self.seed is None and rank_and_world()[1] > 1:
            raise ValueError("several processes need the same noise; give a seed.")
        seed = self.seed if self.seed is not None else int(torch.randint(2**31, (1,)))
        journal = None if self.journal is None else self._open(self.journal, model, x, y)
        fast = model if self.version == "rand" else fast_copy(model, x[: self.batch_size])
        box = UnitBox(fast, self.threat, x)

        def component(name: str) -> Attack:
            def attack(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
                run = _Component(name, self.version, box.threat, x.device)
                x_adv = box.grown(run(box, box.shrunk(x), y))
                # Scaled back, a point may lie outside the ball by a rounding of the box.
                return x_adv if box.width == 1 else self.threat.project(x_adv, x)

            return attack

        return cascade(
            model,
            x,
            y,
            {name: component(name) for name in _COMPONENTS[self.version]},
            seed=seed,
            batch_size=self.batch_size,
            journal=journal,
            progress=self.progress,
        )

    def _look(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Refuse or warn of a network of which the figures would mean little."""
        few, labels = x[:_LOOK], y[:_LOOK]
        with torch.no_grad():
            logits = check_logits(model(few), labels)
            self.check_classes(logits.shape[1])
            self.check_points(few)
            if self.for_random:  # noise is no gradient's
                return
            refuse_random(model, few, logits)
        for found in findings(model, few, labels):  # ``evaluate`` has them in its report
            warnings.warn(f"{self.name}: {found}.", SuspectNetwork, stacklevel=5)

    def _open(self, folder: Path, model: nn.Module, x: Tensor, y: Tensor) -> Journal:
        ((package, version),) = self.versions.items()
        fingerprint = {
            "model": str(Fingerprint(model)),
            "points": str(Fingerprint(x, y)),
            "threat model": f"{self.threat!r}",
            "version": self.version,
            "seed": str(self.seed),
            "batch size": str(self.batch_size),
            "library": f"{package} {version}",
        }
        journal = Journal(folder, fingerprint)
        if not self.for_random:
            with torch.no_grad():
                journal.check_answers(model(x[: self.batch_size]))
        return journal


class _Component:
    """One component of the library, on one batch of inputs in [0, 1]."""

    def __init__(self, name: str, version: str, threat: ThreatModel, device: torch.device) -> None:
        self.name, self.threat, self.as_is = name, threat, version == "rand"
        _, library = _library()
        version = "standard" if version == "screen" else version
        with _quiet(), redirect_stdout(io.StringIO()):  # the GitHub package prints
            self.of = library(
                nn.Identity(), norm=threat.norm, eps=threat.eps, version=version, device=device
            )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        points = Standing(model, x, y, self.threat)
        with _quiet(), suppress(AllFooled):
            if self.as_is or self.threat.norm == "L1":
                self._by_the_library(points)
            elif self.name.startswith("apgd"):
                self._apgd(points)
            elif self.name.startswith("fab"):
                self._fab(points)
            else:
                of = self.of.square
                square(points, queries=of.n_queries, share=of.p_init)
        return points.x_adv

    def _apgd(self, points: Standing) -> None:
        of = self.of.apgd_targeted if self.name == "apgd-t" else self.of.apgd
        for target in self._targets(points, of) if self.name == "apgd-t" else [None]:
            for _ in range(of.n_restarts):
                apgd(points, self._loss(points, target), steps=of.n_iter, rho=of.thr_decr)

    def _loss(self, points: Standing, target: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            y = points.y[rows]
            if target is not None:
                return targeted_dlr_loss(logits, y, target[rows])
            if self.name == "apgd-dlr":
                return dlr_loss(logits, y)
            return F.cross_entropy(logits, y, reduction="none")

        return loss

    def _fab(self, points: Standing) -> None:
        of = self.of.fab
        settings = FabSettings(of.n_iter, of.eta, of.beta, of.alpha_max)
        for target in self._targets(points, of) if self.name == "fab-t" else [None]:
            for restart in range(of.n_restarts if target is None else 1):
                fab(points, target, settings, random_start=restart > 0)

    def _targets(self, points: Standing, of: Any) -> list[Tensor]:
        """The likeliest wrong classes of each point, in their order; as many as there are."""
        order = points.logits.sort(dim=1).indices
        return [order[:, -k] for k in range(2, min(of.n_target_classes + 1, order.shape[1]) + 1)]

    def _by_the_library(self, points: Standing) -> None:
        """Its own loops: in L1, and where the network is random and one wrong answer no verdict."""
        if self.name == "square":
            self._square(points)
        elif self.name.startswith("fab"):
            self._fab_of_the_library(points)
        else:
            self._apgd_of_the_library(points)

    def _apgd_of_the_library(self, points: Standing) -> None:
        of = self.of.apgd_targeted if self.name == "apgd-t" else self.of.apgd
        if self.as_is:
            of.loss, of.model = self.name.removeprefix("apgd-"), points.model
            of.seed = int(torch.randint(2**31, (1,)))
            points.x_adv = of.perturb(points.x, points.y)
            return
        of.loss = "dlr-targeted" if self.name == "apgd-t" else self.name.removeprefix("apgd-")
        of.model = points
        for target in self._targets(points, of) if self.name == "apgd-t" else [None]:
            for _ in range(of.n_restarts):
                rows = points.rest()
                of.y_target = None if target is None else target[rows]
                x, y = points.x[rows], points.y[rows]
                of.init_hyperparam(x)
                # Three stages of shrinking radius.
                steps = [math.ceil(share * of.n_iter_orig) for share in (0.3, 0.3)]
                steps.append(of.n_iter_orig - sum(steps))
                of.decr_eps_pgd(x, y, [k * of.eps_orig for k in (3.0, 2.0, 1.0)], steps)

    def _fab_of_the_library(self, points: Standing) -> None:
        of, targeted = self.of.fab, self.name == "fab-t"
        of.predict, of._get_predicted_label = points.predict, lambda x: points(x).argmax(1)
        for place in range(2, len(self._targets(points, of)) + 2) if targeted else (0,):
            of.target_class = place
            for restart in range(of.n_restarts if not targeted else 1):
                rows = points.rest()
                of.attack_single_run(
                    points.x[rows],
                    points.y[rows],
                    use_rand_start=restart > 0,
                    is_targeted=targeted,
                )

    def _square(self, points: Standing) -> None:
        of, rows = self.of.square, points.rest()
        of.predict = points.predict
        with torch.inference_mode():
            x, y = points.x[rows].clone(), points.y[rows].clone()
            of.init_hyperparam(x)
            _, x_adv = of.attack_single_run(x, y)
            points(x_adv)


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's warnings, which evaluate finds by checks of its own, once and not per batch."""
    logger = logging.getLogger("auto-attack")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _library() -> tuple[str, Any]:
    """The package's name and its AutoAttack."""
    try:
        from pyautoattack import AutoAttack as Library

        return "pyautoattack", Library
    except ImportError:
        pass
    try:
        from autoattack import AutoAttack as Library

        return "autoattack", Library
    except ImportError as error:
        raise ImportError("AutoAttack needs: pip install pyautoattack") from error
