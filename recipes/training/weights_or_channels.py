"""Pruning of weights or of channels, as the setting ``structure`` says, and initial scores.

``structure`` is a setting of every recipe. Phases, objective and budget are the same for both
structures. With channels, all weights of a channel share one score and are removed together, and
the smaller network without the removed channels is written too.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from robust_plugin.attacks.projected_gradient import pgd
from robust_plugin.pruning.presets import MagnitudePruner
from robust_plugin.pruning.pruner import Pruner
from robust_plugin.pruning.scores import ScoreName, Scores, scaled_magnitude, snip_scores
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.models.registry import example_of
from robust_plugin.recipes.runtime.process_group import is_first, wait_for_all
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.statistics import measured_anew
from robust_plugin.runtime.files import write_text
from robust_plugin.runtime.random import seed_of


def covered(run: Run, model: nn.Module) -> dict[str, Any]:
    """Return the arguments ``groups`` and ``exclude`` of the pruner, for the structure of a run.

    Args:
        run: run whose settings ``structure`` and ``exclude`` are used.
        model: network that the pruner will be attached to.
    """
    config = run.config
    if config.structure == "weights":
        return {"groups": None, "exclude": config.exclude}
    from robust_plugin.adapters.torch_pruning import channel_groups

    return {"groups": channel_groups(model, run.example, ignored=config.exclude), "exclude": ()}


def refuse_early(run: Run) -> None:
    """Check, before training, that channels of the network can be removed to meet the budget.

    With structure weights, nothing is checked. Warnings about the channels are not shown here, but
    later, when the pruner of the run is attached.

    Raises:
        ValueError: if the channels of the network cannot be removed, or not at this budget.
    """
    if run.config.structure == "weights":
        return
    model = run.fresh_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are shown later, when the pruner is attached
        groups = covered(run, model)
    MagnitudePruner(
        model,
        run.config.density,
        budget=run.config.budget,
        round_to=run.config.round_to,
        **groups,
        example_inputs=run.example,
    )


def finished(run: Run, pruner: Pruner) -> nn.Module:
    """Finalize a pruner and return its network.

    If no fine-tuning came before, the masks are fixed now, and BatchNorm's running statistics are
    measured for them. With structure channels, also write the smaller network without the removed
    channels to small.safetensors, and [channels kept, all channels] of each group to channels.json.

    Args:
        run: run whose folder the files are written to.
        pruner: pruner in the state after the last stage.

    Returns:
        nn.Module: the network without masks, in its original shape; pruned weights are zero.
    """
    if pruner.phase == "prune":
        pruner.set_phase("finetune")
        measured_anew(run, "finetune", pruner.model, run.config.finetune, epoch=0, epochs=1)
    if run.config.structure == "channels":
        from robust_plugin.adapters.torch_pruning import remove_channels, save

        removed = remove_channels(pruner, run.example)
        if is_first():
            run.folder.mkdir(parents=True, exist_ok=True)
            save(run.folder / "small.safetensors", removed)
            sizes = {group.name: group.size for group in pruner.groups}
            kept = {name: [count, sizes[name]] for name, count in removed.counts.items()}
            write_text(run.folder / "channels.json", json.dumps(kept, indent=1))
        wait_for_all()
    pruner.finalize()
    return pruner.model


def small_network(run: Run, model: nn.Module) -> nn.Module:
    """Return the smaller network from small.safetensors in the run's folder, on the run's device.

    Args:
        run: finished run with structure channels.
        model: network of the architecture before pruning, with any weights; it is not changed.
    """
    small = without_channels(run.folder / "small.safetensors", model, run.data.shape)
    return small.to(run.device)


def without_channels(path: Path, model: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Return the smaller network that a small.safetensors file holds, on the CPU.

    Args:
        path: path of the file.
        model: network of the architecture before pruning, with any weights; it is not changed.
        shape: shape of one input, [C, H, W].

    Raises:
        ValueError: if the file does not exist or belongs to another architecture.
    """
    from robust_plugin.adapters.torch_pruning import load

    return load(path, copy.deepcopy(model).cpu(), example_of(shape))


def kept_channels(run: Run) -> dict[str, list[int]]:
    """Return [channels kept, all channels] of each channel group by name, for a finished run."""
    kept: dict[str, list[int]] = json.loads((run.folder / "channels.json").read_text())
    return kept


# All of them are compared in HYDRA's ablation, section 4.2.
InitialScores = Literal[ScoreName, "snip"]


def initial_scores_of(run: Run, model: nn.Module, name: InitialScores) -> Scores:
    """Return the initial scores of a run in a form that the pruner's argument ``scores`` takes.

    ``"snip"`` is ``|g w|`` (SNIP, Lee et al. 2019), with the gradient g of the cross-entropy on
    PGD examples of one training batch: pruning has to keep the robust loss low. In each layer
    the scores are scaled to the same largest value as HYDRA's scaled magnitude, so that only their
    order differs.

    Args:
        run: run whose first training batch, threat model and number of attack steps are used.
        model: dense network without a pruner; snip leaves it in evaluation mode.
        name: name of the initial scores.

    Returns:
        str or dict: for snip, a tensor of scores by parameter name; for all other names, the name
        itself, because the pruner knows them.
    """
    if name != "snip":
        return name
    batches = loader(
        run.data.train,
        batch_size=run.config.data.batch_size,
        seed=seed_of(run.config.seed, "scores"),
        epoch=0,
        shuffle=True,
    )
    x, y = (tensor.to(run.device) for tensor in next(iter(batches)))
    attack = pgd(run.threat, steps=run.config.objective.steps)
    model.eval()
    found = snip_scores(model, attack(model, x, y), y)
    return {parameter: scaled_magnitude(scores) for parameter, scores in found.items()}
