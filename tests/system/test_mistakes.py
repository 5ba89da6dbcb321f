"""Plausible mistakes of a new user: each ends in a sentence that says what to type.

A row is a name, the mistake as a function, the class of its error or warning, and a part of the
message. The message must be one of this package: its error is raised by a ``raise`` in our own
files, not by torch or by Python. ``test_bad_input.py`` has the values that single functions refuse.
"""

# ruff: noqa: E501  (a row of a table is one line)

import copy
import inspect
import json
import linecache
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn
from torch.optim import SGD

import robust_plugin
from robust_plugin import (
    IBP,
    Free,
    Geometric,
    GradualPruner,
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    MinimumNorm,
    Normalize,
    Ramp,
    Report,
    Rounds,
    SecurityCurve,
    Smoothed,
    ThreatModel,
    Verifier,
    adversarial,
    benign,
    carry_optimizer,
    certified,
    checkpoint,
    dense_state_dict,
    evaluate,
    finalize,
    gaussian,
    guarded,
    ibp_margins,
    load_compressed,
    load_dense_state_dict,
    mart,
    mcnemar,
    mixtrain,
    obfuscation,
    pgd,
    replay,
    save_compressed,
    semi_structured,
    smoothadv,
    snip_scores,
    sparse,
    stability,
    trades,
    verify,
    weight_groups,
    wilson_interval,
)
from robust_plugin.adapters import auto_lirpa, autoattack, onnx, torch_pruning
from robust_plugin.adapters import torchattacks as attacks_adapter
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.adapters.autoattack import AutoAttack
from robust_plugin.adapters.onnx import export_onnx
from robust_plugin.adapters.torch_pruning import channel_groups, remove_channels
from robust_plugin.adapters.torchattacks import TorchAttack
from robust_plugin.attacks.contract import SuspectNetwork
from robust_plugin.recipes.cli import main

OURS = tuple(
    str(Path(__file__).parents[2] / floor) for floor in ("robust_plugin", "adapters", "recipes")
)
T = ThreatModel("Linf", eps=0.1)
_FIXED = torch.Generator().manual_seed(0)  # some points that the network of seed 0 gets right
X, Y = torch.rand(4, 8, generator=_FIXED), torch.tensor([0, 1, 0, 1])
IMAGES, LABELS = torch.rand(4, 3, 8, 8, generator=_FIXED), torch.tensor([0, 1, 2, 3])
L2 = ThreatModel("L2", eps=0.1)


def net(*after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2), *after)


def cnn() -> nn.Sequential:
    body = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(4, 4))


def begun(kind: Callable[..., Any] = HydraPruner, **options: Any) -> tuple[Any, SGD]:
    """A pruner whose prune phase has begun, with an optimizer that is followed."""
    pruner = kind(net(), 0.5, **options)
    optimizer = SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer, epochs=1, steps_per_epoch=2)
    return pruner, optimizer


def step(pruner: Any, optimizer: SGD, model: nn.Module | None = None) -> None:
    optimizer.zero_grad()
    benign(pruner.model if model is None else model, X, Y).backward()
    optimizer.step()


def learned(kind: Callable[..., Any] = HydraPruner) -> tuple[Any, SGD]:
    pruner, optimizer = begun(kind)
    step(pruner, optimizer)
    return pruner, optimizer


def attached_and_trained() -> None:
    pruner = HydraPruner(net(), 0.5)
    step(pruner, SGD(pruner.model.parameters(), lr=0.1))


def never_followed() -> None:
    pruner = HydraPruner(net(), 0.5)
    step(pruner, SGD(pruner.set_phase("prune"), lr=0.1))


def phase_skipped() -> None:
    pruner = HydraPruner(net(), 0.5)
    pruner.set_phase("prune")
    pruner.set_phase("finetune")


def never_stepped(then: str) -> None:
    pruner, _ = begun()
    pruner.finalize() if then == "finalize" else pruner.set_phase("finetune")


def no_backward() -> None:
    begun()[1].step()


def trained_a_copy() -> None:
    pruner, optimizer = begun()
    step(pruner, optimizer, copy.deepcopy(pruner.model))


def no_penalty() -> None:
    step(*begun(HarpPruner, control="hinge"))


def two_optimizers() -> None:
    pruner, first = learned()
    pruner.follow(SGD(pruner.model.parameters(), lr=0.1))
    step(pruner, first)


def optimizer_of_the_prune_phase() -> None:
    pruner, optimizer = learned()
    pruner.set_phase("finetune")
    step(pruner, optimizer)


def optimizer_from_before() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    pruner = HydraPruner(model, 0.5)
    pruner.set_phase("prune")
    pruner.follow(optimizer)


def follow(**lengths: Any) -> None:
    pruner = HarpPruner(net(), 0.5)
    pruner.follow(SGD(pruner.set_phase("prune"), lr=0.1), **lengths)


def again(method: str, *arguments: Any) -> None:
    pruner, _ = learned()
    pruner.set_phase("finetune")
    pruner.finalize()
    getattr(pruner, method)(*arguments)


def shrinking(kind: Callable[..., Any] = GradualPruner, steps: int = 0) -> tuple[Any, SGD]:
    """A pruner whose density falls over four steps, of which some are made."""
    pruner = kind(net(), 0.25, schedule="geometric")
    optimizer = SGD(pruner.set_phase("shrink"), lr=0.1)
    pruner.follow(optimizer, epochs=2, steps_per_epoch=2)
    for _ in range(steps):
        step(pruner, optimizer)
    return pruner, optimizer


def shrinking_without_follow() -> None:
    pruner = MagnitudePruner(net(), 0.25, schedule="cubic")
    step(pruner, SGD(pruner.set_phase("shrink"), lr=0.1))


def attached_with_a_schedule_and_trained() -> None:
    pruner = MagnitudePruner(net(), 0.25, schedule="cubic")
    step(pruner, SGD(pruner.model.parameters(), lr=0.1))


def optimizer_of_the_shrink_phase() -> None:
    pruner, optimizer = shrinking(steps=4)
    pruner.set_phase("prune")
    optimizer.step()


def rising() -> None:
    pruner = MagnitudePruner(net(), 0.25, schedule=lambda t, k: k if t in (0.0, 1.0) else 1.0)
    optimizer = SGD(pruner.set_phase("shrink"), lr=0.1)
    pruner.follow(optimizer, epochs=1, steps_per_epoch=3)
    step(pruner, optimizer)


def phases_without(name: str) -> None:
    epochs = {"shrink": 1, "prune": 1, "finetune": 1}
    del epochs[name]
    pruner = GradualPruner(net(), 0.25)
    next(pruner.phases(lambda p: SGD(p, lr=0.1), epochs=epochs, steps_per_epoch=1))


def shrinking_without_lengths() -> None:
    pruner, optimizer = shrinking()
    pruner.follow(optimizer)


def the_state_of_the_shrink_phase_later() -> None:
    early, _ = shrinking(steps=4)
    pruner, _ = shrinking(steps=4)
    pruner.follow(SGD(pruner.set_phase("prune"), lr=0.1))
    pruner.model.load_state_dict(early.model.state_dict())
    pruner.set_phase("finetune")


def report(x: torch.Tensor = X) -> Report:
    return evaluate(net(), [(x, Y)], attacks=[pgd(T, steps=1)])


def saved(folder: Path, **more: Any) -> checkpoint.Checkpoint:
    checkpoint.save(folder / "a.safetensors", model=net(), **more)
    return checkpoint.load(folder / "a.safetensors")


def pickled(folder: Path) -> Path:
    torch.save(net().state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def masked(**options: Any) -> nn.Module:
    return MagnitudePruner(net(), **{"density": 0.5, **options}).model


THREAT = 'give threat=ThreatModel("Linf", eps="8/255")'
ORDER = "the order is (model, x, y)"
Row = tuple[str, Callable[..., Any], type[BaseException], str]

# fmt: off
CALLS: list[Row] = [
    ("sparsity for density", lambda: HydraPruner(net(), sparsity=0.9), TypeError, "has no argument 'sparsity'; give density=0.1, the share"),
    ("amount, as in torch", lambda: MagnitudePruner(net(), amount=0.9), TypeError, "give density=0.1"),
    ("a typing error", lambda: HydraPruner(net(), densty=0.5), TypeError, "has no argument 'densty'; give density=0.1"),
    ("ignored for exclude", lambda: HydraPruner(net(), 0.5, ignored=["0"]), TypeError, "here it is exclude="),
    ("alpha for step_size", lambda: pgd(T, alpha=0.01), TypeError, 'give step_size="2/255"'),
    ("eps to pgd", lambda: pgd(eps=8 / 255), TypeError, THREAT),
    ("eps beside a threat model", lambda: pgd(T, eps=8 / 255), TypeError, THREAT),
    ("norm and eps to pgd", lambda: pgd("Linf", 8 / 255), TypeError, THREAT),
    ("pgd without arguments", lambda: pgd(), TypeError, f"got no threat; {THREAT}"),
    ("norm to IBP", lambda: IBP(norm="Linf", eps=0.1), TypeError, THREAT),
    ("norm to AutoAttack", lambda: AutoAttack(norm="Linf", eps=0.1), TypeError, THREAT),
    ("epsilon", lambda: ThreatModel("Linf", epsilon="8/255"), TypeError, 'give eps="8/255"'),
    ("clip_min", lambda: ThreatModel("Linf", 0.1, clip_min=0), TypeError, "here it is low="),
    ("bounds by position", lambda: ThreatModel("Linf", 0.1, 0, 1), TypeError, "give the rest by name: low=, high="),
    ("num_steps", lambda: pgd(T, num_steps=3), TypeError, "here it is steps="),
    ("lam for beta", lambda: trades(T, lam=6), TypeError, "here it is beta="),
    ("beta by position", lambda: trades(T, 6), TypeError, "give the rest by name: beta=, steps="),
    ("steps by position", lambda: pgd(T, 10), TypeError, "takes threat by position, and got 2 values; give the rest by name: steps="),
    ("rates by position", lambda: HydraPruner(net(), 0.5, "erk"), TypeError, "takes model and density by position"),
    ("density twice", lambda: HydraPruner(net(), 0.5, density=0.5), TypeError, "gets density by position and by name; give it once"),
    ("sigma by position", lambda: gaussian(0.25), TypeError, "give the rest by name: sigma="),
    ("std for sigma", lambda: Smoothed(std=0.25), TypeError, "here it is sigma="),
    ("steps_per_epochs", lambda: follow(epochs=1, steps_per_epochs=1), TypeError, "here it is steps_per_epoch="),
    ("set_phase without a phase", lambda: HydraPruner(net(), 0.5).set_phase(), TypeError, 'give "prune" or "finetune"'),
    ("follow nothing", lambda: begun()[0].follow(), TypeError, "got no optimizer; give an optimizer, such as torch.optim.SGD(pruner.set_phase("),
    ("attack for attacks", lambda: evaluate(net(), [(X, Y)], attack=pgd(T)), TypeError, "give attacks=[pgd(threat)]"),
    ("attacks by position", lambda: evaluate(net(), [(X, Y)], [pgd(T)]), TypeError, "give the rest by name: attacks=, certifier="),
    ("certifiers", lambda: evaluate(net(), [(X, Y)], certifiers=[IBP(T)]), TypeError, "give certifier=IBP(threat)"),
    ("attacks to verify", lambda: verify(net(), X, Y, attacks=[pgd(T)]), TypeError, 'give methods={"IBP": IBP(threat)'),
    ("model by position", lambda: checkpoint.save("a", net()), TypeError, "give the rest by name: model=, pruner="),
    ("example inputs forgotten", lambda: channel_groups(cnn()), TypeError, "give example_inputs=x[:1]"),
    ("exclude for ignored", lambda: channel_groups(cnn(), IMAGES, exclude=["0"]), TypeError, "here it is ignored="),
    ("options as arguments", lambda: TorchAttack(torchattacks.PGD, T, steps=3), TypeError, "has no argument 'steps'"),
    ("labels forgotten", lambda: pgd(T)(net(), X), TypeError, "PGD(...) takes (model, x, y), and got no y; give the labels y"),
    ("labels forgotten in a loss", lambda: trades(T)(net(), X), TypeError, "objective takes (model, x, y), and got no y"),
    ("bounds forgotten", lambda: mixtrain(T), TypeError, "give bounds=ibp_margins"),
    ("no state to load into", lambda: load_compressed("a", net()), TypeError, "takes path by position, and got 2 values; leave some out"),
    ("the small network forgotten", lambda: carry_optimizer(net(), SGD(net().parameters())), TypeError, "got no small"),
    ("attack for a row", lambda: report().compare(report(), attack="PGD-1"), TypeError, "has no argument 'attack'; here it is row="),
]
KINDS: list[Row] = [
    ("an uncalled attack", lambda: evaluate(net(), [(X, Y)], attacks=[pgd], threat=T), TypeError, "give what it returns, such as pgd(threat)"),
    ("an uncalled attack to train on", lambda: adversarial(pgd), TypeError, "give what it returns, such as pgd(threat)"),
    ("an attack by its factory", lambda: pgd(net(), X, Y), TypeError, "call what it returns: pgd(threat)(model, x, y)"),
    ("an objective by its factory", lambda: trades(net(), X, Y), TypeError, "call what it returns: trades(threat)(model, x, y)"),
    ("a pruner as attack", lambda: evaluate(net(), [(X, Y)], attacks=[HarpPruner], threat=T), TypeError, "HarpPruner is a class, and no attack; give attacks, as pgd(threat)"),
    ("a class as attack", lambda: evaluate(net(), [(X, Y)], attacks=[MinimumNorm], threat=T), TypeError, "such as MinimumNorm(threat)"),
    ("a class as certifier", lambda: evaluate(net(), [(X, Y)], certifier=IBP, threat=T), TypeError, "call what it returns: IBP(threat)"),
    ("a certifier as attack", lambda: evaluate(net(), [(X, Y)], attacks=[IBP(T)]), TypeError, "IBP is a certifier, and no attack; give it as certifier="),
    ("a threat model as attack", lambda: evaluate(net(), [(X, Y)], attacks=[T]), TypeError, "is no attack; give callables, such as pgd(threat)"),
    ("an attack as threat model", lambda: trades(pgd(T)), TypeError, "threat is a PGD; give a ThreatModel"),
    ("guarded the wrong way round", lambda: guarded(T, pgd(T)), TypeError, "threat is a PGD; give a ThreatModel"),
    ("an objective as attack", lambda: evaluate(net(), [(X, Y)], attacks={"t": trades(T)}, threat=T), ValueError, "legal: adversarial inputs of the same shape"),
    ("one attack, no list", lambda: evaluate(net(), [(X, Y)], attacks=pgd(T)), TypeError, "give a list of attacks"),
    ("names of attacks", lambda: evaluate(net(), [(X, Y)], attacks=["pgd"], threat=T), TypeError, "'pgd' is no attack; give callables"),
    ("two attacks of one name", lambda: evaluate(net(), [(X, Y)], attacks=[pgd(T), pgd(T, step_size=0.02)]), ValueError, "give attacks={name: attack} with names of your own"),
    ("an attack without threat model", lambda: evaluate(net(), [(X, Y)], attacks=[lambda m, x, y: x]), ValueError, "give evaluate(..., threat=...)"),
    ("methods as classes", lambda: verify(net(), X, Y, {"IBP": IBP}), TypeError, "give what it makes, such as IBP(threat)"),
    ("methods as a list", lambda: Verifier([IBP(T)]), TypeError, "give a dict of provers and attacks by name"),
    ("a certifier as bounds", lambda: certified(T, bounds=LiRPA(T)), TypeError, 'LiRPA(threat, "CROWN-IBP").bounds'),
    ("a number as ramp", lambda: certified(T, ramp=0.5), TypeError, "give a Ramp, as Ramp(start=0.0, end=0.6)"),
    ("a number as kappa", lambda: certified(T, kappa=0.5), ValueError, "legal: two numbers (start, end)"),
    ("a number as threat model", lambda: Free(0.1), TypeError, "give a ThreatModel"),
    ("a name as torchattack", lambda: TorchAttack("PGD", T), TypeError, "as torchattacks.PGD"),
    ("attack(x, y, model)", lambda: pgd(T)(X, Y, net()), TypeError, ORDER),
    ("certifier(x, y, model)", lambda: IBP(T)(X, Y, net()), TypeError, ORDER),
    ("LiRPA(x, y, model)", lambda: LiRPA(T)(X, Y, net()), TypeError, ORDER),
    ("loss(x, y, model)", lambda: benign(X, Y, net()), TypeError, ORDER),
    ("robust loss(x, y, model)", lambda: trades(T)(X, Y, net()), TypeError, ORDER),
    ("certified loss(x, y, model)", lambda: certified(T)(X, Y, net()), TypeError, ORDER),
    ("noisy loss(x, y, model)", lambda: stability(sigma=0.1)(X, Y, net()), TypeError, ORDER),
    ("certify(x, y, model)", lambda: Smoothed(0.1, n=10).certify(X, Y, net()), TypeError, ORDER),
    ("loss of outputs", lambda: adversarial(pgd(T))(net()(X), X, Y), TypeError, ORDER),
    ("a class as model", lambda: HydraPruner(nn.ReLU, 0.5), TypeError, "model is the class ReLU; give an nn.Module, made as ReLU()"),
    ("a state as model", lambda: pgd(T)(net().state_dict(), X, Y), TypeError, "A state_dict goes into one by model.load_state_dict"),
    ("a pruner as model", lambda: finalize(MagnitudePruner(net(), 0.5)), TypeError, "This object has one as its attribute model"),
    ("density before the model", lambda: HydraPruner(0.5, net()), TypeError, "model is a float; give an nn.Module"),
    ("NumPy labels", lambda: mart(T)(net(), X, Y.numpy()), TypeError, "labels are a ndarray; give a tensor, as torch.as_tensor(...) makes"),
    ("NumPy inputs", lambda: benign(net(), X.numpy(), Y), TypeError, "inputs are a ndarray; give a tensor"),
    ("inputs as a list", lambda: obfuscation(net(), X.tolist(), Y, T), TypeError, "inputs are a list; give a tensor"),
    ("weights as path", lambda: load_dense_state_dict(net(), "weights.pt"), TypeError, "as torch.load(path, weights_only=True) reads it"),
    ("a model as state", lambda: load_dense_state_dict(net(), net()), TypeError, "as its state_dict()"),
    ("state before the model", lambda: load_dense_state_dict(net().state_dict(), net()), TypeError, "the order is load_dense_state_dict(model, state)"),
    ("model before the path", lambda: save_compressed(net(), "a"), TypeError, "path is a Sequential; give the name of a file"),
    ("a network without its pruner", lambda: remove_channels(cnn()), TypeError, "give the pruner that masks the channels"),
    ("accuracies to compare", lambda: mcnemar(0.5, 0.6), TypeError, "give for each point whether it is right"),
    ("layers as groups", lambda: HydraPruner(net(), 0.5, groups=["0"]), TypeError, "Layers that stay dense go to exclude="),
    ("a number of layers to exclude", lambda: HydraPruner(net(), 0.5, exclude=1), TypeError, "give a list of layers or of their names"),
    ("a shape as example", lambda: channel_groups(cnn(), (1, 3, 8, 8)), TypeError, "give a tensor or a tuple of tensors, as x[:1]"),
    ("inputs before the path", lambda: export_onnx(net(), X, "a.onnx"), TypeError, "path is a Tensor; give the name of a file"),
]
VALUES: list[Row] = [
    ("density in per cent", lambda: HydraPruner(net(), 5), ValueError, "density is 5; legal: 0 < density <= 1, the share kept. 5 % is density=0.05."),
    ("density as text", lambda: HydraPruner(net(), "0.05"), ValueError, "Give a number, without quotes"),
    ("eps in grey levels", lambda: ThreatModel("Linf", 8), ValueError, 'such as "8/255"'),
    ("a negative eps", lambda: ThreatModel("Linf", "-8/255"), ValueError, "give a number >= 0 or a fraction"),
    ("norm linf", lambda: ThreatModel("linf", 0.1), ValueError, "legal: Linf, L2, L1; give 'Linf'"),
    ("norm L-inf", lambda: ThreatModel("L-inf", 0.1), ValueError, "give 'Linf'"),
    ("norm Linfty", lambda: ThreatModel("Linfty", 0.1), ValueError, "give 'Linf'"),
    ("norm inf", lambda: ThreatModel(np.inf, 0.1), ValueError, "give 'Linf'"),
    ("norm 2", lambda: ThreatModel(2, 0.1), ValueError, "give 'L2'"),
    ("step_size in grey levels", lambda: pgd(T, step_size=2), ValueError, "more than the whole box [0, 1] is wide"),
    ("steps as text", lambda: pgd(T, steps="10"), ValueError, "steps is '10'; legal: at least 1, whole"),
    ("the loss's name in torch", lambda: pgd(T, loss="cross_entropy"), ValueError, "legal: ce, kl, margin, dlr"),
    ("a random start", lambda: pgd(T, start="random"), ValueError, "legal: uniform, gaussian, clean"),
    ("beta as text", lambda: trades(T, beta="6"), ValueError, "beta is '6'; legal: at least 0"),
    ("a ramp of epochs", lambda: Ramp(10, 60), ValueError, "legal: shares of the phase"),
    ("a ramp as text", lambda: Ramp("0", "1"), ValueError, "legal: shares of the phase"),
    ("progress in text", lambda: certified(T).progress("1", 2), ValueError, "legal: 0 <= epoch <= epochs"),
    ("replay as text", lambda: replay([1], "2"), ValueError, "times is '2'; legal: at least 1, whole"),
    ("replay nothing, unused", lambda: replay([1], 0), ValueError, "times is 0; legal: at least 1"),
    ("no sigma", lambda: Smoothed(0), ValueError, "sigma is 0; legal: a number above 0"),
    ("sigma in grey levels", lambda: Smoothed(64), ValueError, "such as 0.25 for inputs in [0, 1]"),
    ("n as float", lambda: Smoothed(0.25, n=1e3), ValueError, "n is 1000.0; legal: at least 1, whole"),
    ("alpha as text", lambda: Smoothed(0.25, alpha="0.001"), ValueError, "alpha is '0.001'; legal: between 0 and 1"),
    ("a seed as text", lambda: Smoothed(0.25, seed="a"), ValueError, "seed is 'a'; legal: a whole number"),
    ("smoothadv in Linf", lambda: smoothadv(T), ValueError, "smoothadv moves in L2"),
    ("samples as text", lambda: smoothadv(L2, samples="2"), ValueError, "samples is '2'"),
    ("points as text", lambda: mixtrain(T, bounds=ibp_margins, points="1"), ValueError, "points is '1'"),
    ("targets as text", lambda: MinimumNorm(T, targets="9"), ValueError, "targets='9'"),
    ("gamma_step as text", lambda: HarpPruner(net(), 0.5, control="hinge", gamma_step="1"), ValueError, "gamma_step is '1'; legal: at least 0"),
    ("learn nothing", lambda: HarpPruner(net(), 0.5, learn=None), ValueError, "learn is None; legal: any of"),
    ("a pattern with a density", lambda: HydraPruner(net(), 0.5, pattern="2:4"), ValueError, "a pattern or a dict of rates implies it; omit it"),
    ("a layer that is not there", lambda: HydraPruner(cnn(), 0.5, exclude=["00"]), ValueError, "which is not in the model; it has"),
    ("rates of layers, not of weights", lambda: HydraPruner(net(), rates={"0": 0.5, "2": 0.5}), ValueError, "hold unknown ['0', '2']; legal: ['0.weight', '2.weight']"),
    ("rates of one layer", lambda: HydraPruner(net(), rates={"0.weight": 0.5}), ValueError, "rates lack ['2.weight']"),
    ("rates by a function of weights", lambda: HydraPruner(net(), 0.5, rates=lambda w: [0.5]), TypeError, "rates(weights, costs, density)"),
    ("rates by a function of one number", lambda: HydraPruner(net(), 0.5, rates=lambda w, c, d: d), ValueError, "legal: a list of 2 densities"),
    ("scores in NumPy", lambda: HydraPruner(net(), 0.5, scores={"0.weight": np.ones((6, 8))}), TypeError, "the scores of 0.weight are a ndarray; give a tensor"),
    ("scores uncalled", lambda: HydraPruner(net(), 0.5, scores=snip_scores), TypeError, "snip_scores takes (model, x, y, loss)"),
    ("a budget in capitals", lambda: HydraPruner(net(), 0.5, budget="FLOPs"), ValueError, "legal: params, flops, channels"),
    ("example inputs of another size", lambda: HydraPruner(net(), 0.5, budget="flops", example_inputs=X[:, :5]), ValueError, "give what one forward pass takes, as x[:1]"),
    ("channels of a batch of another size", lambda: channel_groups(cnn(), torch.rand(1, 1, 8, 8)), ValueError, "give what its forward takes"),
    ("sparse with inputs of another size", lambda: sparse(net(), X[:, :3]), ValueError, "give what its forward takes"),
    ("ONNX with inputs of another size", lambda: export_onnx(net(), "a.onnx", X[:, :3]), ValueError, "give what its forward takes"),
    ("a mean of a single number", lambda: Normalize(0.5, 0.5), TypeError, "one number per channel, as (0.5, 0.5, 0.5)"),
    ("a share of points", lambda: wilson_interval(0.45, 100), ValueError, "A share is successes / n"),
    ("a radius without a list", lambda: SecurityCurve("Linf", (0.0,)).table("8/255"), TypeError, 'give a list, such as ["4/255", "8/255"]'),
    ("a curve of no points", lambda: SecurityCurve("Linf", ()), ValueError, "give one distance per point"),
    ("seconds as text", lambda: verify(net(), X, Y, {"IBP": IBP(T)}, seconds="5"), ValueError, "seconds is '5'; legal: above 0"),
    ("a verdict that does not exist", lambda: verify(net(), X, Y, {"IBP": IBP(T)}).share("proved"), ValueError, "legal: verified, falsified"),
]
SCHEDULES: list[Row] = [
    ("a schedule of another name", lambda: GradualPruner(net(), 0.25, schedule="linear"), ValueError, "legal: 'at_once', 'geometric', 'cubic', a schedule such as Geometric(until=0.5)"),
    ("a schedule in capitals", lambda: MagnitudePruner(net(), 0.25, schedule="Cubic"), ValueError, "legal: 'at_once', 'geometric', 'cubic'"),
    ("an uncalled schedule", lambda: MagnitudePruner(net(), 0.25, schedule=Geometric), ValueError, "a schedule such as Geometric(until=0.5) or Rounds(4)"),
    ("densities as schedule", lambda: MagnitudePruner(net(), 0.25, schedule=[0.5, 0.25]), ValueError, "or a function schedule(passed, density)"),
    ("a number of rounds as schedule", lambda: MagnitudePruner(net(), 0.25, schedule=4), ValueError, "Rounds(4), or a function"),
    ("no schedule", lambda: GradualPruner(net(), 0.25, schedule=None), ValueError, "schedule is None; legal: 'at_once'"),
    ("a schedule of the epoch", lambda: MagnitudePruner(net(), 0.25, schedule=lambda epoch: 0.5), TypeError, "give a function of the share of the phase that is over"),
    ("a schedule by position", lambda: MagnitudePruner(net(), 0.25, "cubic"), TypeError, "takes model and density by position"),
    ("a schedule of sparsity", lambda: MagnitudePruner(net(), 0.25, schedule=lambda t, k: t * (1 - k)), ValueError, "legal: a density from the target, 0.25, to 1"),
    ("a schedule that rises", rising, ValueError, "return a density that never rises"),
    ("until in per cent", lambda: Geometric(until=50), ValueError, "until is 50; legal: a share of the phase, 0 < until <= 1"),
    ("no rounds", lambda: Rounds(0), ValueError, "legal: a whole number of rounds, at least 1"),
    ("rounds by another name", lambda: Rounds(rounds=3), TypeError, "has no argument 'rounds'. Legal: n"),
    ("cuts as text", lambda: Geometric(cuts="10"), ValueError, "legal: a whole number of at least 1"),
    ("last_cut in per cent", lambda: GradualPruner(net(), 0.25, last_cut=50), ValueError, "0.5 learns the last halving"),
    ("a last cut of nothing", lambda: GradualPruner(net(), 0.25, last_cut=1.0), ValueError, "above 0 and below 1"),
    ("a last cut of magnitude", lambda: MagnitudePruner(net(), 0.25, schedule="cubic", last_cut=0.5), TypeError, "has no argument 'last_cut'"),
    ("prune without shrink", lambda: GradualPruner(net(), 0.25).set_phase("prune"), ValueError, "begin with set_phase('shrink'), or attach it without a schedule"),
    ("finetune without shrink", lambda: MagnitudePruner(net(), 0.25, schedule="cubic").set_phase("finetune"), ValueError, "begin with set_phase('shrink')"),
    ("shrink without a schedule", lambda: HydraPruner(net(), 0.25).set_phase("shrink"), ValueError, "attach it with schedule='geometric', or start at set_phase('prune')"),
    ("finetune right after shrink", lambda: shrinking(steps=4)[0].set_phase("finetune"), ValueError, "run the phase 'prune' first, or take MagnitudePruner"),
    ("finalize right after shrink", lambda: shrinking(steps=4)[0].finalize(), ValueError, "run the phase 'prune' first, or take MagnitudePruner"),
    ("shrink without a step", lambda: shrinking()[0].set_phase("prune"), ValueError, "the followed optimizer has made no step. Call pruner.follow(optimizer, epochs=..., steps_per_epoch=...)"),
    ("a shrink phase without follow", shrinking_without_follow, ValueError, "no optimizer is followed. Call pruner.follow(optimizer, epochs=..., steps_per_epoch=...)"),
    ("no lengths while shrinking", shrinking_without_lengths, ValueError, "give both, at least 1"),
    ("half of the steps announced", lambda: shrinking(steps=2)[0].set_phase("prune"), UserWarning, "the shrink phase ends at step 2 of 4, so that the density falls to the end of its schedule at once"),
    ("training with a schedule, without set_phase", attached_with_a_schedule_and_trained, UserWarning, "call pruner.set_phase('shrink') first"),
    ("the free finalize before shrinking", lambda: finalize(GradualPruner(net(), 0.25).model), UserWarning, "run the phase 'shrink' first, or take schedule='at_once'"),
    ("the optimizer of the shrink phase", optimizer_of_the_shrink_phase, ValueError, "build it from what set_phase returned"),
    ("follow before the shrink phase", lambda: GradualPruner(net(), 0.25).follow(SGD(net().parameters(), lr=0.1)), ValueError, "call set_phase('shrink') first"),
    ("follow without phases to follow", lambda: MagnitudePruner(net(), 0.25).follow(SGD(net().parameters(), lr=0.1)), ValueError, "Fine-tuning needs no follow"),
    ("phases without shrink", lambda: phases_without("shrink"), ValueError, "give it, or attach the pruner with schedule='at_once'"),
    ("phases without prune", lambda: phases_without("prune"), ValueError, "give it, or take MagnitudePruner"),
    ("a lower density beside a schedule", lambda: shrinking(MagnitudePruner)[0].set_density(0.1), ValueError, "without a pattern and a schedule"),
    ("the state of the shrink phase later", the_state_of_the_shrink_phase_later, ValueError, "attach a new pruner, load the state into it, and continue with set_phase('shrink')"),
    ("the state of another schedule", lambda: shrinking()[0].load_state_dict(GradualPruner(net(), 0.25, schedule="cubic").state_dict()), ValueError, "schedule was Cubic"),
]
DATA: list[Row] = [
    ("one logit", lambda: evaluate(net(nn.Linear(2, 1)), [(X, Y)], attacks=[pgd(T)]), ValueError, "torch.cat([-z, z], 1)"),
    ("probabilities", lambda: adversarial(pgd(T))(net(nn.Softmax(1)), X, Y), SuspectNetwork, "the model ends in a softmax, and the loss applies a softmax to its outputs again"),
    ("certify(x[0])", lambda: Smoothed(0.1, n=10).certify(cnn(), IMAGES[0], LABELS[0]), ValueError, "One point is x[:1] and y[:1]"),
    ("predict(x[0])", lambda: Smoothed(0.1, n=10).predict(cnn(), IMAGES[0]), ValueError, "One point is x[:1]"),
    ("attack(model, x[0], y[0])", lambda: pgd(T)(cnn(), IMAGES[0], LABELS[0]), ValueError, "One point is x[:1] and y[:1]"),
    ("loss of x[0]", lambda: benign(cnn(), IMAGES[0], LABELS[:3]), ValueError, "One point is x[:1]"),
    ("a last batch of one point", lambda: benign(nn.Sequential(nn.BatchNorm1d(8), net()), X[:1], Y[:1]), ValueError, "give the DataLoader drop_last=True"),
    ("an empty batch", lambda: benign(net(), X[:0], Y[:0]), ValueError, "the batch is empty"),
    ("normalised inputs", lambda: pgd(T)(net(), (X - 0.5) / 0.25, Y), ValueError, "normalise inside the model (Normalize)"),
    ("images of bytes", lambda: pgd(T)(net(), (255 * X).byte(), Y), ValueError, "x.float() / 255 of images of bytes"),
    ("images of bytes in training", lambda: benign(net(), (255 * X).byte(), Y), ValueError, "x.float() / 255 for images of bytes"),
    ("inputs in float64", lambda: gaussian(sigma=0.1)(net(), X.double(), Y), ValueError, "give x.to(torch.float32)"),
    ("a model on another device", lambda: benign(net().to("meta"), X, Y), ValueError, "give x.to('meta')"),
    ("labels on another device", lambda: benign(net(), X, Y.to("meta")), ValueError, "give y.to('cpu')"),
    ("one-hot labels", lambda: adversarial(pgd(T))(net(), X, torch.eye(2)[Y]), ValueError, "Of one-hot labels give y.argmax(1)"),
    ("labels as floats", lambda: trades(T)(net(), X, Y.float()), ValueError, "labels are torch.float32; legal: integers 0 to 1, the model has 2 classes. Give y.long()"),
    ("labels from 1", lambda: MinimumNorm(T, steps=1)(net(), X, Y + 1), ValueError, "legal: integers 0 to 1"),
    ("labels from 1 for scores", lambda: snip_scores(net(), X, Y + 1), ValueError, "with integer labels below the number of classes"),
    ("too few labels", lambda: certified(T)(net(), X, Y[:3]), ValueError, "labels have shape (3,) and inputs (4, 8); legal: one label a point"),
    ("an empty loader", lambda: evaluate(net(), []), ValueError, "A generator can be used only once: give a DataLoader"),
    ("a loader that yields dicts", lambda: evaluate(net(), [{"image": X, "label": Y}]), TypeError, "Give [(batch['image'], batch['label']) for batch in loader]"),
    ("a loader without labels", lambda: evaluate(net(), [X]), TypeError, "a loader that yields labels too"),
    ("one batch as loader", lambda: evaluate(net(), (X, Y)), TypeError, "Give [(x, y)] for one batch"),
    ("a loader of three values", lambda: evaluate(net(), [(X, Y, Y)]), TypeError, "Give [(x, y) for x, y, *_ in loader]"),
    ("a folder as loader", lambda: evaluate(net(), "data/test"), TypeError, "give batches (x, y), as a DataLoader yields"),
    ("a dataset as loader", lambda: evaluate(net(), torch.utils.data.TensorDataset(X, Y)), TypeError, "as a DataLoader yields"),
    ("limits without names", lambda: evaluate(net(), [(X, Y)], attacks=[pgd(T)], limits=10), TypeError, "give a dict of points by the row's name"),
    ("reports of other points", lambda: report().compare(report(torch.rand(4, 8))), ValueError, "evaluate both networks on one loader that does not shuffle"),
    ("a row that is not there", lambda: report().compare(report(), "AutoAttack"), ValueError, "legal: ['clean', 'PGD-1', 'worst case']"),
    ("the path of a report", lambda: Report.from_json(Path("report.json")), TypeError, 'Path("report.json").read_text()'),
    ("no report", lambda: Report.from_json("report.json"), ValueError, 'Path("report.json").read_text()'),
]
PHASES: list[Row] = [
    ("training without set_phase", attached_and_trained, UserWarning, "call pruner.set_phase('prune') first"),
    ("penalty without set_phase", lambda: HarpPruner(net(), 0.5).budget_penalty(), ValueError, "call set_phase('prune') first"),
    ("the free finalize without set_phase", lambda: finalize(HydraPruner(net(), 0.5).model), UserWarning, "run the phase 'prune' first, or take MagnitudePruner"),
    ("no optimizer followed", phase_skipped, ValueError, "no optimizer is followed. Call pruner.follow(optimizer"),
    ("finetune after no step", lambda: never_stepped("finetune"), ValueError, "the followed optimizer has made no step. Call"),
    ("finalize after no step", lambda: never_stepped("finalize"), ValueError, "the followed optimizer has made no step. Call"),
    ("a loop without follow", never_followed, ValueError, "call pruner.follow(optimizer, ...) before the first forward pass"),
    ("a step without backward", no_backward, UserWarning, "call loss.backward() before optimizer.step()"),
    ("training of a copy", trained_a_copy, UserWarning, "on a loss of the model that the pruner is attached to"),
    ("no budget_penalty", no_penalty, UserWarning, "train on loss + pruner.budget_penalty(), or take control='held'"),
    ("two optimizers followed", two_optimizers, UserWarning, "Follow all optimizers of the phase at once"),
    ("the optimizer of the prune phase", optimizer_of_the_prune_phase, ValueError, "build it from what set_phase returned"),
    ("an optimizer from before", optimizer_from_before, ValueError, "build it from what set_phase returned"),
    ("a scheduler to follow", lambda: begun()[0].follow(torch.optim.lr_scheduler.StepLR(begun()[1], 1)), TypeError, "optimizer is a StepLR; give a torch.optim.Optimizer"),
    ("a network to follow", lambda: begun()[0].follow(net()), TypeError, "give a torch.optim.Optimizer"),
    ("follow in the phase attached", lambda: HydraPruner(net(), 0.5).follow(SGD(net().parameters(), lr=0.1)), ValueError, "call set_phase('prune') first"),
    ("no lengths", lambda: follow(), ValueError, "give both, at least 1"),
    ("half a step", lambda: follow(epochs=1, steps_per_epoch=2.5), ValueError, "legal: whole numbers, such as len(loader) steps"),
    ("negative lengths", lambda: begun()[0].follow(begun()[1], epochs=-1), ValueError, "the optimizer lacks"),
    ("a phase of another name", lambda: HydraPruner(net(), 0.5).set_phase("pruning"), ValueError, "legal: 'prune', then 'finetune'"),
    ("a prune phase of magnitude", lambda: MagnitudePruner(net(), 0.5).set_phase("prune"), ValueError, "start at set_phase('finetune')"),
    ("finetune first", lambda: HydraPruner(net(), 0.5).set_phase("finetune"), ValueError, "run the phase 'prune' first, or take MagnitudePruner"),
    ("prune after the end", lambda: again("set_phase", "prune"), ValueError, "the order is prune, finetune, finalize"),
    ("finalize twice", lambda: again("finalize"), ValueError, "the pruner is finalized already"),
    ("a lower density of learned scores", lambda: HydraPruner(net(), 0.5).set_density(0.1), ValueError, "iterative pruning is MagnitudePruner's"),
    ("two pruners", lambda: HydraPruner(masked(), 0.5), ValueError, "finalize it before attaching one"),
    ("a wrapped network", lambda: HydraPruner(nn.DataParallel(net()), 0.5), ValueError, "give model.module"),
    ("nothing to prune", lambda: HydraPruner(nn.Sequential(nn.BatchNorm1d(8)), 0.5), ValueError, "prunable are convolutions, linear layers"),
    ("the state of a model", lambda: HydraPruner(net(), 0.5).load_state_dict(net().state_dict()), ValueError, "give what pruner.state_dict() returned"),
    ("ONNX of a masked network", lambda: export_onnx(masked(), "a.onnx", X), ValueError, "call pruner.finalize() first"),
    ("CSR of a masked network", lambda: sparse(masked(), X), ValueError, "call pruner.finalize() first"),
    ("2:4 of a masked network", lambda: semi_structured(masked(density=None, pattern="2:4")), ValueError, "call pruner.finalize() first"),
]
FILES: list[Row] = [
    ("a pickle", lambda folder: checkpoint.load(pickled(folder)), ValueError, "read it by torch.load(path, weights_only=True)"),
    ("a compressed pickle", lambda folder: load_compressed(pickled(folder)), ValueError, "read it by torch.load(path, weights_only=True)"),
    ("a missing file", lambda folder: checkpoint.load(folder / "no"), ValueError, "there is no checkpoint at"),
    ("a folder to load", lambda folder: checkpoint.load(folder), ValueError, "a folder; give the name of a file"),
    ("a folder to save to", lambda folder: checkpoint.save(folder, model=net()), ValueError, "a folder; give the name of a file"),
    ("a missing folder", lambda folder: checkpoint.save(folder / "a" / "b", model=net()), ValueError, "there is no folder"),
    ("a model to load", lambda folder: checkpoint.load(net()), TypeError, "path is a Sequential; give the name of a file"),
    ("a state to save", lambda folder: checkpoint.save(folder / "a", model=net().state_dict()), TypeError, "give an nn.Module"),
    ("an optimizer as pruner", lambda folder: saved(folder, pruner=SGD(net().parameters(), lr=0.1)), TypeError, "pruner is a SGD; give a Pruner"),
    ("another architecture", lambda folder: saved(folder).restore(model=nn.Linear(8, 2)), ValueError, "is of another model"),
    ("a pruner that was not saved", lambda folder: saved(folder).restore(pruner=HydraPruner(net(), 0.5)), ValueError, "leave pruner= out, or save(...) it too"),
    ("an optimizer that was not saved", lambda folder: saved(folder).restore(optimizer=SGD(net().parameters(), lr=0.1)), ValueError, "leave optimizer= out, or save(...) it too"),
    ("a folder for images", lambda folder: evaluate(net(), [(X, Y)], adversarial=folder), ValueError, "a folder; give the name of a file"),
]
COMMANDS: list[tuple[str, str, str]] = [
    ("a command in capitals", "Hydra", "did you mean hydra?"),
    ("a command that does not exist", "train", "the commands are gradual, magnitude, hydra, harp, compare, evaluate"),
    ("a typing error in an option", "hydra --densty 0.1", "did you mean --density?"),
    ("an option without its group", "hydra --eps 8/255", "did you mean --threat.eps?"),
    ("density in per cent", "hydra --density 5", "5 % is density=0.05"),
    ("density with a sign", "hydra --density 5%", "density is '5%'; legal: a finite number"),
    ("eps in grey levels", "hydra --threat.eps 8 --dry-run", 'such as "8/255"'),
    ("norm linf", "hydra --threat.norm linf", "did you mean Linf?"),
    ("a word without an option", "hydra density=0.1", "belongs to no option"),
    ("a preset that does not exist", "hydra --config hydra/digit", "did you mean hydra/digits"),
    ("no epochs of pruning", "hydra --prune.epochs 0 --dry-run", "prune.epochs is 0; legal: at least 1"),
    ("epochs in words", "hydra --prune.epochs ten", "prune.epochs is 'ten'; legal: a whole number"),
    ("a model that does not exist", "hydra --model resnet --dry-run", "legal are digits-cnn"),
    ("data that do not exist", "hydra --data.name cifar --dry-run", "did you mean cifar10?"),
    ("no folder", "hydra --out", "--out needs a value"),
    ("a device that is not there", "hydra --device cuda:99 --dry-run", "which this machine does not have"),
    ("nothing to evaluate", "evaluate", "Give a run folder, or --model and --checkpoint of a network"),
    ("a run that is not there", "evaluate nowhere", "nowhere holds no finished run"),
    ("no runs of channels", "channels", "Give the folders of finished runs"),
    ("words after list", "list all", "list takes no words"),
]
# fmt: on
ROWS = [*CALLS, *KINDS, *VALUES, *SCHEDULES, *DATA, *PHASES, *FILES]


def raised_by_us(error: BaseException) -> bool:
    """Whether the error comes from a ``raise`` in our own files."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    place = trace.tb_frame.f_code.co_filename
    # Before Python 3.11 ``tb_lineno`` may be the last line of a statement.
    lines = [linecache.getline(place, number) for number in range(trace.tb_lineno, 0, -1)][:8]
    return place.startswith(OURS) and any(line.lstrip().startswith("raise ") for line in lines)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_mistake_ends_in_a_sentence_that_says_what_to_type(row: Row, tmp_path: Path) -> None:
    name, mistake, kind, says = row
    arguments = [tmp_path] if inspect.signature(mistake).parameters else []
    if issubclass(kind, Warning):
        with pytest.warns(kind) as warned:
            mistake(*arguments)
        assert says in "\n".join(str(each.message) for each in warned)
        assert __file__ in {each.filename for each in warned}  # the line of the user
        return
    with warnings.catch_warnings(), pytest.raises(kind) as caught:
        warnings.simplefilter("ignore")
        mistake(*arguments)
    assert says in str(caught.value)
    assert raised_by_us(caught.value), caught.value


@pytest.mark.parametrize("row", COMMANDS, ids=[row[0] for row in COMMANDS])
def test_a_wrong_command_says_what_to_type(
    row: tuple[str, str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, words, says = row
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    shown = capsys.readouterr().err
    assert says in shown and "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: pgd.__wrapped__(alpha=1),  # Python's own message
        lambda: net()(X[:, :3]),  # torch's
        lambda: HydraPruner(net(), 0.5).groups[9],
        lambda: wilson_interval.__wrapped__([], 1) >= 0,
    ],
)
def test_messages_of_torch_and_of_python_are_told_apart(mistake: Callable[..., Any]) -> None:
    with pytest.raises((TypeError, RuntimeError, IndexError, ValueError)) as caught:
        mistake()
    own = "legal:" in str(caught.value)
    assert raised_by_us(caught.value) is own


def test_the_tables_have_no_row_twice() -> None:
    assert len(ROWS) >= 70 and len(COMMANDS) >= 12
    for table in (ROWS, COMMANDS):
        names = [row[0] for row in table]
        assert len(set(names)) == len(names)


# --- what is not a mistake -----------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_what_only_looks_like_a_mistake_passes_without_a_warning() -> None:
    # Scores written by hand instead of steps, before or after follow.
    pruner = HydraPruner(net(), 0.5)
    pruner.set_phase("prune")
    for mask in pruner.masks:
        mask.scores.data.uniform_()
    pruner.update_masks()
    pruner.set_phase("finetune")
    pruner.finalize()
    # A state with steps, loaded into a new pruner.
    trained, _ = learned()
    resumed = HydraPruner(net(), 0.5)
    resumed.model.load_state_dict(trained.model.state_dict())
    resumed.load_state_dict(trained.state_dict())
    resumed.set_phase("finetune")
    resumed.finalize()
    # Attacks, gradients of inputs and statistics of a network whose pruner is only attached.
    attached = HydraPruner(net(), 0.5).model
    evaluate(attached, [(X, Y)], attacks=[pgd(T)])
    attached(X).sum()
    x = X.clone().requires_grad_()
    attached.eval()(x).sum().backward()
    dense_state_dict(attached)
    # A pruner that learns nothing trains in every phase, and has a penalty of zero.
    magnitude = MagnitudePruner(net(), 0.5)
    step(magnitude, SGD(magnitude.model.parameters(), lr=0.1))
    assert magnitude.budget_penalty() == 0
    # A copy that was made early gets the masks of later.
    pruner, optimizer = begun()
    early = copy.deepcopy(HydraPruner(net(), 0.5).model)
    step(pruner, optimizer)
    pruner.finalize(early)
    # Twice the same optimizer, and a new optimizer instead of the old one.
    pruner, optimizer = learned()
    pruner.follow(optimizer)
    step(pruner, optimizer)
    renewed = SGD(pruner.model.parameters(), lr=0.01)
    pruner.follow(renewed)
    step(pruner, renewed)
    # A network that ends in a log-softmax: the loss is the same as without it.
    benign(net(nn.LogSoftmax(1)), X, Y)


# --- the decorator of every public call ----------------------------------------------------------

# Values that this package makes itself, and kinds of functions: nobody calls them by hand.
MADE_HERE = {"Budget", "Comparison", "Group", "Member", "Progress", "Removed", "Sparsity"}
KINDS_ONLY = {"Attack", "Bounds", "Certifier", "Method", "Objective", "Version"}


def public() -> list[tuple[str, Any]]:
    found = [(name, getattr(robust_plugin, name)) for name in robust_plugin.__all__]
    for adapter in (auto_lirpa, autoattack, torch_pruning):
        found += [(name, getattr(adapter, name)) for name in adapter.__all__]
    found += [("export_onnx", onnx.export_onnx), ("torchattack", attacks_adapter.torchattack)]
    found += [("TorchAttack", TorchAttack), ("save", checkpoint.save), ("load", checkpoint.load)]
    libraries = {"LearnedPruner", "learned_importance", "learned_ratios"}  # called by torch-pruning
    return [each for each in found if each[0] not in MADE_HERE | KINDS_ONLY | libraries]


@pytest.mark.parametrize(("name", "called"), public())
def test_every_public_call_explains_unknown_arguments(name: str, called: Any) -> None:
    with pytest.raises(TypeError, match=f"{called.__name__} has no argument 'nonsense'") as caught:
        called(nonsense=1)
    assert raised_by_us(caught.value)
    signature = inspect.signature(called)
    assert "nonsense" not in signature.parameters
    assert all(each.kind is not each.VAR_KEYWORD for each in signature.parameters.values())
    assert called.__doc__


def test_decorated_values_can_be_pickled_and_copied() -> None:
    for value in (T, pgd(T), IBP(T), Smoothed(0.25), Ramp()):
        assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == value
    assert json.loads(report().to_json())["n"] == {"clean": 4, "PGD-1": 4}
    assert weight_groups(net())[0].name == "0.weight"
