"""BatchNorm's running statistics that do not fit the weights are a finding, and nothing else is."""

import copy

import pytest
import torch
from suspect_networks import accuracy, cnn, digits, mlp, normed_cnn, trained
from torch import nn

from robust_plugin import MagnitudePruner, ThreatModel, evaluate, pgd
from robust_plugin.evaluation.running_statistics import misfit
from robust_plugin.pruning.batch_norm import recompute_statistics


def deep():
    layers, channels = [], 1
    for stride in (1, 2, 1, 2, 1, 1):
        layers += [nn.Conv2d(channels, 16, 3, stride, 1), nn.BatchNorm2d(16), nn.ReLU()]
        channels = 16
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


def pruned_in_few_steps():
    """A trained network without four fifths of its weights, fine-tuned for four steps."""
    model = copy.deepcopy(trained("deep", deep, epochs=3)).train()
    pruner = MagnitudePruner(model, density=0.2)
    optimizer = torch.optim.Adam(pruner.set_phase("finetune"), lr=0.01)
    x, y = digits(1797)
    for rows in torch.arange(4 * 64).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval()


def shifted(model):
    """The same network with the running statistics of other activations."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += 3 * layer.running_var.sqrt()
    return model


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_finding_has_both_accuracies_and_changes_nothing():
    x, y = digits(32)
    model = shifted(trained("normed cnn", normed_cnn))
    by_batch = copy.deepcopy(model).train()  # there is no dropout: BatchNorm alone is in this mode
    accuracies = [100 * float((m(x).argmax(1) == y).float().mean()) for m in (model, by_batch)]
    assert accuracies[0] < 50 < 90 < accuracies[1]
    before, generator = state(model), torch.get_rng_state()
    (found,) = misfit(model, x, y)
    assert f"accuracy {accuracies[0]:.0f} % with them, {accuracies[1]:.0f} % with stat" in found
    assert "call robust_plugin.recompute_statistics(model, train_loader)" in found
    after = state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(layer.training for layer in model.modules())


def test_a_report_says_it_and_marks_the_attacks():
    x, y = digits(40)
    model = shifted(trained("normed cnn", normed_cnn))
    report = evaluate(model, [(x, y)], attacks=[pgd(ThreatModel("Linf", 0.01), steps=1)])
    assert ["running statistics do not fit" in each for each in report.findings].count(True) == 1
    assert set(report.remarks.values()) == {"doubtful, see the findings"}


def test_a_network_pruned_in_few_steps_is_found_until_its_statistics_are_measured_anew():
    x, y = digits(1797)
    model = pruned_in_few_steps()
    before = accuracy(model, x[-400:], y[-400:])
    for first in (-400, -272, -144, -32):  # 128 points, the last time 32
        assert len(misfit(model, x[first:], y[first:])) == 1
    recompute_statistics(model, [x[:700], x[700:1397]])
    assert misfit(model, x[-400:], y[-400:]) == []
    assert before < 20 and accuracy(model, x[-400:], y[-400:]) > 80


GROUPED = nn.Sequential(
    nn.Conv2d(1, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU(), nn.Flatten(), nn.Linear(768, 10)
)


@pytest.mark.parametrize(
    "model",
    [
        lambda: trained("normed cnn", normed_cnn),
        lambda: GROUPED,
        lambda: trained("mlp", mlp),
        lambda: trained("cnn", cnn),
        lambda: normed_cnn(statistics=False),
    ],
    ids=["fitting", "GroupNorm", "mlp", "cnn", "no statistics"],
)
def test_sound_networks_give_no_finding(model):
    x, y = digits(400)
    network = model().eval()
    for first in range(0, 384, 32):
        assert misfit(network, x[first : first + 32], y[first : first + 32]) == []


def test_chance_is_no_finding():
    """Random networks and labels: both accuracies are draws around one tenth."""
    x = digits(32)[0]
    for seed in range(100):
        torch.manual_seed(seed)
        assert misfit(normed_cnn().eval(), x, torch.randint(10, (32,))) == []


def test_fewer_than_sixteen_points_are_not_judged():
    x, y = digits(16)
    model = shifted(trained("normed cnn", normed_cnn))
    assert len(misfit(model, x, y)) == 1 and misfit(model, x[:15], y[:15]) == []


def test_dropout_stays_off():
    x, y = digits(32)
    model = shifted(trained("normed cnn", normed_cnn))
    dropped = nn.Sequential(model, nn.Dropout(0.9)).eval()
    assert misfit(dropped, x, y) == misfit(model, x, y) != []
