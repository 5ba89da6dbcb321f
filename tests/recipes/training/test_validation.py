"""Accuracy on the validation points: under PGD, or proved."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_recipe import small

from robust_plugin import IBP, evaluate, pgd
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.recipes.config.schema import StageConfig
from robust_plugin.recipes.training.loop import train
from robust_plugin.recipes.training.run import Run
from robust_plugin.recipes.training.validation import validated
from robust_plugin.runtime.random import seed_of


@pytest.mark.usefixtures("on_planted")
@pytest.mark.parametrize(("name", "eps"), [("certified", "0.1"), ("mixtrain", "0.15")])
def test_training_by_bounds_is_validated_by_what_is_proved(
    tmp_path: Path, name: str, eps: str
) -> None:
    config = small("hydra", objective={"name": name, "kappa": [1.0, 0.9]}, threat={"eps": eps})
    run = Run(tmp_path, config)
    model = train(run, "pretrain", run.fresh_model(), StageConfig(epochs=6, lr=0.05))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    last = max(records, key=lambda record: (record["robust"], record["epoch"]))
    x, y = (torch.stack(each) for each in zip(*run.data.validation, strict=True))
    prover = IBP(run.threat) if name == "certified" else LiRPA(run.threat, "same-slope")
    model.eval()
    right = model(x).argmax(1) == y
    assert last["robust"] == int((right & prover(model, x, y)).sum()) / len(y)
    assert last["clean"] == int(right.sum()) / len(y)
    attacked = evaluate(model, [(x, y)], attacks=[pgd(run.threat, steps=20)])
    assert 0 < last["robust"] < attacked.accuracy("PGD-20")  # else PGD would give the same value


@pytest.mark.usefixtures("on_planted")
def test_validation_is_pgd_on_seeded_batches_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    config = small("hydra", objective={"name": "benign", "steps": 2}, threat={"eps": "8/255"})
    run = Run(tmp_path, replace(config, evaluation=replace(config.evaluation, batch_size=15)))
    model = train(run, "pretrain", run.fresh_model(), StageConfig(epochs=3, lr=0.05)).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = validated(run, model)
    assert model.training
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())

    model.eval()
    x, y = (torch.stack(each) for each in zip(*run.data.validation, strict=True))
    clean = robust = 0
    for number, (points, labels) in enumerate(zip(x.split(15), y.split(15), strict=True)):
        torch.manual_seed(seed_of(0, "validation", number))
        right = model(points).argmax(1) == labels
        attacked = pgd(run.threat, steps=2)(model, points[right], labels[right])
        clean += int(right.sum())
        robust += int((model(attacked).argmax(1) == labels[right]).sum())
    assert found == {"clean": clean / 40, "robust": robust / 40}
    assert robust < clean  # else the attack had no effect
