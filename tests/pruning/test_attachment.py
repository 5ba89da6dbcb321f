"""Attachment: bad input names the value and what is legal, and the model is as it was."""

import math
import warnings

import pytest
import torch
from torch import nn
from unchanged import check_unchanged, snapshot

from robust_plugin import HarpPruner, HydraPruner, MagnitudePruner, Pruner
from robust_plugin.masks.masked_layer import is_masked


def with_nan(model, value=math.nan):
    model[3].weight.data[0, 0, 0, 0] = value
    return model


def nan_scores(model):
    scores = {f"{i}.weight": torch.ones_like(model[i].weight) for i in (0, 3, 6)}
    scores["6.weight"][3, 3] = math.nan
    return scores


BAD = {
    **{
        f"density {d}": (lambda m, d=d: Pruner(m, d), ValueError, "legal: 0 < density <= 1")
        for d in (0, -0.5, 1.01, math.nan, math.inf, None, "0.1")
    },
    "no density for harp": (lambda m: HarpPruner(m, None), ValueError, "density is None; legal"),
    "nothing prunable": (
        lambda m: Pruner(nn.Sequential(m[1], m[2]), 0.1),
        ValueError,
        "Sequential has no prunable layer",
    ),
    "NaN weight": (lambda m: Pruner(with_nan(m), 0.1), ValueError, "weights of 3.weight are not"),
    "inf weight": (
        lambda m: Pruner(with_nan(m, math.inf), 0.1),
        ValueError,
        "weights of 3.weight are not finite",
    ),
    "NaN scores": (
        lambda m: HydraPruner(m, 0.1, scores=nan_scores(m)),
        ValueError,
        "scores of 6.weight are not finite",
    ),
    "inf scores": (
        lambda m: HydraPruner(m, 0.1, scores=lambda w: w * math.inf),
        ValueError,
        "scores of 0.weight are not finite",
    ),
    "unknown scores": (
        lambda m: HydraPruner(m, 0.1, scores="magnitude"),
        ValueError,
        "'magnitude'; legal: scaled_magnitude",
    ),
    "unknown rates": (
        lambda m: HydraPruner(m, 0.1, rates="rigl"),
        ValueError,
        "'rigl'; legal: uniform, erk, lamp, global",
    ),
    "unknown budget": (
        lambda m: HydraPruner(m, 0.1, budget="latency"),
        ValueError,
        "'latency'; legal: params, flops",
    ),
    "unknown control": (
        lambda m: HarpPruner(m, 0.1, control="penalty"),
        ValueError,
        "'penalty'; legal: held, hinge",
    ),
    "unknown pattern": (
        lambda m: HydraPruner(m, pattern="4:2"),
        ValueError,
        "'4:2'; legal: \"n:m\"",
    ),
    "unknown learn": (
        lambda m: Pruner(m, 0.1, learn={"weights"}),
        ValueError,
        "'weights'.*legal: any of .'scores', 'rates'",
    ),
    "learn a string": (lambda m: Pruner(m, 0.1, learn="scores"), ValueError, "'scores'; legal"),
    "flops without inputs": (
        lambda m: Pruner(m, 0.1, budget="flops"),
        ValueError,
        "give example_inputs",
    ),
    "pattern and density": (
        lambda m: HydraPruner(m, 0.5, pattern="2:4"),
        ValueError,
        "density is 0.5, but a pattern",
    ),
    "pattern and rates": (
        lambda m: HydraPruner(m, pattern="2:4", rates="erk"),
        ValueError,
        "rates is 'erk'; a 2:4 pattern fixes",
    ),
    "pattern and learned rates": (
        lambda m: Pruner(m, pattern="2:4", learn={"rates"}),
        ValueError,
        "2:4 pattern fixes the rates",
    ),
    "pattern fits nowhere": (
        lambda m: HydraPruner(m, pattern="7:129"),
        ValueError,
        "129",
    ),
    "rates for other layers": (
        lambda m: HydraPruner(m, rates={"0.weight": 0.1}),
        ValueError,
        "lack .'3.weight', '6.weight'",
    ),
    "a rate of zero": (
        lambda m: HydraPruner(m, rates={"0.weight": 0.1, "3.weight": 0, "6.weight": 1}),
        ValueError,
        "rate of 3.weight is 0; legal: 0 < rate <= 1",
    ),
    "excluded layer unknown": (
        lambda m: Pruner(m, 0.1, exclude=["fc"]),
        ValueError,
        "'fc', which is not in the model",
    ),
    "no module": (lambda m: Pruner(m.forward, 0.1), TypeError, "model is a method"),
    "data parallel": (
        lambda m: Pruner(nn.DataParallel(m), 0.1),
        ValueError,
        "wrapped in DataParallel; give model.module",
    ),
    "compiled": (
        lambda m: Pruner(torch.compile(m, backend="eager"), 0.1),
        ValueError,
        "wrapped in OptimizedModule; give model._orig_mod",
    ),
    "tied to an embedding": (
        lambda m: Pruner(tied(m), 0.1),
        ValueError,
        "0.6.weight and 1.weight are one tied parameter",
    ),
}


def tied(model):
    embed = nn.Embedding(10, 128)
    embed.weight = model[6].weight
    return nn.Sequential(model, embed)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_leaves_the_model_alone(cnn, case):
    build, kind, says = BAD[case]
    model = cnn()
    if case in ("NaN weight", "inf weight"):
        with_nan(model, math.nan if case == "NaN weight" else math.inf)
    if case == "compiled":  # torch leaves a mark of its own
        torch.compile(model, backend="eager")
    before = snapshot(model)
    with pytest.raises(kind, match=says):
        build(model)
    check_unchanged(model, before)
    fixed = with_nan(model, 0.01)
    assert MagnitudePruner(fixed, 0.1).kept == 8 + 29 + 128  # and can still be pruned


def test_distributed_wrapper_is_refused(cnn, tmp_path):
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = cnn()
        before = snapshot(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(ValueError, match="DistributedDataParallel; give model.module"):
            Pruner(wrapped, 0.1)
        check_unchanged(model, before)
    finally:
        distributed.destroy_process_group()


def test_attaching_twice(cnn):
    model = cnn()
    pruner = MagnitudePruner(model, 0.1)
    before = snapshot(model)
    for kind in (MagnitudePruner, HydraPruner):
        with pytest.raises(ValueError, match="has a pruner already; finalize it"):
            kind(model, 0.5)
    check_unchanged(model, before)
    pruner.finalize()
    MagnitudePruner(model, 0.05)
    assert is_masked(model[0])


def test_a_model_that_masks_hardly_cover_warns():
    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = torch.nn.LSTM(8, 8), torch.nn.Linear(8, 2)

    with pytest.warns(UserWarning, match=r"masks cover 2\.7% .* lstm\.weight_[ih]h_l0") as said:
        MagnitudePruner(Recurrent(), 0.5)
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MagnitudePruner(Recurrent(), 0.5, exclude=["lstm"])
