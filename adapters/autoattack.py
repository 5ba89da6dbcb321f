"""AutoAttack (Croce and Hein 2020), the parameter-free ensemble that robust accuracy is quoted by.

The components and their parameters are those of ``pyautoattack``, or of the GitHub package
``autoattack``. What drives them is here: points that are fooled are not computed again, FAB takes
its gradients and projections in a cheaper way, Square leaves out a loss that nobody reads. The
verdicts are the library's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args
from unittest import mock

import torch
from torch import Tensor, nn

from robust_plugin.attacks import margin_loss
from robust_plugin.cascade import Progress, cascade, rank_and_world
from robust_plugin.fingerprint import Fingerprint
from robust_plugin.guard import Attack, UnitBox, check_logits, guarded
from robust_plugin.inference import fast_copy
from robust_plugin.journal import Journal
from robust_plugin.projection import project_on_hyperplane
from robust_plugin.standing import AllFooled, Standing
from robust_plugin.threat import ThreatModel

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
            four classes, the journal of something else, or several processes without a seed.
        ImportError: when called without the library.
    """

    threat: ThreatModel
    version: Version = "standard"
    seed: int | None = None
    batch_size: int = 250
    journal: Path | None = None
    progress: Callable[[Progress], None] | None = None

    def __post_init__(self) -> None:
        if self.version not in get_args(Version):
            raise ValueError(f"version is {self.version!r}; legal: {', '.join(_COMPONENTS)}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; legal: at least 1.")
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

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return adversarial inputs of the shape of ``x``."""
        return guarded(self._run, self.threat)(model, x, y)

    def check(self, classes: int) -> None:
        """Raise now what a call would raise after hours of training.

        Raises:
            ImportError: without the library.
            ValueError: for fewer than four classes.
        """
        _library()
        if classes < _LEAST_CLASSES:
            raise ValueError(
                f"the model has {classes} classes; AutoAttack's DLR loss needs {_LEAST_CLASSES}. "
                "Take pgd(threat, loss='margin', restarts=...)."
            )

    def _run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            self.check(check_logits(model(x[:1]), y[:1]).shape[1])
        if self.seed is None and rank_and_world()[1] > 1:
            raise ValueError("several processes need the same noise; give a seed.")
        seed = self.seed if self.seed is not None else int(torch.randint(2**31, (1,)))
        journal = None if self.journal is None else self._open(self.journal, model, x, y)
        fast = model if self.version == "rand" else fast_copy(model, x[: self.batch_size])
        box = UnitBox(fast, self.threat)

        def component(name: str) -> Attack:
            def attack(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
                run = _Component(name, self.version, box.threat, x.device)
                return box.grown(run(box, box.shrunk(x), y))

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

    def _open(self, folder: Path, model: nn.Module, x: Tensor, y: Tensor) -> Journal:
        package = _library()[0]
        fingerprint = {
            "model": str(Fingerprint(model)),
            "points": str(Fingerprint(x, y)),
            "threat model": f"{self.threat!r}",
            "version": self.version,
            "seed": str(self.seed),
            "batch size": str(self.batch_size),
            "library": f"{package} {metadata.version(package)}",
            "torch": torch.__version__,
        }
        return Journal(folder, fingerprint)


class _Component:
    """One component of the library, on one batch of inputs in [0, 1]."""

    def __init__(self, name: str, version: str, threat: ThreatModel, device: torch.device) -> None:
        self.name, self.threat, self.as_is = name, threat, version == "rand"
        package, library = _library()
        version = "standard" if version == "screen" else version
        with _quiet():
            self.of = library(
                nn.Identity(), norm=threat.norm, eps=threat.eps, version=version, device=device
            )
        self.fab_base = f"{package}.fab_base"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        points = Standing(model, x, y, self.threat)
        with _quiet(), suppress(AllFooled):
            if self.name == "apgd-t":
                self._apgd_targeted(points)
            elif self.name.startswith("apgd"):
                self._apgd(points)
            elif self.name == "square":
                self._square(points)
            else:
                self._fab(points)
        return points.x_adv

    def _apgd(self, points: Standing) -> None:
        attack = self.of.apgd
        attack.loss = self.name.removeprefix("apgd-")
        if self.as_is:
            # One wrong answer of a stochastic network is no verdict: the library's own loop.
            attack.model, attack.seed = points.model, int(torch.randint(2**31, (1,)))
            points.x_adv = attack.perturb(points.x, points.y)
            return
        for _ in range(attack.n_restarts):
            self._climb(attack, points, points.rest())

    def _apgd_targeted(self, points: Standing) -> None:
        attack = self.of.apgd_targeted
        for order in self._targets(points, attack.n_target_classes):
            for _ in range(attack.n_restarts):
                rows = points.rest()
                attack.y_target = order[rows]
                self._climb(attack, points, rows)

    def _climb(self, attack: Any, points: Standing, rows: Tensor) -> None:
        """One run of APGD; for L1 in three stages of shrinking radius, as the library has it."""
        attack.model = points
        x, y = points.x[rows], points.y[rows]
        attack.init_hyperparam(x)
        if attack.use_largereps:
            steps = [math.ceil(share * attack.n_iter_orig) for share in (0.3, 0.3)]
            steps.append(attack.n_iter_orig - sum(steps))
            attack.decr_eps_pgd(x, y, [k * attack.eps_orig for k in (3.0, 2.0, 1.0)], steps)
        else:
            attack.attack_single_run(x, y)

    def _targets(self, points: Standing, most: int) -> list[Tensor]:
        """The likeliest wrong classes of each point, in their order; as many as there are."""
        order = points.logits.sort(dim=1).indices
        return [order[:, -place] for place in range(2, min(most + 1, order.shape[1]) + 1)]

    def _fab(self, points: Standing) -> None:
        attack = self.of.fab
        attack.predict = points.predict
        attack._get_predicted_label = lambda x: points(x).argmax(1)
        attack.get_diff_logits_grads_batch = partial(_differences, points)
        attack.get_diff_logits_grads_batch_targeted = partial(_difference, points)
        targeted = self.name == "fab-t"
        places = range(2, min(attack.n_target_classes + 1, points.logits.shape[1]) + 1)
        with _sort_free(self.fab_base), torch.no_grad():
            for place in places if targeted else (0,):
                attack.target_class = place
                for restart in range(attack.n_restarts if not targeted else 1):
                    rows = points.rest()
                    attack.attack_single_run(
                        points.x[rows],
                        points.y[rows],
                        use_rand_start=restart > 0,
                        is_targeted=targeted,
                    )

    def _square(self, points: Standing) -> None:
        attack = self.of.square
        attack.predict = points.predict
        attack.margin_and_loss = partial(_margin_twice, points)
        rows = points.rest()
        with torch.inference_mode():
            x, y = points.x[rows].clone(), points.y[rows].clone()
            attack.init_hyperparam(x)
            _, x_adv = attack.attack_single_run(x, y)
            points(x_adv)


def _difference(points: Standing, x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """z_target - z_y and its gradient: shapes [B, 1] and [B, 1, ...]."""
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = points.predict(x)
        gap = logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])
        (grad,) = torch.autograd.grad(gap.sum(), x)
    return gap.detach(), grad[:, None]


def _differences(points: Standing, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """z_j - z_y for each class j and the gradients; huge for j = y, which is nearest to itself."""
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = points.predict(x)
        gaps = logits - logits.gather(1, y[:, None])
        grads = [torch.autograd.grad(gap.sum(), x, retain_graph=True)[0] for gap in gaps.unbind(1)]
    return gaps.detach().scatter(1, y[:, None], 1e10), torch.stack(grads, 1)


def _margin_twice(points: Standing, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """z_y - max_{j != y} z_j, which Square descends and stops by."""
    margin = -margin_loss(points.predict(x), y)
    return margin, margin.clone()


@contextmanager
def _sort_free(fab_base: str) -> Iterator[None]:
    """FAB's projections on a hyperplane, without the library's sort."""

    def linf(t: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return project_on_hyperplane(t, w, b, "Linf")

    def l2(t: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return project_on_hyperplane(t, w, b, "L2")

    with (
        mock.patch(f"{fab_base}.projection_linf", linf),
        mock.patch(f"{fab_base}.projection_l2", l2),
    ):
        yield


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
        from pyautoattack import AutoAttack as Library  # noqa: TID251

        return "pyautoattack", Library
    except ImportError:
        pass
    try:
        from autoattack import AutoAttack as Library  # noqa: TID251

        return "autoattack", Library
    except ImportError as error:
        raise ImportError("AutoAttack needs: pip install pyautoattack") from error
