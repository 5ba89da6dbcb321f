"""Run one component of AutoAttack, such as apgd-ce or square, on one batch of points.

In Linf and L2 the implementations of this package run (apgd.py, fab.py and square.py in
``robust_plugin/attacks``), with the library's parameters. In L1, and for networks that are random
on purpose, the library's implementations run.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.adapters.autoattack.library import library, quiet
from robust_plugin.attacks.apgd import apgd
from robust_plugin.attacks.fab import FabSettings, fab
from robust_plugin.attacks.losses import dlr_loss, targeted_dlr_loss
from robust_plugin.attacks.square import square
from robust_plugin.attacks.survivors import AllFooled, Survivors
from robust_plugin.threat.model import ThreatModel


class Component:
    """One component of AutoAttack, for batches of inputs in [0, 1].

    Args:
        name: name of the component in the library, such as ``"apgd-ce"``.
        version: version of AutoAttack, which decides the component's parameters.
        threat: threat model with bounds [0, 1].
        device: device of the inputs.

    Attributes:
        original: the library's AutoAttack object, with the parameters of all components.
        for_random: whether the network is random on purpose, so that the library's implementation
            runs.
    """

    def __init__(self, name: str, version: str, threat: ThreatModel, device: torch.device) -> None:
        self.name, self.threat, self.for_random = name, threat, version == "rand"
        _, made = library()
        version = "standard" if version == "screen" else version
        with quiet(), redirect_stdout(io.StringIO()):  # the package from GitHub prints
            self.original = made(
                nn.Identity(), norm=threat.norm, eps=threat.eps, version=version, device=device
            )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return adversarial inputs, shape [B, ...]; the clean input of a point that is not fooled.

        Args:
            model: network on inputs in [0, 1].
            x: inputs, shape [B, ...].
            y: labels, shape [B].
        """
        points = Survivors(model, x, y, self.threat)
        with quiet(), suppress(AllFooled):
            if self.for_random or self.threat.norm == "L1":
                self._by_the_library(points)
            elif self.name.startswith("apgd"):
                self._apgd(points)
            elif self.name.startswith("fab"):
                self._fab(points)
            else:
                settings = self.original.square
                square(points, queries=settings.n_queries, share=settings.p_init)
        return points.x_adv

    def _apgd(self, points: Survivors) -> None:
        settings = self._apgd_of_the_library()
        for target in self._targets(points, settings) if self.name == "apgd-t" else [None]:
            for _ in range(settings.n_restarts):
                loss = self._loss(points, target)
                apgd(points, loss, steps=settings.n_iter, rho=settings.thr_decr)

    def _apgd_of_the_library(self) -> Any:
        return self.original.apgd_targeted if self.name == "apgd-t" else self.original.apgd

    def _loss(self, points: Survivors, target: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the component's loss for some points of the batch, as a function.

        Args:
            points: all points of the batch.
            target: target class of each point, shape [B]; None for an untargeted loss.

        Returns:
            Function ``loss(logits, rows)`` for R of the points. It takes their logits, shape [R,
            classes], and their indices into the batch, shape [R], and returns a loss per point,
            shape [R].
        """

        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            y = points.y[rows]
            if target is not None:
                return targeted_dlr_loss(logits, y, target[rows])
            if self.name == "apgd-dlr":
                return dlr_loss(logits, y)
            return F.cross_entropy(logits, y, reduction="none")

        return loss

    def _fab(self, points: Survivors) -> None:
        given = self.original.fab
        settings = FabSettings(given.n_iter, given.eta, given.beta, given.alpha_max)
        for target in self._targets(points, given) if self.name == "fab-t" else [None]:
            for restart in range(given.n_restarts if target is None else 1):
                fab(points, target, settings, random_start=restart > 0)

    def _targets(self, points: Survivors, settings: Any) -> list[Tensor]:
        """Return the target classes of a targeted component, one tensor of shape [B] per target.

        The targets of a point are the classes with the highest logits after the predicted class,
        highest first; at most ``n_target_classes`` of them.

        Args:
            points: the points of the batch.
            settings: the library's attack object, which has ``n_target_classes``.
        """
        order = points.logits.sort(dim=1).indices
        last = min(settings.n_target_classes + 1, order.shape[1])
        return [order[:, -k] for k in range(2, last + 1)]

    def _by_the_library(self, points: Survivors) -> None:
        """Run the library's implementation of the component; ``points`` stores what it finds.

        It is needed in L1, for which this package has no APGD, FAB and Square, and for random
        networks, where a single wrong answer does not mean that a point is fooled.

        Args:
            points: the points of the batch.
        """
        if self.name == "square":
            self._square_by_the_library(points)
        elif self.name.startswith("fab"):
            self._fab_by_the_library(points)
        else:
            self._apgd_by_the_library(points)

    def _apgd_by_the_library(self, points: Survivors) -> None:
        attack = self._apgd_of_the_library()
        if self.for_random:
            attack.loss, attack.model = self.name.removeprefix("apgd-"), points.model
            attack.seed = int(torch.randint(2**31, (1,)))
            points.x_adv = attack.perturb(points.x, points.y)
            return
        attack.loss = "dlr-targeted" if self.name == "apgd-t" else self.name.removeprefix("apgd-")
        attack.model = points
        for target in self._targets(points, attack) if self.name == "apgd-t" else [None]:
            for _ in range(attack.n_restarts):
                rows = points.rest()
                attack.y_target = None if target is None else target[rows]
                x, y = points.x[rows], points.y[rows]
                attack.init_hyperparam(x)
                # In L1, the radius shrinks from three times eps over two to eps.
                steps = [math.ceil(share * attack.n_iter_orig) for share in (0.3, 0.3)]
                steps.append(attack.n_iter_orig - sum(steps))
                attack.decr_eps_pgd(x, y, [k * attack.eps_orig for k in (3.0, 2.0, 1.0)], steps)

    def _fab_by_the_library(self, points: Survivors) -> None:
        attack, targeted = self.original.fab, self.name == "fab-t"
        attack.predict = points.predict
        attack._get_predicted_label = lambda x: points(x).argmax(1)
        for place in range(2, len(self._targets(points, attack)) + 2) if targeted else (0,):
            attack.target_class = place
            for restart in range(attack.n_restarts if not targeted else 1):
                rows = points.rest()
                attack.attack_single_run(
                    points.x[rows],
                    points.y[rows],
                    use_rand_start=restart > 0,
                    is_targeted=targeted,
                )

    def _square_by_the_library(self, points: Survivors) -> None:
        attack, rows = self.original.square, points.rest()
        attack.predict = points.predict
        with torch.inference_mode():
            x, y = points.x[rows].clone(), points.y[rows].clone()
            attack.init_hyperparam(x)
            _, x_adv = attack.attack_single_run(x, y)
            points(x_adv)
