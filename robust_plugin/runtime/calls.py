"""Calls with wrong arguments: the error says which names are legal and what to type.

Python's own message for ``HydraPruner(model, sparsity=0.9)`` names the unknown argument alone.
``explain_wrong_calls`` replaces it by a sentence with the argument that was meant. Signatures,
``help`` and types stay as they are.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

Called = TypeVar("Called", bound=Callable[..., Any])

# Arguments of this package, each with the names that other libraries and papers use for it.
_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "attacks": ("attack", "attackers"),
    "batch_size": ("batch", "bs"),
    "beta": ("lam", "lambda_", "lamb", "weight"),
    "certifier": ("certifiers", "prover", "provers", "verifier"),
    "density": ("sparsity", "amount", "pruning_ratio", "prune_ratio", "ratio"),
    "epochs": ("num_epochs", "n_epochs"),
    "eps": ("epsilon", "radius"),
    "example_inputs": ("dummy_input", "input", "inputs", "sample", "x"),
    "exclude": ("ignored", "ignored_layers", "ignore", "skip"),
    "high": ("clip_max", "max", "vmax"),
    "ignored": ("exclude", "ignored_layers", "ignore", "skip"),
    "loader": ("dataloader", "data", "dataset", "test_loader"),
    "low": ("clip_min", "min", "vmin", "bounds", "clip_values"),
    "methods": ("attack", "attacks", "certifier", "certifiers", "prover", "provers"),
    "model": ("net", "network", "module"),
    "n": ("samples", "num_samples", "n_samples", "N"),
    "norm": ("ord", "p"),
    "path": ("file", "filename", "filepath", "f"),
    "restarts": ("num_restarts", "n_restarts", "nb_restarts"),
    "row": ("attack", "attacks", "name"),
    "samples": ("n", "num_samples", "n_samples"),
    "sigma": ("std", "noise", "noise_sd"),
    "start": ("random_start", "rand_init", "random_init", "init"),
    "step_size": ("alpha", "eps_iter", "eps_step", "lr", "stepsize"),
    "steps": ("iters", "iterations", "num_steps", "nb_iter", "n_iter", "k"),
    "steps_per_epoch": ("steps", "num_steps", "iterations", "total_steps"),
    "threat": ("eps", "epsilon", "radius", "norm", "ord", "p", "threat_model"),
    "x": ("inputs", "images", "input"),
    "y": ("labels", "targets", "target", "label"),
}
# What to type for an argument.
_EXAMPLES = {
    "attack": "attack=pgd(threat)",
    "attacks": "attacks=[pgd(threat)]",
    "bounds": "bounds=ibp_margins",
    "certifier": "certifier=IBP(threat)",
    "density": "density=0.1, the share of weights that is kept (1 - sparsity)",
    "eps": 'eps="8/255"',
    "example_inputs": "example_inputs=x[:1], the inputs of one forward pass",
    "loader": "loader=[(x, y)], or any batches (x, y)",
    "methods": 'methods={"IBP": IBP(threat), "PGD": pgd(threat)}',
    "model": "model=..., an nn.Module",
    "norm": 'norm="Linf"',
    "optimizer": "an optimizer, such as torch.optim.SGD(pruner.set_phase('prune'), lr=0.1)",
    "phase": '"prune" or "finetune"',
    "step_size": 'step_size="2/255"',
    "threat": 'threat=ThreatModel("Linf", eps="8/255"), which holds norm, eps and range',
    "x": "the inputs x, a tensor of shape [B, ...]",
    "y": "the labels y, a tensor of shape [B]",
}


def explain_wrong_calls(target: Called) -> Called:
    """Return a function or class whose wrong calls raise a TypeError that says what to type.

    A class is changed in place: its constructor, its public methods and ``__call__`` are wrapped. A
    legal call costs about 0.1 microseconds more.

    Args:
        target: function or class of the public interface. For a dataclass, put this decorator above
            that of the dataclass.

    >>> @explain_wrong_calls
    ... def prune(model, *, density): ...
    >>> prune("model", sparsity=0.9)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    TypeError: prune has no argument 'sparsity'; give density=0.1, ... Legal: model, density.
    """
    if not isinstance(target, type):
        return cast(Called, _explained(target))
    for name, each in list(vars(target).items()):
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(each, classmethod):
            setattr(target, name, classmethod(_explained(each.__func__)))
        elif inspect.isfunction(each):
            setattr(target, name, _explained(each))
    return target


def _explained(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls ``function`` and explains the errors of wrong calls."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            # An error of the call itself has no frame below this one.
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            explanation = _explanation(function, args, kwargs)
            if not explanation:
                raise
        raise TypeError(explanation)

    return call


def _explanation(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """Return what is wrong with the arguments of a call, or "" if they fit the signature.

    Args:
        function: the function that was called.
        args: its arguments by position.
        kwargs: its arguments by name.
    """
    parameters = list(inspect.signature(function).parameters.values())
    owner, _, name = function.__qualname__.rpartition("<locals>.")[2].rpartition(".")
    if owner:  # a method: the first argument is the instance or the class
        parameters, args = parameters[1:], args[1:]
        name = {"__init__": owner, "__call__": f"{owner}(...)"}.get(name, name)
    legal = [each.name for each in parameters]
    places = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if unknown := [word for word in kwargs if word not in legal]:
        return (
            f"{name} has no argument {unknown[0]!r}{_meant(unknown[0], legal)}. Legal: "
            f"{', '.join(legal) or 'none'}."
        )
    if len(args) > len(places):
        return _too_many(name, args, places, legal)
    if twice := [word for word in places[: len(args)] if word in kwargs]:
        return f"{name} gets {twice[0]} by position and by name; give it once."
    given = {*places[: len(args)], *kwargs}
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in given]
    if not missing:
        return ""
    return (
        f"{name} takes ({', '.join(legal)}), and got no {' and no '.join(missing)}; give "
        f"{_EXAMPLES.get(missing[0], missing[0])}."
    )


def _too_many(name: str, args: Sequence[Any], places: Sequence[str], legal: Sequence[str]) -> str:
    """Return the error message for more arguments by position than a function takes.

    Args:
        name: name of the function.
        args: the arguments by position.
        places: the names of the arguments that may be given by position.
        legal: the names of all arguments.
    """
    first = places[0] if places else ""
    if first in ("threat", "attack") and hasattr(args[0], "parameters"):  # a network
        return f"{name} takes no model; call what it returns: {name}({first})(model, x, y)."
    if first == "threat" and isinstance(args[0], str | float | int):
        return f"{name} takes no norm and eps; give {_EXAMPLES['threat']}."
    rest = [f"{word}=" for word in legal if word not in places]
    return (
        f"{name} takes {' and '.join(places) or 'nothing'} by position, and got {len(args)} "
        f"values; " + (f"give the rest by name: {', '.join(rest)}." if rest else "leave some out.")
    )


def _meant(word: str, legal: Sequence[str]) -> str:
    """Return the part of a sentence that says which argument an unknown name stands for.

    Args:
        word: the unknown name.
        legal: the names of the arguments that exist.
    """
    meant = [name for name in legal if word in _OTHER_NAMES.get(name, ())]
    meant = meant or difflib.get_close_matches(word, legal, n=1)
    if not meant:
        return ""
    return f"; give {_EXAMPLES[meant[0]]}" if meant[0] in _EXAMPLES else f"; here it is {meant[0]}="


def user_level() -> int:
    """Return the ``stacklevel`` with which a warning names the line that called this package.

    Frames of this package and of torch are left out.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_inside(frame):
        level, frame = level + 1, frame.f_back
    return level


def _is_inside(frame: types.FrameType) -> bool:
    """Return whether a frame runs code of this package or of torch."""
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    return package in (__name__.partition(".")[0], "torch")
