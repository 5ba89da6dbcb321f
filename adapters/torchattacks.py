"""Attacks of torchattacks, with the radius, norm and bounds of a threat model.

Without this adapter, torchattacks takes the radius from a default of each class, sets the global
random generators to the same seed at every call (APGD, APGDT, FAB, Square), and leaves frozen
layers in training mode. With this adapter, norm, eps and bounds come from the threat model, every
call has new noise unless a seed is given, and the training flags of the model's layers and the
global random generators are restored at the end of a call.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugin.attacks.contract import guarded
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.random import forked
from robust_plugin.threat.layers import UnitBox
from robust_plugin.threat.model import ThreatModel, check_threat, per_point

__all__ = ["TorchAttack", "torchattack"]

# Classes that are refused because they do not do what their name says, each with the reason and an
# alternative.
_REFUSED = {
    "AutoAttack": "it runs 10 iterations where AutoAttack runs 100; take "
    "robust_plugin.adapters.autoattack.AutoAttack",
    "CW": "it drops negative logits and cannot move pixels at exactly 0 or 1; take "
    "pgd(threat, loss='margin', keep='best')",
    "LGV": "it trains models of its own; attack those by another class",
    "MultiAttack": "give evaluate several attacks instead; it reports the worst case of each point",
    "VANILA": "it returns the clean inputs, which evaluate reports anyway",
}
# Classes with a radius but without an argument ``norm`` move in Linf, except these.
_L2 = ("PGDL2", "PGDRSL2")
# The names of the argument with the radius.
_RADIUS = ("eps", "max_epsilon")
# How far rounding may take a result outside the bounds, as a share of high - low.
_OUTSIDE = 1e-4
# Arguments that the user cannot choose: the threat model, the seed and the model decide them.
_GIVEN = ("model", "norm", "seed", "n_classes", *_RADIUS)


@explain_wrong_calls
@dataclass(frozen=True)
class TorchAttack:
    """An attack of torchattacks as ``attack(model, x, y) -> x_adv``.

    Classes without a radius (DeepFool, JSMA, OnePixel, EAD and others) search for a small
    perturbation of any size. If the perturbation is larger than eps, the point counts as not fooled
    and its clean input is returned. If the options have no ``alpha`` (step size), the ratio of
    alpha to the radius is that of the class's defaults.

    Attributes:
        attack: class of torchattacks, or an instance whose radius is the eps of the threat model.
        threat: threat model: norm, eps and bounds.
        options: arguments of the class's constructor by name, such as steps and alpha, for inputs
            in [0, 1].
        seed: seed of the noise; None takes a new one from torch's global generator at each call.

    Raises:
        TypeError: if ``attack`` is not an attack of torchattacks.
        ValueError: for classes that do not do what their name says; options that the threat model
            decides or that the class does not have; a class of another norm; an instance with
            another radius, in normalisation mode, in training mode or with the labels as targets.
            A call of the attack raises it if the library fails.
        ImportError: if torchattacks is not installed.
    """

    attack: Any
    threat: ThreatModel
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        library = _library()
        check_threat(self.threat)
        kind = self.attack if isinstance(self.attack, type) else type(self.attack)
        if not issubclass(kind, library.attack.Attack):
            raise TypeError(
                f"attack is {self.attack!r}; give a class of torchattacks, as torchattacks.PGD."
            )
        for each in kind.__mro__:  # a subclass of a refused class is refused, too
            if each.__name__ in _REFUSED and each.__module__.startswith(library.__name__):
                raise ValueError(f"torchattacks.{each.__name__}: {_REFUSED[each.__name__]}.")
        norm = "L2" if kind.__name__ in _L2 else "Linf"
        if self._radius and "norm" not in self._parameters and norm != self.threat.norm:
            raise ValueError(
                f"torchattacks.{kind.__name__} moves in {norm}, the threat model is {self.threat}."
            )
        if isinstance(self.attack, type):
            self._check_options()
        else:
            self._check_instance()

    @property
    def name(self) -> str:
        """The name of the attack in reports, such as ``"torchattacks.PGD"``."""
        return f"torchattacks.{self._kind.__name__}"

    @property
    def _kind(self) -> type:
        return self.attack if isinstance(self.attack, type) else type(self.attack)

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self._kind).parameters

    @property
    def _radius(self) -> str | None:
        """The name of the class's argument for the radius; None for a class without a radius."""
        return next((name for name in _RADIUS if name in self._parameters), None)

    def _check_options(self) -> None:
        """Raise a ValueError for options that the class has not, or that the user cannot choose."""
        legal = [name for name in self._parameters if name not in _GIVEN]
        if unknown := [name for name in self.options if name not in legal]:
            raise ValueError(
                f"{self.name} has no option {unknown[0]!r} to choose; legal: {', '.join(legal)}. "
                "norm and eps are the threat model's."
            )

    def _check_instance(self) -> None:
        """Raise a ValueError unless the instance fits the threat model, in evaluation mode."""
        given = self.attack
        if self.options:
            raise ValueError("options are for a class; the instance was built with its own.")
        if given.normalization_used is not None or given._normalization_applied is not None:
            raise ValueError(f"{self.name} is in normalisation mode; normalise inside the model.")
        if given._model_training or given._batchnorm_training or given._dropout_training:
            raise ValueError(f"{self.name} would attack in training mode; leave that at False.")
        if given.attack_mode == "targeted(label)":
            raise ValueError(f"{self.name} takes the labels as targets; choose another mode.")
        for ours, theirs in (("norm", "norm"), ("eps", self._radius)):
            if theirs and getattr(given, theirs, None) not in (None, getattr(self.threat, ours)):
                raise ValueError(
                    f"{self.name} has {theirs}={getattr(given, theirs)}, the threat model is "
                    f"{self.threat} (eps = {self.threat.eps!r}); give the class instead."
                )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return adversarial inputs, shape [B, ...].

        Args:
            model: the network; the training flags of its layers are restored at the end.
            x: inputs, shape [B, ...], within [low, high].
            y: labels, shape [B].
        """
        return guarded(self._run, self.threat)(model, x, y)

    def _run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        box = UnitBox(model, self.threat, x)
        seed = self.seed if self.seed is not None else int(torch.randint(2**31, (1,)))
        with forked(seed, x.device), _numpy_seeded(seed), self._failures(x):
            attack = self._build(box, box.shrunk(x), seed)
            result: Tensor = attack(box.shrunk(x), y)
        x_adv = self._in_box(box.grown(result.detach().to(x)))
        if self._radius:
            return x_adv
        inside = self.threat.norms(x_adv - x) <= self.threat.eps
        return torch.where(per_point(inside, x), x_adv, x)

    def _in_box(self, x_adv: Tensor) -> Tensor:
        """Return inputs without values that rounding has put outside [low, high]: they are clamped.

        With EADL1, values may be 1e-5 outside. Values far outside stay, so that checks find them.

        Args:
            x_adv: adversarial inputs, shape [B, ...].
        """
        inside = x_adv.clamp(self.threat.low, self.threat.high)
        rounding = _OUTSIDE * (self.threat.high - self.threat.low)
        return torch.where((x_adv - inside).abs() <= rounding, inside, x_adv)

    @property
    def versions(self) -> dict[str, str]:
        """The version of torchattacks, as ``{"torchattacks": version}``."""
        return {"torchattacks": metadata.version("torchattacks")}

    @contextmanager
    def _failures(self, x: Tensor) -> Iterator[None]:
        """Within the context, turn any error of the library into a ValueError with one sentence.

        Args:
            x: inputs of the attack; the error message names their shape.
        """
        try:
            yield
        except Exception as error:
            reason = str(error).strip().splitlines() or ["no word of why"]
            raise ValueError(
                f"{self.name} failed in {self.threat} on inputs of shape {tuple(x.shape)} "
                f"({type(error).__name__}: {reason[0]}); it may not take this norm, number of "
                "classes or shape: take another class."
            ) from error

    def _build(self, box: UnitBox, x: Tensor, seed: int) -> Any:
        """Return the library's attack object for this model and this call.

        Args:
            box: the model on inputs in [0, 1].
            x: inputs in [0, 1], shape [B, ...].
            seed: seed of the noise.
        """
        if isinstance(self.attack, type):
            built: Any = self._kind(box, **self._arguments(box.threat.eps))
        else:
            # A deep copy, because SparseFool contains another attack; the model is not copied.
            theirs = self.attack.model
            built = copy.deepcopy(self.attack, {id(theirs): theirs})
            built.set_model(box)
        built.set_device(x.device)
        if hasattr(built, "seed"):
            built.seed = seed
        if hasattr(built, "n_classes"):
            with torch.no_grad():
                built.n_classes = box(x[:1]).shape[1]
        return built

    def _arguments(self, eps: float) -> dict[str, Any]:
        """Return the arguments of the class's constructor, without the model.

        Args:
            eps: radius for inputs in [0, 1].
        """
        arguments = dict(self.options)
        defaults = {name: each.default for name, each in self._parameters.items()}
        if "norm" in defaults:
            arguments["norm"] = self.threat.norm
        if self._radius:
            arguments[self._radius] = eps
            if "alpha" in defaults and "alpha" not in arguments:
                arguments["alpha"] = defaults["alpha"] * eps / defaults[self._radius]
        return arguments


@explain_wrong_calls
def torchattack(name: str, threat: ThreatModel, *, seed: int | None = None) -> TorchAttack:
    """Return an attack by the name of its class, with the default options of that class.

    Args:
        name: name of a class of torchattacks, such as ``"PGD"``.
        threat: threat model: norm, eps and bounds.
        seed: seed of the noise; None takes a new one from torch's global generator at each call.

    Raises:
        ValueError: if torchattacks has no such class; the message lists those it has.
        ImportError: if torchattacks is not installed.
    """
    library = _library()
    legal = [each for each in library.__all__ if each not in _REFUSED]
    if name not in (*legal, *_REFUSED):
        raise ValueError(f"torchattacks has no {name!r}; legal: {', '.join(legal)}.")
    return TorchAttack(getattr(library, name), threat, seed=seed)


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Within the context, seed NumPy's global generator, which Pixle and OnePixel use.

    Its state is restored at the end.
    """
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _library() -> Any:
    """Return the module torchattacks."""
    try:
        import torchattacks
    except ImportError as error:
        raise ImportError(
            "torchattacks is missing: pip install --no-deps torchattacks==3.5.1 scipy (its pinned "
            "requests of 2020 is not needed)"
        ) from error
    return torchattacks


def __dir__() -> list[str]:
    return sorted(__all__)
